"""Payment methods and deposits, as an operator's command and a worker write them."""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

from tests.support.postgres import Database
from tests.support.sql import connect, query, scalar

CHAIN_ID: Final = 31337
METHOD: Final = "USDC:local"
NEVER_DEPLOYED: Final = "0x5FbDB2315678afecb367f032d93F642f64180aa3"

EVM_ACCOUNT: Final = (
    "m/44'/60'/7'",
    "xpub6Ce9NcJvTk37JBtr1eY9EsMZtMiNE1eTP4tmjVpfv5jBrmMxag6m2Vx99tzFbrPSgbYYCGJE82UetSJzNurv8JAzgEx2Duh3aa4p5ZW2gHX",
)
"""Account 7 of the words of local chains' wallets: its addresses are no wallet's of these tests."""
EVM_ADDRESSES: Final = ("0xAF4311d557fBC876059e39306ec1f3343753df29", "0xd2378898c87F72dE22eb67673fD23889796C694E")

BITCOIN_ACCOUNT: Final = (
    "m/84'/0'/0'",
    "zpub6qiy8cvfjiUGpweZnK5zLcKWkizhTsraN95DLyQVvvkp8aevEF8KMzSBnnLix3m9NYqeoLBLEc7G2rJVVCEj1A82gRVN2BXGiWmYosGpCAy",
)
BITCOIN_ADDRESSES: Final = ("bc1q4qw42stdzjqs59xvlrlxr8526e3nunw7mp73te", "bc1qp533522veg9uyhpx3sva9vqrnfzmt262n4lsuq")

TESTNET_ACCOUNTS: Final = {
    44: (
        "m/44'/1'/0'",
        "tpubDCS53XQX9dLmQ9TBZnVq8MTsjuoTa2Ne5Yd58jfsWpkwmfhAo9eHGJnjzQWLUjQYMB8wuxW5rPECxTZySfFwJ8D81LqpXtYXm2EfnnUjSP5",
    ),
    49: (
        "m/49'/1'/0'",
        "upub5DZecHa5zJksaTgycX9sJAqzttGTkmu5naU7Rzw52tsQs5amxxJWFg9VgkYnxWVYLMFd3xCXwJLWcREftiAf1yi2Lj1F6dRqMtTKryoiTNL",
    ),
    84: (
        "m/84'/1'/0'",
        "vpub5YPuuxF18zJMRkt6SswVWFwW4rQuhPtahgzLDPpxQuFHvBQ1DcU4sjodhxWNxR9TjzNRoRo6Pxh4VhrEcQafpDPdD4hfgYFKdcWyFXyLvNf",
    ),
}
"""The same key as an account of Bitcoin's test networks, by purpose."""


def add_ring(database: Database, account: tuple[str, str] = EVM_ACCOUNT, *, gap_limit: int = 20) -> UUID:
    """An extended public key, with no address given out."""
    path, xpub = account
    ring_id = uuid4()
    query(
        database.service_url,
        "INSERT INTO address_rings (id, path, xpub, fingerprint, gap_limit) VALUES (%s, %s, %s, '00000000', %s)"
        " RETURNING 1",
        *(ring_id, path, xpub, gap_limit),
    )
    return ring_id


def add_method(
    database: Database,
    method_id: str = METHOD,
    *,
    address: str | None = NEVER_DEPLOYED,
    decimals: int = 6,
    kind: str = "erc20",
    chain_id: int = CHAIN_ID,
    ring_id: UUID | None = None,
    min_raw: int = 1,
) -> str:
    """A payment method by create2, or by a key where `ring_id` names one; its id."""
    query(
        database.service_url,
        "INSERT INTO payment_methods (id, chain_id, token, address, decimals, kind, scheme, ring_id, min_amount_raw)"
        " VALUES (%s, %s, split_part(%s, ':', 1), %s, %s, %s, %s, %s, %s) RETURNING 1",
        *(method_id, chain_id, method_id, address, decimals, kind, "xpub" if ring_id else "create2", ring_id, min_raw),
    )
    return method_id


def disable(database: Database, method_id: str = METHOD) -> None:
    """Let a method take no new charge."""
    query(database.service_url, "UPDATE payment_methods SET enabled = false WHERE id = %s RETURNING 1", method_id)


def next_index(database: Database, ring_id: UUID) -> int:
    """How many indices of a key have been given out."""
    return int(scalar(database.service_url, "SELECT next_index FROM address_rings WHERE id = %s", ring_id))


def see_deposit(
    database: Database, address: str, value_raw: int, *, method_id: str = METHOD, block_number: int = 1
) -> UUID:
    """A transfer to an address, as the watcher writes it when it has seen it: without an attempt."""
    deposit_id = uuid4()
    query(
        database.service_url,
        "INSERT INTO deposits (id, chain_id, tx_hash, log_index, address_id, method_id, token, from_address, value_raw,"
        " credits, block_number, block_hash, block_time)"
        " SELECT %s, m.chain_id, %s, 0, a.id, m.id, coalesce(m.address, m.token), %s, v.raw,"
        " trunc(v.raw * 10000000 / power(10::numeric, m.decimals)), %s, %s, now()"
        " FROM payment_methods m, deposit_addresses a, (SELECT %s::numeric AS raw) v WHERE m.id = %s AND a.address = %s"
        " RETURNING 1",
        *(deposit_id, f"0x{uuid4().hex * 2}", f"0x{'5' * 40}", block_number, f"0x{'b' * 64}", value_raw),
        *(method_id, address),
    )
    return deposit_id


def status_of(database: Database, charge_id: str | UUID) -> str:
    """A charge's status as it is stored."""
    return str(scalar(database.service_url, "SELECT status FROM charges WHERE id = %s", charge_id))


def settle_deposit(database: Database, deposit_id: UUID, status: str = "CREDITED") -> None:
    """Let a deposit have become a payment that stands like this, past everything that a real one goes through."""
    finished = {"CREDITED", "REVERSED"}
    with connect(database.superuser_url, triggers=False) as connection:
        connection.execute(
            "INSERT INTO payment_attempts (id, billing_account_id, from_address, chain_id, token, to_address,"
            " amount_raw, amount_usd_cents, status, tx_hash, submitted_at, kind, amount_credits, value_raw,"
            " revenue_share, error_code, cash_account)"
            " SELECT d.id, a.billing_account_id, d.from_address, d.chain_id, d.token, a.address,"
            " least(d.value_raw, 9223372036854775807), d.credits / 100000, %(status)s, d.tx_hash, now(), 'deposit',"
            " d.credits, d.value_raw, CASE WHEN %(credited)s THEN 0 END, %(error)s,"
            " 'cash:' || lower(m.token) || ':deposits' FROM deposits d"
            " JOIN deposit_addresses a ON a.id = d.address_id JOIN payment_methods m ON m.id = d.method_id"
            " WHERE d.id = %(id)s",
            {
                "id": deposit_id,
                "status": status,
                "credited": status in finished,
                "error": "TX_REVERTED" if status in {"REJECTED", "FAILED"} else None,
            },
        )
        connection.execute("UPDATE deposits SET attempt_id = id WHERE id = %s", (deposit_id,))
        connection.execute(
            "SELECT refresh_charge(a.charge_id) FROM deposits d JOIN deposit_addresses a ON a.id = d.address_id"
            " WHERE d.id = %s",
            (deposit_id,),
        )
