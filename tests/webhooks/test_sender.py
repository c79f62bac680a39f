"""Sending one webhook: receivers that fail in every way, and addresses that nothing is sent to."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from domain.webhooks.addresses import IpAddress, refusal_of
from services.webhooks.sender import HEAD_BYTES_MAX, USER_AGENT, WebhookSender
from tests.webhooks.receiver import (
    Behave,
    Receiver,
    accept_and_hang,
    accept_with_a_huge_body,
    answer,
    close,
    drip_a_head,
    hang,
    reset,
    running_receiver,
    speak_garbage,
)

HEADERS: Final = {"webhook-id": "an-id"}
SECONDS_MAX: Final = 0.5


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that accepts."""
    async with running_receiver() as running:
        yield running


@pytest.fixture
def sender() -> WebhookSender:
    """A developer's, which may send to this machine, and waits half a second."""
    return WebhookSender(allow_private=True, seconds_max=SECONDS_MAX)


async def test_what_is_sent_is_the_body_as_it_is(receiver: Receiver, sender: WebhookSender) -> None:
    receiver.behave = answer(200, b"thank\x00 you\r\n")
    result = await sender.send(receiver.url + "?key=1", b'{"a" : 1}', HEADERS)
    assert (result.status_code, result.response_head, result.error) == (200, "thank  you  ", None)
    assert result.is_accepted
    [request] = receiver.requests
    assert (request.body, request.path) == (b'{"a" : 1}', "/hook?key=1")
    assert request.headers["user-agent"] == USER_AGENT
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "an-id"
    assert not {"cookie", "authorization", "referer"} & set(request.headers)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_accepts(receiver: Receiver, sender: WebhookSender, status: int) -> None:
    receiver.behave = answer(status)
    assert (await sender.send(receiver.url, b"{}", HEADERS)).is_accepted


@pytest.mark.parametrize("status", [300, 400, 401, 404, 409, 410, 429, 500, 503])
async def test_any_other_status_does_not(receiver: Receiver, sender: WebhookSender, status: int) -> None:
    receiver.behave = answer(status, b"no")
    result = await sender.send(receiver.url, b"{}", HEADERS)
    assert (result.is_accepted, result.status_code, result.error) == (False, status, None)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(receiver: Receiver, sender: WebhookSender, status: int) -> None:
    async with running_receiver() as other:
        receiver.behave = answer(status, b"", f"Location: {other.url}")
        result = await sender.send(receiver.url, b"{}", HEADERS)
        assert (result.is_accepted, result.status_code) == (False, status)
        assert other.connections == 0


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (hang, "no answer within 0.5 seconds"),
        (drip_a_head, "no answer within 0.5 seconds"),
        (reset, "the connection broke off"),
        (close, "the connection broke off"),
        (speak_garbage, "the connection broke off"),
    ],
)
async def test_a_receiver_without_an_answer_ends_in_time_with_a_reason(
    receiver: Receiver, sender: WebhookSender, behave: Behave, error: str
) -> None:
    receiver.behave = behave
    result = await sender.send(receiver.url, b"{}", HEADERS)
    assert result.status_code is None
    assert result.error is not None
    assert error in result.error
    assert not result.is_accepted
    assert result.duration_ms < 10 * SECONDS_MAX * 1000


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (503, "Retry-After: 120", 120),
        (429, "Retry-After: 7", 7),
        (503, "Retry-After: soon", 0),
        (503, "X: 120", 0),
        (500, "Retry-After: 120", 0),
        (200, "Retry-After: 120", 0),
    ],
)
async def test_a_receiver_under_load_asks_to_wait(
    receiver: Receiver, sender: WebhookSender, status: int, header: str, seconds: int
) -> None:
    receiver.behave = answer(status, b"", header)
    assert (await sender.send(receiver.url, b"{}", {})).retry_after == timedelta(seconds=seconds)


async def test_nothing_listens(sender: WebhookSender) -> None:
    async with running_receiver() as stopped:
        url = stopped.url
    result = await sender.send(url, b"{}", HEADERS)
    assert (result.status_code, result.is_accepted) == (None, False)
    assert "cannot connect" in str(result.error)


async def test_a_huge_body_is_not_read_and_only_its_beginning_is_kept(
    receiver: Receiver, sender: WebhookSender
) -> None:
    receiver.behave = accept_with_a_huge_body
    started = time.monotonic()
    result = await sender.send(receiver.url, b"{}", HEADERS)
    assert (result.is_accepted, result.response_head) == (True, "x" * HEAD_BYTES_MAX)
    assert time.monotonic() - started < 2 * SECONDS_MAX


async def test_a_body_that_does_not_come_is_no_part_of_the_answer(receiver: Receiver, sender: WebhookSender) -> None:
    receiver.behave = accept_and_hang
    result = await sender.send(receiver.url, b"{}", HEADERS)
    assert (result.is_accepted, result.response_head) == (True, "first words")


async def test_a_compressed_body_is_not_unpacked(receiver: Receiver, sender: WebhookSender) -> None:
    receiver.behave = answer(200, b"\x1f\x8b\x08\x00not gzip", "Content-Encoding: gzip")
    result = await sender.send(receiver.url, b"{}", HEADERS)
    assert result.is_accepted


# -- addresses

PUBLIC: Final = "93.184.215.14"
"""Nothing is ever sent there: the socket is refused, or the test ends before."""


class Names:
    """A resolver whose answers a test sets, one for each time that it is asked."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def port_of(receiver: Receiver) -> str:
    return receiver.url.split(":")[2].split("/")[0]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.7", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fd00:ec2::254"],
)
async def test_a_name_that_resolves_to_a_private_address_is_sent_nothing(receiver: Receiver, address: str) -> None:
    names = Names([address])
    result = await WebhookSender(resolve=names).send(f"https://example.com:{port_of(receiver)}/", b"{}", HEADERS)
    assert (result.status_code, names.asked) == (None, ["example.com"])
    assert str(result.error).startswith(f"not sent: example.com is {address}")
    assert receiver.connections == 0


async def test_every_address_of_a_name_is_checked_not_only_the_first(receiver: Receiver) -> None:
    sender = WebhookSender(resolve=Names([PUBLIC, "127.0.0.1"]))
    result = await sender.send(f"https://example.com:{port_of(receiver)}/", b"{}", HEADERS)
    assert "example.com is 127.0.0.1, which is loopback" in str(result.error)
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254", "localhost", "127.1", "0x7f.1"]
)
async def test_an_address_that_is_written_into_the_url_is_checked_like_any(receiver: Receiver, host: str) -> None:
    result = await WebhookSender().send(f"https://{host}:{port_of(receiver)}/", b"{}", HEADERS)
    assert str(result.error).startswith("not sent: ")
    assert receiver.connections == 0


async def test_what_is_connected_to_is_what_was_checked_however_the_name_resolves_later(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public for the check, private for the connection. The name is resolved once, and the socket is
    opened for an address that was checked; here none is opened, since the test must not leave this machine."""
    names = Names([PUBLIC], ["127.0.0.1"])
    opened: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    sender = WebhookSender(resolve=names)
    checks = _checks(monkeypatch, opened)
    monkeypatch.setattr("services.webhooks.sender.socket.socket", refuse)
    result = await sender.send(f"https://example.com:{port_of(receiver)}/", b"{}", HEADERS)
    assert "cannot connect" in str(result.error)
    assert names.asked == ["example.com"]
    assert checks == [PUBLIC, PUBLIC], "once when it was resolved, once when the socket was asked for"
    assert receiver.connections == 0


def _checks(monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> list[str]:
    def note(address: IpAddress, *, allow_private: bool = False) -> str | None:
        seen.append(str(address))
        return refusal_of(address, allow_private=allow_private)

    monkeypatch.setattr("services.webhooks.sender.refusal_of", note)
    return seen


async def test_a_port_of_another_service_is_connected_to_by_a_developer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the one who parses the address for the connection reads another port than the one who checked it."""
    developer = WebhookSender(allow_private=True, seconds_max=SECONDS_MAX)
    assert "cannot connect" in str((await developer.send("http://127.0.0.1:9/", b"{}", HEADERS)).error)
    monkeypatch.setattr("services.webhooks.sender.parse_url", lambda url, *, allow_private: url)
    result = await WebhookSender(resolve=Names([PUBLIC])).send("https://example.com:22/", b"{}", HEADERS)
    assert "which is port 22" in str(result.error)


async def test_http_is_sent_to_loopback_only_also_by_a_developer(receiver: Receiver) -> None:
    sender = WebhookSender(allow_private=True, resolve=Names(["10.0.0.1"]))
    url = f"http://here.localhost:{port_of(receiver)}/hook"
    assert "not loopback" in str((await sender.send(url, b"{}", HEADERS)).error)
    sender = WebhookSender(allow_private=True, resolve=Names(["127.0.0.1"]))
    assert (await sender.send(url, b"{}", HEADERS)).is_accepted


async def test_names_of_tenants_are_resolved_in_no_thread_that_others_wait_for(
    receiver: Receiver, sender: WebhookSender
) -> None:
    """Names of chain nodes are resolved in the loop's own threads, of which there are few."""
    loop, release, workers = asyncio.get_running_loop(), threading.Event(), 64
    held = [loop.run_in_executor(None, release.wait) for _ in range(workers)]
    try:
        url = receiver.url.replace("127.0.0.1", "localhost")
        assert (await sender.send(url, b"{}", HEADERS)).is_accepted
    finally:
        release.set()
        await asyncio.gather(*held)


async def test_a_proxy_of_the_environment_is_not_used(
    receiver: Receiver, sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await sender.send(receiver.url, b"{}", HEADERS)).is_accepted


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `hooks.localhost`, signed by itself, with its key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=hooks"
    names = ["-addext", "subjectAltName=DNS:hooks.localhost"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    together = folder / "together.pem"
    together.write_bytes((folder / "cert").read_bytes() + (folder / "key").read_bytes())
    return together


@pytest.fixture
async def secure(certificate: Path) -> AsyncIterator[Receiver]:
    """A receiver with that certificate."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with running_receiver(tls=tls, host="hooks.localhost") as running:
        yield running


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


async def test_tls_is_for_the_name_although_the_address_is_what_is_connected_to(
    secure: Receiver, certificate: Path
) -> None:
    sender = WebhookSender(allow_private=True, resolve=Names(["127.0.0.1"]), tls=trusting(certificate))
    assert (await sender.send(secure.url, b"{}", HEADERS)).is_accepted
    other = secure.url.replace("hooks.localhost", "others.localhost")
    result = await sender.send(other, b"{}", HEADERS)
    assert "certificate is not valid" in str(result.error)
    assert len(secure.requests) == 1


async def test_a_certificate_that_no_authority_has_signed_is_sent_nothing(secure: Receiver) -> None:
    sender = WebhookSender(allow_private=True, resolve=Names(["127.0.0.1"]))
    result = await sender.send(secure.url, b"{}", HEADERS)
    assert "certificate is not valid" in str(result.error)
    assert secure.requests == []


async def test_a_receiver_that_speaks_no_tls_is_sent_nothing(receiver: Receiver) -> None:
    sender = WebhookSender(allow_private=True, resolve=Names(["127.0.0.1"]), seconds_max=SECONDS_MAX)
    url = receiver.url.replace("http://127.0.0.1", "https://hooks.localhost")
    result = await sender.send(url, b"{}", HEADERS)
    assert result.status_code is None
    assert receiver.requests == []
