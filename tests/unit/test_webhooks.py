"""Rules of webhooks: addresses, retries, signatures, filters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from domain.errors import InvalidInput
from domain.webhooks.addresses import URL_CHARS_MAX, is_loopback, is_port_allowed, parse_url, refusal_of
from domain.webhooks.events import GROUPS, MEANINGS, EventType, parse_filter
from domain.webhooks.retries import GIVEN_UP_AFTER, LATER_DELAY, next_delay
from domain.webhooks.signatures import SECRET_BYTES, make_secret, shown_secret, signed_headers

NOW = datetime.now(UTC)


# -- addresses


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.20.10.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:172.16.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_nothing_is_sent_to_an_address_that_is_not_public(address: str) -> None:
    assert refusal_of(ip_address(address)) is not None


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001::1",
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
    ],
)
def test_a_public_address_is_allowed_on_either_side_of_each_network(address: str) -> None:
    assert refusal_of(ip_address(address)) is None


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "::", "ff02::1", "::ffff:0.0.0.0", "64:ff9b::"])
def test_a_developer_sends_to_private_addresses_but_not_to_what_has_no_server(address: str) -> None:
    assert refusal_of(ip_address(address), allow_private=True) is not None
    assert refusal_of(ip_address("10.0.0.1"), allow_private=True) is None
    assert refusal_of(ip_address("::1"), allow_private=True) is None


def test_loopback_is_recognized_inside_an_ipv6_address() -> None:
    assert is_loopback(ip_address("127.8.8.8"))
    assert is_loopback(ip_address("::ffff:127.0.0.1"))
    assert not is_loopback(ip_address("::ffff:10.0.0.1"))


@pytest.mark.parametrize(("port", "allowed"), [(443, True), (22, False), (1023, False), (1024, True), (65535, True)])
def test_a_port_is_https_or_no_other_services(port: int, allowed: bool) -> None:
    assert is_port_allowed(port) is allowed


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hook?key=1&b=%20",
        "https://sub.xn--mnchen-3ya.example:8443/",
        "https://1.1.1.1/",
        "https://[2606:4700:4700::1111]/hook",
        "https://a_b.example.com./",
    ],
)
def test_a_public_https_address_is_taken_as_it_is(url: str) -> None:
    assert parse_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://example.com/" + "a" * URL_CHARS_MAX,
        "example.com/hook",
        "//example.com/hook",
        "http://example.com/",
        "http://127.0.0.1/",
        "HTTPS://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "https:example.com",
        "https:///hook",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com@10.0.0.1/",
        "https://example.com/#fragment",
        "https://example.com\\@10.0.0.1/",
        "https://example.com/\\hook",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://exämple.com/",
        "https://example.com:22/",
        "https://example.com:80/",
        "https://example.com:99999/",
        "https://example.com:-1/",
        "https://localhost/",
        "https://a.localhost/",
        "https://printer.local/",
        "https://metadata.google.internal/",
        "https://intranet/",
        "https://server/",
        "https://" + ".".join(["a" * 60] * 5) + ".com/",
        "https://127.0.0.1/",
        "https://10.0.0.1/",
        "https://172.16.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://example.0x7f/",
        "https://%31%32%37.0.0.1/",
        "https://-example.com/",
        "https://exa mple.com/",
    ],
)
def test_any_other_address_is_refused_by_its_field(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_url(url)
    assert caught.value.field == "url"
    assert "expected" in caught.value.message


def test_a_refusal_shows_neither_credentials_nor_path() -> None:
    for url in ("https://user:s3cret@example.com/", "http://example.com/s3cret", "http://example.com?key=s3cret"):
        with pytest.raises(InvalidInput) as caught:
            parse_url(url)
        assert "example.com" in caught.value.message
        assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8000/", "http://localhost/", "http://a.localhost/", "http://[::1]:1/", "https://10.0.0.1:1/"],
)
def test_a_developer_has_private_addresses_and_http_on_loopback(url: str) -> None:
    assert parse_url(url, allow_private=True) == url


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/", "http://example.com/", "https://user@localhost/", "ftp://localhost/"]
)
def test_and_nothing_else(url: str) -> None:
    with pytest.raises(InvalidInput):
        parse_url(url, allow_private=True)


# -- retries


def test_it_is_tried_again_soon_then_ever_later_then_hourly_for_three_days() -> None:
    delays: list[timedelta] = []
    tried_for = timedelta(0)
    while (delay := next_delay(len(delays) + 1, tried_for)) is not None:
        delays.append(delay)
        tried_for += delay
    assert [delay.total_seconds() for delay in delays[:6]] == [5, 30, 120, 600, 3600, 3600]
    assert set(delays[5:]) == {LATER_DELAY}
    assert GIVEN_UP_AFTER - LATER_DELAY < tried_for <= GIVEN_UP_AFTER == timedelta(days=3)


@pytest.mark.parametrize(
    ("failures", "asked_seconds", "expected_seconds"),
    [(1, 3, 5), (1, 5, 5), (1, 6, 6), (1, 3_599, 3_599), (1, 3_600, 3_600), (1, 86_400, 3_600), (5, 86_400, 3_600)],
)
def test_what_a_receiver_asks_to_wait_puts_the_next_try_off_by_an_hour_at_most(
    failures: int, asked_seconds: int, expected_seconds: int
) -> None:
    delay = next_delay(failures, timedelta(0), timedelta(seconds=asked_seconds))
    assert delay == timedelta(seconds=expected_seconds)
    assert next_delay(failures, GIVEN_UP_AFTER, timedelta(seconds=asked_seconds)) is None


def test_the_edge_of_three_days_is_tried_at() -> None:
    assert next_delay(50, GIVEN_UP_AFTER - LATER_DELAY) == LATER_DELAY
    assert next_delay(50, GIVEN_UP_AFTER - LATER_DELAY + timedelta(microseconds=1)) is None


# -- signatures


def test_the_standards_own_library_verifies_what_is_signed() -> None:
    secret = make_secret()
    assert len(secret) == SECRET_BYTES
    headers = dict(signed_headers("an-id", datetime.now(UTC), b'{"a" : 1}', [secret]))
    assert Webhook(shown_secret(secret)).verify(b'{"a" : 1}', headers) == {"a": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook(shown_secret(secret)).verify(b'{"a" : 2}', headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(shown_secret(make_secret())).verify(b'{"a" : 1}', headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(shown_secret(secret)).verify(b'{"a" : 1}', headers | {"webhook-id": "another"})


def test_while_secrets_rotate_either_of_them_verifies() -> None:
    old, new = make_secret(), make_secret()
    headers = dict(signed_headers("an-id", datetime.now(UTC), b"{}", [new, old]))
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (old, new):
        assert Webhook(shown_secret(secret)).verify(b"{}", headers) == {}


def test_a_request_that_was_recorded_is_refused_later() -> None:
    secret = make_secret()
    headers = dict(signed_headers("an-id", datetime.now(UTC) - timedelta(minutes=6), b"{}", [secret]))
    with pytest.raises(WebhookVerificationError):
        Webhook(shown_secret(secret)).verify(b"{}", headers)


def test_nothing_is_sent_unsigned() -> None:
    with pytest.raises(ValueError, match="at least one secret"):
        signed_headers("an-id", datetime.now(UTC), b"{}", [])


# -- filters


def test_a_filter_has_types_and_groups_each_once() -> None:
    assert parse_filter(None) is None
    assert parse_filter(["payment.credited", "charge.*", "payment.credited"]) == ("payment.credited", "charge.*")


@pytest.mark.parametrize("events", [[], ["payment"], ["*"], ["payment.unknown"], ["unknown.*"], [""]])
def test_an_unknown_name_in_a_filter_is_refused(events: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_filter(events)
    assert caught.value.field == "events"


def test_every_type_says_what_it_means_and_is_in_a_group() -> None:
    assert set(MEANINGS) == set(EventType)
    assert {f"{kind.split('.')[0]}.*" for kind in EventType} == set(GROUPS)
