"""The same settlements by something else, measured beside the product: DBOS, and plain code without any engine."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import aiohttp

from activities.messages import Settlement, Submission
from bench.baseline_process import DBOS, DBOS_DATABASE_URL, INLINE, SETTLE_PATH
from bench.rounds import Side
from bench.settlements import AMOUNT_CENTS, Paid, Till
from commands.local_system import LocalSystem
from devstack.processes import quiet_port
from domain.errors import SettlementFailed
from domain.payments.attempt import Purpose
from domain.payments.verification import PaymentTerms
from settings import Settings

DBOS_DATABASE: Final = "settle_bench_dbos"
DBOS_MISSING: Final = "the package dbos is not installed; `make install` and the extra `bench` bring it"
ROUND_SECONDS_MAX: Final = 600.0
READY_SECONDS_MAX: Final = 60.0


@dataclass(slots=True)
class Baseline:
    """A running baseline process."""

    name: str
    pid: int
    url: str
    till: Till
    settings: Settings
    settled: int = 0
    _prepared: list[Settlement] = field(default_factory=list)

    def side(self) -> Side:
        """Settles as many payments at a time as the product, from the paid intent to the bonus."""
        return Side(self.name, self._prepare, self._work)

    async def _prepare(self, count: int) -> None:
        self._prepared = [settlement_of(paid, self.settings) for paid in await self.till.pay(count)]

    async def _work(self, _count: int) -> None:
        prepared, self._prepared = self._prepared, []
        body = [payment.model_dump(mode="json") for payment in prepared]
        timeout = aiohttp.ClientTimeout(total=ROUND_SECONDS_MAX)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{self.url}{SETTLE_PATH}", json=body) as response,
        ):
            answer = await response.json()
        if response.status != 200:
            raise SettlementFailed(f"{self.name}: {answer['error']}")
        self.settled += int(answer["settled"])


def settlement_of(paid: Paid, settings: Settings) -> Settlement:
    """The payment as the product's workflow gets it."""
    return Settlement(
        submission=Submission(
            attempt_id=paid.intent.attempt_id,
            owner_user_id=paid.payer.user_id,
            billing_account_id=paid.payer.billing_account_id,
            tx_hash=paid.tx_hash,
            submitted_at=datetime.now(UTC),
            chain_id=settings.chain_id,
        ),
        purpose=Purpose.SELF,
        amount_usd_cents=AMOUNT_CENTS,
        terms=PaymentTerms(
            chain_id=settings.chain_id,
            token=settings.usdc_token_address,
            payer=paid.payer.wallet_address,
            treasury=settings.require_treasury_address(),
            amount_raw=paid.intent.amount_raw,
        ),
    )


def is_dbos_installed() -> bool:
    """Whether the extra `bench` is there."""
    return importlib.util.find_spec("dbos") is not None


async def start_baselines(system: LocalSystem, till: Till) -> list[Baseline]:
    """A process for each: plain code always, DBOS where it is installed. Raises `DevstackError`."""
    names = [INLINE, *([DBOS] if is_dbos_installed() else [])]
    return [await _start(system, till, name) for name in names]


async def _start(system: LocalSystem, till: Till, name: str) -> Baseline:
    port = quiet_port()
    url = f"http://127.0.0.1:{port}"
    process = await system.stack.add_process(
        name,
        [sys.executable, "-P", "-m", "bench.baseline_process", name, str(port)],
        {**system.variables, DBOS_DATABASE_URL: system.stack.postgres.superuser_url(DBOS_DATABASE)},
        ready=lambda: _answers(url),
        ready_timeout_seconds=READY_SECONDS_MAX,
    )
    return Baseline(name, process.pid, url, till, system.settings)


async def _answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
