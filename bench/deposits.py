"""Deposit addresses: how fast they are given out, what reading many of them asks of a node, and how soon a confirmed
deposit is credited.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import text

from bench.cost import RpcCount, counting_node
from bench.deposits_report import Deposits
from bench.http_path import client_wallet, fund
from bench.parts import Latency
from bench.surroundings import databases, without_servers
from chain.derivation.addresses import derive_address
from chain.derivation.create2 import salt_of_charge
from chain.reader import ChainReader
from commands.local_method import LOCAL_METHOD
from commands.local_system import LocalSystem
from composition import charge_policy, payment_policy, singleton_workflows
from db.accounts.wallets import Payer
from db.engine import ServiceDatabase
from devstack.chain import LocalChain
from devstack.processes import wait_until
from domain.chain import DepositLane
from domain.deposits.methods import Scheme
from services.deposits.charges import Charges
from services.deposits.lanes import DepositAddresses
from services.deposits.pricing import Prices
from services.deposits.scanner import DepositScanner
from settings import Settings
from starter.payments import PaymentsClient
from starter.singletons import start_missing
from starter.temporal import connect

BLOCK_TIME_SECONDS: Final = 1
SETTINGS: Final = {"MIN_CONFIRMATIONS": "5", "RATE_LIMIT_CHARGES_PER_ACCOUNT": "1000000"}
DEPOSIT_CENTS: Final = 100
DEPOSIT_RAW: Final = 1_000_000
PAYERS: Final = 10
AT_ONCE: Final = 8
CREDITED_SECONDS_MAX: Final = 180.0
PASSES: Final = 3

_CREDITED: Final = text(
    """
    SELECT d.block_number, e.created_at FROM deposits d
      JOIN payment_events e ON e.attempt_id = d.attempt_id AND e.event_type = 'credited'
    """
)


_LANES: Final = text(f"SELECT count(*) FROM chain_cursors WHERE to_address = '{DepositLane.BUSY.value}'")


async def measure_deposits(
    state_dir: Path, variables: Mapping[str, str], *, deposits: int, watched: int, on_progress: Callable[[str], None]
) -> Deposits:
    """Give out addresses, pay to them, and read `watched` of them, on a local system of its own."""
    async with (
        LocalSystem(
            state_dir,
            without_servers(variables) | SETTINGS,
            without=("api", "gateway", "upstream", "relay"),
            on_progress=on_progress,
            block_time_seconds=BLOCK_TIME_SECONDS,
            with_schedules=False,
            with_service_key=False,
        ) as system,
        databases(system.settings) as (tenants, _, service),
    ):
        temporal = await connect(system.variables)
        await start_missing(temporal, singleton_workflows(system.settings))
        payments = PaymentsClient(tenants, temporal, payment_policy(system.settings))
        chain = system.stack.chain
        payer = await payments.provision(client_wallet(0).address)
        charges = Charges(tenants, charge_policy(system.settings), prices=Prices({}), read_head=chain.block_number)
        on_progress(f"{deposits} charges with an address of their own")
        given, seconds = await _give(charges, payer, deposits)
        await _until_watched(service)
        on_progress(f"{deposits} deposits")
        latencies, rate = await _pay(chain, service, given, system.settings.min_confirmations)
        on_progress(f"{watched} watched addresses")
        await _add_addresses(system.settings, payer, watched - deposits)
        return Deposits(
            addresses=deposits,
            addresses_per_second=round(deposits / seconds, 1),
            deposits=deposits,
            credited=len(latencies),
            deposits_per_second=round(rate, 1),
            confirmed_to_credited=Latency.of(latencies),
            watched=watched,
            **await _read(system.settings, service),
        )


async def _until_watched(service: ServiceDatabase) -> None:
    """The first address of an installation opens the lanes, which takes the watcher up to ten seconds."""

    async def is_watched() -> bool:
        async with service.autocommit() as connection:
            return bool((await connection.connection.execute(_LANES)).scalar_one())

    await wait_until(is_watched, timeout_seconds=CREDITED_SECONDS_MAX, what="a watcher of deposit addresses")


async def _give(charges: Charges, payer: Payer, count: int) -> tuple[list[str], float]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def give() -> str:
        async with turns:
            return (await charges.create_charge(payer, LOCAL_METHOD, DEPOSIT_CENTS)).address

    started = time.monotonic()
    given = await asyncio.gather(*(give() for _ in range(count)))
    return list(given), time.monotonic() - started


async def _pay(
    chain: LocalChain, service: ServiceDatabase, addresses: Sequence[str], min_confirmations: int
) -> tuple[list[float], float]:
    """Seconds from confirmed to credited of each deposit, and deposits credited a second."""
    wallets = [client_wallet(number) for number in range(1, PAYERS + 1)]
    await fund(chain, wallets, amount_raw=-(-len(addresses) // PAYERS) * DEPOSIT_RAW)
    for number, address in enumerate(addresses):
        await chain.pay(wallets[number % PAYERS].private_key, address, DEPOSIT_RAW)
    rows: list[tuple[int, datetime]] = []

    async def are_credited() -> bool:
        async with service.autocommit() as connection:
            found = await connection.connection.execute(_CREDITED)
            rows[:] = [(row.block_number, row.created_at) for row in found]
        return len(rows) == len(addresses)

    await wait_until(are_credited, timeout_seconds=CREDITED_SECONDS_MAX, what="credited deposits")
    confirmed = {
        block: await _mined_at(chain, block + min_confirmations - 1) for block in sorted({block for block, _ in rows})
    }
    last, first = max(at for _, at in rows), min(confirmed.values())
    return [(at - confirmed[block]).total_seconds() for block, at in rows], len(rows) / (last - first).total_seconds()


async def _mined_at(chain: LocalChain, block: int) -> datetime:
    header = await chain.rpc("eth_getBlockByNumber", hex(block), False)
    return datetime.fromtimestamp(int(header["timestamp"], 16), UTC)


async def _add_addresses(settings: Settings, payer: Payer, count: int) -> None:
    """So many charges more, written at once: as rows they are what the API writes one by one."""
    treasury = settings.require_treasury_address()
    made: list[tuple[UUID, UUID, str, str]] = []
    for _ in range(count):
        charge_id = uuid4()
        salt = salt_of_charge(charge_id)
        made.append((uuid4(), charge_id, salt, derive_address(Scheme.CREATE2, treasury=treasury, salt=salt)))
    async with await psycopg.AsyncConnection.connect(settings.require_service_database_url()) as connection:
        cursor = connection.cursor()
        async with cursor.copy(
            "COPY deposit_addresses (id, chain_id, address, scheme, salt, treasury, billing_account_id, charge_id)"
            " FROM STDIN"
        ) as copy:
            for id_, charge_id, salt, address in made:
                await copy.write_row(
                    (id_, settings.chain_id, address, "create2", salt, treasury, payer.billing_account_id, charge_id)
                )
        async with cursor.copy(
            "COPY charges (id, billing_account_id, method_id, amount_usd_cents, quoted_amount_raw, address_id,"
            " price_expires_at, metadata) FROM STDIN"
        ) as copy:
            expires = datetime.now(UTC)
            for id_, charge_id, _, _ in made:
                row = (
                    charge_id,
                    payer.billing_account_id,
                    LOCAL_METHOD,
                    DEPOSIT_CENTS,
                    DEPOSIT_RAW,
                    id_,
                    expires,
                    "{}",
                )
                await copy.write_row(row)


async def _read(settings: Settings, service: ServiceDatabase) -> dict[str, float]:
    """What one pass over all addresses asks of a node, and how long it takes."""
    rpc = RpcCount()
    treasury = settings.require_treasury_address()
    async with (
        counting_node(settings.require_chain_rpc_urls()[0], rpc) as url,
        ChainReader([url], settings.chain_id, timeout_seconds=30.0) as reader,
    ):
        addresses = DepositAddresses(service, settings.chain_id, treasury)
        scan = DepositScanner(
            *(reader, service, addresses, DepositLane.QUIET), chain_id=settings.chain_id, look_back_blocks=0
        )
        started = time.monotonic()
        await addresses.scope(DepositLane.QUIET)
        derived_seconds = time.monotonic() - started
        await scan.advance()
        rpc.clear()
        started = time.monotonic()
        for _ in range(PASSES):
            await asyncio.sleep(BLOCK_TIME_SECONDS)
            await scan.advance()
        seconds = time.monotonic() - started - PASSES * BLOCK_TIME_SECONDS
    return {
        "derived_seconds": round(derived_seconds, 2),
        "requests_per_block": round(sum(rpc.requests.values()) / PASSES, 2),
        "queries_per_block": round(sum(rpc.calls.values()) / PASSES, 1),
        "pass_seconds": round(seconds / PASSES, 3),
    }
