"""An operator's credit of a deposit, by the worker's activity: the nodes are asked for transfer and token before it."""

from __future__ import annotations

import pytest
from temporalio.testing import ActivityEnvironment

from activities.operations.resolutions import RemedyActivities
from chain.preconditions import SettlementPreconditions
from devstack.chain import payer_wallets
from domain.errors import PreconditionNotMet
from domain.operations.findings import Remedy
from domain.operations.resolutions import RemedyRequest
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.deposits.given import Given
from tests.support.payments import SHARE

ONE_DAI = 10**18


async def minted(deposits: Deposits, *, decimals: int) -> Given:
    """An address that has received one DAI, which no payer sent; the method counts in that many digits."""
    chain, owner = deposits.chain, payer_wallets()[-1]
    dai = await chain.deploy_token("PlainToken", "DAI", 18)
    deposits.method("DAI:test", dai, decimals=decimals)
    given = await deposits.give()
    await chain.mint(given.address, ONE_DAI, token=dai, owner=owner)
    await chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    return given


async def credit(deposits: Deposits, given: Given) -> None:
    """What the workflow of a remedy does."""
    [(finding_id,)] = deposits.rows("SELECT id FROM findings")
    activities = RemedyActivities(
        deposits.roles.service,
        deposits.reader,
        SettlementPreconditions(deposits.reader.contracts, deposits.chain.treasury_address),
        revenue_share=SHARE,
        min_confirmations=MIN_CONFIRMATIONS,
    )
    request = RemedyRequest(
        finding_id=finding_id,
        remedy=Remedy.CREDIT,
        operator="ada",
        reason="it is theirs",
        billing_account_id=given.account.billing_account_id,
    )
    taken = await ActivityEnvironment().run(activities.take_remedy, request)
    await ActivityEnvironment().run(activities.mint_bonus_of_credit, taken)


async def test_a_token_of_other_decimals_than_usdc_is_credited(deposits: Deposits) -> None:
    given = await minted(deposits, decimals=18)
    await credit(deposits, given)
    assert await deposits.balance(given) == 10_000_000


async def test_a_token_that_is_not_what_its_method_says_is_not(deposits: Deposits) -> None:
    given = await minted(deposits, decimals=15)
    with pytest.raises(PreconditionNotMet):
        await credit(deposits, given)
    assert await deposits.balance(given) == 0
