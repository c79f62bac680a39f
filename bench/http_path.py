"""The HTTP path: many clients at once, each with a wallet and a session of its own, from the intent to the credits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import aiohttp
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_typing import HexStr
from eth_utils.crypto import keccak

from bench.parts import Latency
from bench.report import CallLatency, HttpPath
from bench.rounds import Deadline, at_once
from bench.settlements import AMOUNT_CENTS, COMPLETION_TIMEOUT
from db.engine import ServiceDatabase
from db.payments import attempts
from devstack.chain import MAX_FEE_WEI, PRIORITY_FEE_WEI, TRANSFER_GAS, LocalChain, Wallet, call_data
from domain.errors import SettlementFailed
from domain.money import raw_for_usd_cents
from domain.payments.attempt import AttemptStatus, ClientStatus

BLOCK_TIME_SECONDS: Final = 1

SETTINGS: Final[dict[str, str]] = {
    # Mined is confirmed: the clock is to show this system, not how long a chain takes.
    "MIN_CONFIRMATIONS": "1",
    "FINALITY": "confirmations",
    "FINALITY_CONFIRMATIONS": "1",
    # All clients come from one address.
    **{
        f"RATE_LIMIT_{what}_PER_{whom}": "1000000"
        for what in ("LOGINS", "INTENTS", "SUBMITS")
        for whom in ("ADDRESS", "ACCOUNT")
    },
}

SECONDS_MAX: Final = 120.0
"""Then no client begins another payment."""

POLL_SECONDS: Final = 1.0
"""Between a client's questions for the status: more often than a chain has blocks, as a page that waits does."""

CALL_SECONDS_MAX: Final = 30.0
FUNDING_SECONDS_MAX: Final = 60.0
RECEIPT_POLL_SECONDS: Final = 0.25
RECEIPT_LOOKS_MAX: Final = 120
PROGRESS_SECONDS: Final = 5.0
GAS_WEI: Final = 10**19
SHOWN_FAILURES_MAX: Final = 5

SIGN_IN_CALLS: Final = ("challenge", "login")
PAYMENT_CALLS: Final = ("intent", "submit", "status")


@dataclass(slots=True)
class Tally:
    """What the clients saw: how long each call took, and what went wrong."""

    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {call: [] for call in (*SIGN_IN_CALLS, *PAYMENT_CALLS)}
    )
    failures: list[tuple[str, str]] = field(default_factory=list)
    begun: int = 0
    submitted_at: dict[UUID, datetime] = field(default_factory=dict)
    credited: list[UUID] = field(default_factory=list)

    def fail(self, call: str, words: str) -> None:
        """Note a call that was not answered as it should have been."""
        self.failures.append((call, words))

    def latencies(self, calls: Sequence[str]) -> list[CallLatency]:
        """Of each call, in the order given."""
        return [
            CallLatency(
                call=call,
                errors=sum(1 for failed, _ in self.failures if failed == call),
                **dict(Latency.of(self.seconds[call])),
            )
            for call in calls
        ]


class CallFailed(Exception):
    """A call had no answer, or not the one it should have; it is in the tally already."""


@dataclass(frozen=True, slots=True)
class SignedPayment:
    """A transfer that only has to be sent."""

    raw: str
    tx_hash: str


class Client:
    """A client with a wallet, a session of its own, and payments signed before the clock starts."""

    def __init__(
        self, http: aiohttp.ClientSession, wallet: Wallet, payments: Sequence[SignedPayment], tally: Tally
    ) -> None:
        self._http = http
        self._wallet = wallet
        self._payments = payments
        self._tally = tally
        self._is_signed_in = False

    async def sign_in(self) -> None:
        """Ask for a challenge and answer it."""
        try:
            challenge = await self._call(
                "challenge", "POST", "/api/v1/auth/challenge", {"address": self._wallet.address}, wants=200
            )
            signed = Account.sign_message(encode_defunct(text=challenge["message"]), self._wallet.private_key)
            answer = {"nonce": challenge["nonce"], "signature": f"0x{bytes(signed.signature).hex()}"}
            await self._call("login", "POST", "/api/v1/auth/login", answer, wants=200)
        except CallFailed:
            return
        self._is_signed_in = True

    async def buy(self, node: Node, deadline: Deadline) -> None:
        """One payment after the other, as long as there is time to begin one."""
        for payment in self._payments:
            if not self._is_signed_in or not deadline.seconds_left:
                return
            self._tally.begun += 1
            try:
                async with asyncio.timeout(COMPLETION_TIMEOUT.total_seconds()):
                    await self._buy(node, payment)
            except CallFailed:
                continue
            except TimeoutError:
                self._tally.fail("status", f"not credited within {COMPLETION_TIMEOUT.total_seconds():g} s")

    async def _buy(self, node: Node, payment: SignedPayment) -> None:
        body = {"amountUsdCents": AMOUNT_CENTS}
        intent = await self._call("intent", "POST", "/api/v1/payments/intents", body, wants=201)
        await node.send(payment)
        attempt_id = UUID(intent["attemptId"])
        path = f"/api/v1/payments/attempts/{attempt_id}"
        submitted_at = datetime.now(UTC)
        view = await self._call("submit", "POST", f"{path}/submit", {"txHash": payment.tx_hash}, wants=202)
        while view["clientStatus"] == ClientStatus.PENDING_VERIFICATION:
            await asyncio.sleep(POLL_SECONDS)
            view = await self._call("status", "GET", path, wants=200)
        if view["status"] != AttemptStatus.CREDITED:
            self._tally.fail("status", f"attempt {attempt_id} ended {view['status']} ({view['errorCode']})")
            return
        self._tally.submitted_at[attempt_id] = submitted_at
        self._tally.credited.append(attempt_id)

    async def _call(self, call: str, method: str, path: str, body: object = None, *, wants: int) -> Any:
        """The answer's body; its time counts from before the request is sent until the answer is read."""
        started = time.perf_counter()
        try:
            async with self._http.request(method, path, json=body) as response:
                answer = await response.json(content_type=None)
                status = response.status
        except (aiohttp.ClientError, ValueError) as error:
            self._tally.fail(call, f"{type(error).__name__}: {error}")
            raise CallFailed from error
        except TimeoutError as error:
            self._tally.fail(call, f"no answer within {CALL_SECONDS_MAX:g} s")
            raise CallFailed from error
        if status != wants:
            self._tally.fail(call, f"{status} {answer.get('code')}: {answer.get('detail')}")
            raise CallFailed
        self._tally.seconds[call].append(time.perf_counter() - started)
        return answer


class Node:
    """The local chain, asked over kept connections: what paying costs must not disturb what is measured."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def send(self, payment: SignedPayment) -> None:
        """Send a payment and wait until a block holds it. Raises `SettlementFailed`."""
        await self._call("eth_sendRawTransaction", payment.raw)
        for _ in range(RECEIPT_LOOKS_MAX):
            await asyncio.sleep(RECEIPT_POLL_SECONDS)
            receipt = await self._call("eth_getTransactionReceipt", payment.tx_hash)
            if receipt is None:
                continue
            if int(receipt["status"], 16) != 1:
                raise SettlementFailed(f"payment {payment.tx_hash} was reverted on the local chain")
            return
        raise SettlementFailed(f"payment {payment.tx_hash} was not mined on the local chain")

    async def _call(self, method: str, parameter: str) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": [parameter]}
        try:
            async with self._http.post("/", json=request) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, ValueError) as error:
            raise SettlementFailed(f"{method}: the local chain does not answer ({type(error).__name__})") from error
        if "error" in answer:
            raise SettlementFailed(f"{method}: {answer['error'].get('message')}")
        return answer["result"]


async def measure_http_path(
    chain: LocalChain,
    service: ServiceDatabase,
    api_url: str,
    *,
    clients: int,
    payments: int,
    seconds_max: float = SECONDS_MAX,
    on_progress: Callable[[str], None] = lambda _: None,
) -> HttpPath:
    """Let so many clients make so many payments each, all at once. Raises `SettlementFailed`, `DevstackError`."""
    wallets = [client_wallet(number) for number in range(clients)]
    on_progress(f"HTTP path: funding {clients} wallets, signing {clients * payments} payments")
    await fund(chain, wallets, amount_raw=payments * raw_for_usd_cents(AMOUNT_CENTS))
    signed = await asyncio.to_thread(lambda: [sign_payments(chain, wallet, payments) for wallet in wallets])
    tally = Tally()
    async with _sessions(api_url, clients) as sessions, _session(chain.url) as node_session:
        crowd = [
            Client(session, wallet, own, tally) for session, wallet, own in zip(sessions, wallets, signed, strict=True)
        ]
        on_progress(f"HTTP path: {clients} clients sign in")
        await at_once(client.sign_in() for client in crowd)
        node, deadline = Node(node_session), Deadline(seconds_max)
        on_progress(f"HTTP path: {clients} clients, {payments} payments each")
        async with _said_now_and_then(tally, clients * payments, on_progress):
            started = time.perf_counter()
            await at_once(client.buy(node, deadline) for client in crowd)
            seconds = time.perf_counter() - started
    until_credited = await _seconds_until_credited(service, tally)
    return HttpPath(
        clients=clients,
        payments_per_client=payments,
        begun=tally.begun,
        credited=len(tally.credited),
        seconds=round(seconds, 2),
        payments_per_second=round(len(tally.credited) / seconds, 1),
        poll_seconds=POLL_SECONDS,
        sign_in=tally.latencies(SIGN_IN_CALLS),
        calls=tally.latencies(PAYMENT_CALLS),
        submit_to_credited=Latency.of(until_credited),
        errors=len(tally.failures),
        first_errors=[f"{call}: {words}" for call, words in tally.failures[:SHOWN_FAILURES_MAX]],
    )


def client_wallet(number: int) -> Wallet:
    """The wallet of a client: always the same, and worth nothing anywhere."""
    key = keccak(text=f"settle bench client {number}")
    return Wallet(number, Account.from_key(key).address, HexStr(f"0x{key.hex()}"))


async def fund(chain: LocalChain, wallets: Sequence[Wallet], *, amount_raw: int) -> None:
    """Give each wallet gas and so much test USDC."""
    await chain.rpc_batch([("anvil_setBalance", (wallet.address, hex(GAS_WEI))) for wallet in wallets])
    # One after the other: each takes the deployer's next nonce, so the last one mined means all are.
    minted = [await chain.mint(wallet.address, amount_raw) for wallet in wallets]
    await chain.wait_for_receipt(minted[-1], timeout_seconds=FUNDING_SECONDS_MAX)


def sign_payments(chain: LocalChain, wallet: Wallet, count: int) -> list[SignedPayment]:
    """So many transfers to the treasury. Signing takes long enough to disturb what is measured, so it comes before."""
    data = call_data("TestUSDC", "transfer", chain.treasury_address, raw_for_usd_cents(AMOUNT_CENTS))
    signed = [
        Account.sign_transaction(
            {
                "type": 2,
                "chainId": chain.chain_id,
                "to": chain.token_address,
                "value": 0,
                "data": data,
                "nonce": nonce,
                "gas": TRANSFER_GAS,
                "maxFeePerGas": MAX_FEE_WEI,
                "maxPriorityFeePerGas": PRIORITY_FEE_WEI,
            },
            wallet.private_key,
        )
        for nonce in range(count)
    ]
    return [SignedPayment(f"0x{bytes(one.raw_transaction).hex()}", f"0x{bytes(one.hash).hex()}") for one in signed]


async def _seconds_until_credited(service: ServiceDatabase, tally: Tally) -> list[float]:
    """From before the submit was sent to the buyer's credit, by the database's clock, which is this machine's.

    More exact than the clients' own measurement, which only polls.
    """
    found: list[float] = []
    async with service.transaction() as connection:
        for attempt_id in tally.credited:
            events = await attempts.list_events(connection, attempt_id)
            credited_at = next(event.created_at for event in events if event.to_status == AttemptStatus.CREDITED)
            found.append((credited_at - tally.submitted_at[attempt_id]).total_seconds())
    return found


@asynccontextmanager
async def _said_now_and_then(tally: Tally, wanted: int, on_progress: Callable[[str], None]) -> AsyncIterator[None]:
    async def say() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            on_progress(f"HTTP path: {len(tally.credited)} of {wanted} payments credited")

    task = asyncio.create_task(say())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _sessions(api_url: str, count: int) -> AsyncIterator[Iterator[aiohttp.ClientSession]]:
    """A connection and a cookie jar for each client, as so many browsers have them."""
    async with AsyncExitStack() as stack:
        yield iter([await stack.enter_async_context(_session(api_url)) for _ in range(count)])


def _session(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        # It would refuse the cookies of an address without a name.
        cookie_jar=aiohttp.CookieJar(unsafe=True),
        timeout=aiohttp.ClientTimeout(total=CALL_SECONDS_MAX),
    )
