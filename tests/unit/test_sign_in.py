"""The sign-in message (EIP-4361)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from domain.accounts.sign_in import new_challenge

ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
ISSUED = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC)


def challenge(origin: str = "https://pay.example.com", issued_at: datetime = ISSUED, platform: str = "Cogni") -> str:
    """The message for an origin."""
    return new_challenge(
        nonce="abcdefgh12345678",
        address=ADDRESS,
        origin=origin,
        chain_id=8453,
        platform=platform,
        issued_at=issued_at,
        lifetime=timedelta(minutes=5),
    ).message


def test_the_message_is_written_as_the_standard_requires() -> None:
    # The grammar of EIP-4361, section "Message Format", filled in by hand.
    assert challenge() == (
        "pay.example.com wants you to sign in with your Ethereum account:\n"
        "0x70997970C51812dc3A010C7d01b50e0d17dc79C8\n"
        "\n"
        "Sign in to Cogni. This costs nothing and moves no money.\n"
        "\n"
        "URI: https://pay.example.com\n"
        "Version: 1\n"
        "Chain ID: 8453\n"
        "Nonce: abcdefgh12345678\n"
        "Issued At: 2026-01-02T03:04:05Z\n"
        "Expiration Time: 2026-01-02T03:09:05Z"
    )


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8080", "https://pay.example.com:8443", "http://[::1]:8080"])
def test_the_domain_is_the_origins_host_and_port(origin: str) -> None:
    first, *_, uri = challenge(origin).partition("URI: ")[0].splitlines()[0].split(" "), origin
    assert first[0] == origin.partition("://")[2]
    assert f"URI: {uri}\n" in challenge(origin)


def test_times_are_in_utc_whatever_the_clock_of_the_host() -> None:
    there = ISSUED.astimezone(timezone(timedelta(hours=9)))
    assert challenge(issued_at=there) == challenge()


@pytest.mark.parametrize(("platform", "named"), [("Cogni & Co.", "Cogni & Co."), ("Café", "this service")])
def test_a_name_that_the_standards_grammar_does_not_know_stays_out_of_the_message(platform: str, named: str) -> None:
    assert f"\nSign in to {named}. This costs nothing" in challenge(platform=platform)
