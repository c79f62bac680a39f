"""Top-ups on real parts: a chain that mines on request, the HTTP interface, and a relay, one pass at a time."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import pytest
from eth_account import Account

from composition import chain_reader
from db.deposits.authorizations import ChargeLimits
from db.payments.authorizations import DailyLimits
from devstack.chain import LocalChain, SignedPayment, Wallet, payer_wallets
from domain.chain import TransferScope
from domain.payments import x402
from domain.payments.attempt import AttemptStatus
from relay.policy import RelayPolicy
from relay.relay import Relay
from relay.signing import RelayKey
from services.payments.authorizations import ClaimedAuthorizations
from services.transfers.block_scanner import BlockScanner
from services.transfers.matcher import TransferMatcher
from tests.support.api import Reply, RunningApi, SharedApi, Visitor, running_api, shared_api_on
from tests.support.database_pool import DatabasePool
from tests.support.engine import MIN_CONFIRMATIONS, Engine, open_engine
from tests.support.payments import RolePair
from tests.support.servers import Namespace, Namespaces, running_chain
from tests.support.smart_wallets import contract_address, wrap_with_factory
from tests.support.sql import query

PATH: Final = x402.TOP_UP_PATH
CENTS: Final = 100
RAW: Final = CENTS * 10_000
PAYER, OTHER, STRANGER, HOLDER = payer_wallets()[:4]
"""Who signs, another who signs, who broadcasts or steals, and whose account it is."""

GAS_WEI: Final = 10**18

NO_LIMITS: Final = {
    f"RATE_LIMIT_{calls}_PER_{whom}": "1000000"
    for calls in ("LOGINS", "INTENTS", "SUBMITS", "CHARGES", "TOPUPS")
    for whom in ("ADDRESS", "ACCOUNT")
}
"""Of an interface that is asked by several tests in the same minute."""

ODD_FACTORY: Final = contract_address(6492)
"""A factory that is called as well; each test says what its code does."""


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """It mines only on request; `finalized` trails by 4 blocks."""
    async with running_chain(tmp_path_factory.mktemp("own-chain"), slots_in_an_epoch=2) as running:
        yield running


@pytest.fixture
async def engine(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AsyncIterator[Engine]:
    """An engine on that chain."""
    await chain.mine(1)  # its clock is the host's with the newest block
    async with open_engine(namespace, roles, chain) as opened:
        yield opened


@dataclass(frozen=True)
class UndeployedWallet:
    """A smart wallet of the local chain's factory that is yet to be deployed."""

    chain: LocalChain
    owner: Wallet
    salt: int
    address: str

    def wrapped(self, payment: SignedPayment) -> str:
        """What its owner has signed, with how it is deployed (ERC-6492)."""
        return wrap_with_factory(self.chain, self.owner.address, "0x" + payment.signature.hex(), self.salt)

    async def is_there(self) -> bool:
        """Whether it is on the chain by now."""
        return bool(await self.chain.rpc("eth_getCode", self.address, "latest") != "0x")

    async def deploy(self) -> None:
        """As any account may; mined."""
        await self.chain.deploy_smart_wallet(self.owner.address, self.salt)


@dataclass
class Counter:
    """Where signatures are taken."""

    engine: Engine
    api: RunningApi
    payee: Visitor
    """Signed in as `HOLDER`, who signs nothing."""

    @property
    def chain(self) -> LocalChain:
        """The chain's own access."""
        return self.engine.chain

    async def offer(self, cents: int = CENTS, *, to: Visitor | None = None, **fields: Any) -> dict[str, Any]:
        """What is to be signed for a new attempt."""
        reply = await (to or self.payee).post(PATH, {"amountUsdCents": cents, **fields})
        assert reply.status == 402, reply.body
        required = json.loads(base64.b64decode(reply.headers[x402.PAYMENT_REQUIRED]))
        assert required["accepts"] == reply.body["accepts"]
        answer: dict[str, Any] = reply.body
        return answer

    def sign(
        self, offer: dict[str, Any], wallet: Wallet = PAYER, *, own_nonce: bool = True, **changes: Any
    ) -> SignedPayment:
        """What a payer signs for an offer; `changes` are those of `LocalChain.sign_payment`."""
        message = offer["authorization"]["message"]
        values: dict[str, Any] = {
            "to": message["to"],
            "amount_raw": int(message["value"]),
            "valid_before": int(message["validBefore"]),
            "nonce": bytes.fromhex(message["nonce"][2:]) if own_nonce else secrets.token_bytes(32),
        }
        return self.chain.sign_payment(wallet.private_key, **{**values, **changes})

    async def post(
        self, offer: dict[str, Any], payment: SignedPayment, *, by: Visitor | None = None, wait: int = 0, **changes: Any
    ) -> Reply:
        """Post a signature as an x402 client does: the same address, the same body."""
        header = payment_header(offer, payment, **changes)
        cents = int(offer["accepts"][0]["amount"]) // 10_000
        headers = {x402.PAYMENT_SIGNATURE: header, "Prefer": f"wait={wait}"}
        return await (by or self.payee).post(PATH, {"amountUsdCents": cents}, headers=headers)

    async def claimed(self, **options: Any) -> tuple[UUID, SignedPayment]:
        """An attempt whose signature is claimed, and nothing more."""
        offer = await self.offer()
        payment = self.sign(offer, **options)
        reply = await self.post(offer, payment)
        assert reply.status == 202, reply.body
        return UUID(offer["attemptId"]), payment

    async def new_wallet(self, owner: Wallet = OTHER, amount_raw: int = RAW) -> UndeployedWallet:
        """A smart wallet that holds so much and is not on the chain; its factory is."""
        await self.chain.deploy_smart_wallet_factory()
        salt = secrets.randbits(64)
        wallet = UndeployedWallet(self.chain, owner, salt, self.chain.smart_wallet_address(owner.address, salt))
        await self.chain.mint(wallet.address, amount_raw)
        await self.chain.mine(1)
        return wallet

    async def claimed_by(self, wallet: UndeployedWallet) -> UUID:
        """An attempt with what that wallet has signed for it, and nothing more."""
        offer = await self.offer()
        payment = self.sign(offer, wallet.owner, payer=wallet.address)
        reply = await self.post(offer, payment, signature=wallet.wrapped(payment))
        assert reply.status == 202, reply.body
        return UUID(offer["attemptId"])

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What the database holds, as its superuser sees it."""
        return query(self.engine.database.superuser_url, statement)

    async def status(self, attempt_id: UUID) -> AttemptStatus:
        """As the database has it."""
        return (await self.engine.attempt(attempt_id)).status


@dataclass
class Till(Counter):
    """The system that takes signatures, with its relay."""

    relay: Relay
    claims: ClaimedAuthorizations
    scan: BlockScanner
    matcher: TransferMatcher

    async def settle(self, attempt_id: UUID) -> None:
        """Mine what is pending, submit what was relayed, and wait for the end of the attempt's workflow."""
        await self.chain.mine(MIN_CONFIRMATIONS)
        await self.claims.submit_relayed()
        await self.engine.result(attempt_id)

    async def watch(self) -> None:
        """Record the transfers up to the head, and decide about those that are confirmed."""
        while not (step := await self.scan.advance()).is_at_head:
            pass
        await self.matcher.act(step.cursor.head_number)


def payment_header(offer: dict[str, Any], payment: SignedPayment, **changes: Any) -> str:
    """`PAYMENT-SIGNATURE`; `changes` are parts of the JSON, or of the authorization as `authorization_x`."""
    authorization = {
        "from": payment.payer,
        "to": payment.to,
        "value": str(payment.amount_raw),
        "validAfter": str(payment.valid_after),
        "validBefore": str(payment.valid_before),
        "nonce": "0x" + payment.nonce.hex(),
    }
    for name in [name for name in changes if name.startswith("authorization_")]:
        authorization[name.removeprefix("authorization_")] = changes.pop(name)
    signature = changes.pop("signature", "0x" + payment.signature.hex())
    content = {
        "x402Version": 2,
        "payload": {"signature": signature, "authorization": authorization},
        "accepted": offer["accepts"][0],
        "resource": offer["resource"],
        **changes,
    }
    return x402.as_header(content)


def wallet_factories(chain: LocalChain) -> tuple[str, ...]:
    """Those that are called for wallets which are yet to be deployed."""
    return chain.smart_wallet_factory_address, ODD_FACTORY


def relay_policy(engine: Engine, **changes: Any) -> RelayPolicy:
    """What the tests' relay may do."""
    policy = RelayPolicy(
        chain_id=engine.chain.chain_id,
        token=engine.chain.token_address,
        treasury=engine.chain.treasury_address,
        wallet_factories=wallet_factories(engine.chain),
        min_confirmations=MIN_CONFIRMATIONS,
        block_time=engine.settings.block_time,
        limits=DailyLimits(100, 5),
        charge_limits=ChargeLimits(5, 2, 100, 5),
        gas_per_day_wei=10**17,
        max_fee_wei=10**11,
        balance_alert_wei=0,
    )
    return replace(policy, **changes)


async def new_key(chain: LocalChain, gas_wei: int = GAS_WEI) -> RelayKey:
    """A key of its own, whose account holds gas."""
    key = RelayKey(bytes(Account.create().key))
    await chain.set_balance(key.address, gas_wei)
    return key


@asynccontextmanager
async def opened_relay(engine: Engine, key: RelayKey, **changes: Any) -> AsyncIterator[Relay]:
    """A relay with clients of its own for the nodes, and with the engine's connections."""
    async with chain_reader(engine.settings) as reader:
        yield Relay(engine.relay, reader, key, relay_policy(engine, **changes))


@asynccontextmanager
async def opened_till(api: RunningApi, payee: Visitor) -> AsyncIterator[Till]:
    """The whole on an interface's engine, without a worker; what it reads begins with the next block."""
    engine = api.engine
    scope = TransferScope(
        chain_id=engine.chain.chain_id, token=engine.chain.token_address, treasury=engine.chain.treasury_address
    )

    async def publish(_: object) -> None:
        """Findings are read from the database."""

    key = await new_key(engine.chain)
    begin = await engine.chain.block_number()
    async with opened_relay(engine, key) as relay:
        yield Till(
            engine,
            api,
            payee,
            relay,
            ClaimedAuthorizations(engine.service, engine.reader, engine.payments, chain_id=engine.chain.chain_id),
            BlockScanner(engine.reader, engine.service, scope, from_block=begin, look_back_blocks=1),
            TransferMatcher(
                *(engine.service, scope, engine.payments, publish),
                chain=engine.reader,
                min_confirmations=MIN_CONFIRMATIONS,
            ),
        )


@pytest.fixture
async def own_till(engine: Engine) -> AsyncIterator[Till]:
    """One on an interface, a database and a namespace of the test's own."""
    async with (
        running_api(engine, SMART_WALLET_FACTORIES=",".join(wallet_factories(engine.chain))) as api,
        api.visitor(HOLDER) as payee,
        opened_till(api, payee) as till,
    ):
        yield till


@pytest.fixture(scope="module")
async def shared_counter(
    namespaces: Namespaces, databases: DatabasePool, chain: LocalChain
) -> AsyncIterator[SharedApi]:
    """The module's interface, with a namespace in which no worker ever runs."""
    async with (
        namespaces.lent() as namespace,
        databases.database() as roles,
        open_engine(namespace, roles, chain) as engine,
        shared_api_on(
            engine,
            HOLDER,
            SMART_WALLET_FACTORIES=",".join(wallet_factories(chain)),
            **NO_LIMITS,
        ) as shared,
    ):
        yield shared


@pytest.fixture
async def shared_till(shared_counter: SharedApi) -> AsyncIterator[Till]:
    """One on the module's interface, with no rows but those of a payee who is signed in."""
    await shared_counter.running.engine.chain.mine(1)  # its clock is the host's with the newest block
    async with (
        shared_counter.lent(has_payer=True) as api,
        shared_counter.payer() as payee,
        opened_till(api, payee) as till,
    ):
        yield till


@pytest.fixture
def own_servers() -> None:
    """For `with_worker`."""


with_worker = pytest.mark.usefixtures(own_servers.__name__)
"""For a test with a worker, which would take up what others have left in the namespace that they share."""


@pytest.fixture
def till(request: pytest.FixtureRequest) -> Till:
    """The whole, without a worker: the module's, or the test's own."""
    is_own = own_servers.__name__ in request.fixturenames
    found: Till = request.getfixturevalue((own_till if is_own else shared_till).__name__)
    return found
