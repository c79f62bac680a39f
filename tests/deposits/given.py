"""What an operator registers and the API gives out, as rows: for tests of what happens then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from chain.derivation.addresses import derive_address
from chain.derivation.create2 import salt_of_account, salt_of_charge
from db.accounts.wallets import Payer
from devstack.chain import LocalChain
from domain.deposits.methods import Scheme
from tests.support.postgres import Database
from tests.support.sql import connect

USDC: Final = "USDC:test"

_ADDRESS: Final = """
    INSERT INTO deposit_addresses (id, chain_id, address, scheme, salt, treasury, billing_account_id, charge_id)
    VALUES (%(id)s, %(chain_id)s, %(address)s, 'create2', %(salt)s, %(treasury)s, %(account)s, %(charge_id)s)
"""
_CHARGE: Final = """
    INSERT INTO charges (id, billing_account_id, method_id, amount_usd_cents, quoted_amount_raw, address_id,
                         price_expires_at)
    VALUES (%(charge_id)s, %(account)s, %(method)s, %(cents)s, %(quoted)s, %(id)s, now() + %(holds)s::interval)
"""


@dataclass(frozen=True)
class Given:
    """An address that was given out."""

    id: UUID
    address: str
    account: Payer
    charge_id: UUID | None = None


def add_method(
    database: Database,
    chain: LocalChain,
    method_id: str,
    contract: str | None,
    *,
    decimals: int = 6,
    min_raw: int = 1,
    **columns: Any,
) -> None:
    """A payment method, registered by an operator."""
    values = {
        "id": method_id,
        "chain_id": chain.chain_id,
        "token": method_id.split(":", maxsplit=1)[0],
        "address": contract,
        "decimals": decimals,
        "kind": "erc20",
        "scheme": "create2",
        "min_amount_raw": min_raw,
        **columns,
    }
    names, places = ", ".join(values), ", ".join(f"%({name})s" for name in values)
    with connect(database.service_url) as service:
        service.execute(f"INSERT INTO payment_methods ({names}) VALUES ({places})".encode(), values)


def give_address(
    database: Database,
    chain: LocalChain,
    account: Payer,
    *,
    charge_cents: int | None = None,
    method: str = USDC,
    holds: str = "30 minutes",
) -> Given:
    """The account's own address, or that of a new charge."""
    charge_id = uuid4() if charge_cents is not None else None
    salt = salt_of_charge(charge_id) if charge_id else salt_of_account(account.billing_account_id)
    treasury = chain.treasury_address
    given = Given(uuid4(), derive_address(Scheme.CREATE2, treasury=treasury, salt=salt), account, charge_id)
    values = {
        "id": given.id,
        "chain_id": chain.chain_id,
        "address": given.address,
        "salt": salt,
        "treasury": treasury,
        "account": account.billing_account_id,
        "charge_id": charge_id,
        "method": method,
        "cents": charge_cents,
        "quoted": (charge_cents or 0) * 10_000,
        "holds": holds,
    }
    with connect(database.superuser_url) as superuser, superuser.transaction():
        superuser.execute(_ADDRESS.encode(), values)
        if charge_id is not None:
            superuser.execute(_CHARGE.encode(), values)
    return given
