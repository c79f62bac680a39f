"""Deposits in the chain's own coin: a method with a price, what reads it, and an exchange that pays in every way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from devstack.chain import DEPLOY_GAS, LocalChain, call_data, payer_wallets
from devstack.contracts import load_artifact
from domain.chain import DepositLane
from domain.money import CREDITS_PER_USD
from services.deposits.balances import DepositBalances
from services.deposits.lanes import DepositAddresses
from services.deposits.scanner import DepositScanner
from services.deposits.sweeps import Sweeps
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.deposits.feeds import Feed, add_source, deploy_feed
from tests.deposits.given import Given, add_method
from tests.support.postgres import Database

ETH: Final = "ETH:test"
ONE: Final = 10**18
USD: Final = 2_500
CREDITS: Final = USD * CREDITS_PER_USD
"""Of one coin."""

EXCHANGE_GAS: Final = 400_000
PAYER: Final = payer_wallets()[3]


async def add_coin_method(database: Database, chain: LocalChain, **columns: Any) -> Feed:
    """The coin as a payment method, at a price that a feed on the chain says, which is returned."""
    add_method(database, chain, ETH, None, decimals=18, kind="native", **columns)
    feed = await deploy_feed(chain, USD)
    add_source(database, chain, ETH, feed.address)
    return feed


async def deploy_exchange(chain: LocalChain, amount_wei: int = 10 * ONE) -> str:
    """A contract that pays, with so much of the coin in it."""
    sent = await chain.send(PAYER.private_key, None, load_artifact("CoinSender").bytecode, gas=DEPLOY_GAS)
    await chain.mine()
    contract = str((await chain.wait_for_receipt(sent))["contractAddress"])
    sent = await chain.send(PAYER.private_key, contract, "0x", value_wei=amount_wei)
    await chain.mine()
    await chain.wait_for_receipt(sent)
    return contract


@dataclass
class CoinDeposits:
    """What a worker does about the coin, one step at a time when a test says so."""

    deposits: Deposits
    exchange: str
    scan: DepositScanner
    feed: Feed

    @classmethod
    async def open(cls, deposits: Deposits) -> CoinDeposits:
        """With a method, and an exchange that has coin; reading begins with the next block."""
        feed = await add_coin_method(deposits.roles.database, deposits.chain)
        exchange = await deploy_exchange(deposits.chain)
        made = cls(deposits, exchange, lane(deposits, DepositLane.COIN), feed)
        await made.read()
        return made

    @property
    def chain(self) -> LocalChain:
        return self.deposits.chain

    async def send(self, to: str, data: str = "0x", *, value_wei: int = 0, blocks: int = MIN_CONFIRMATIONS) -> str:
        """A transaction of a wallet that never signed in, mined with that many blocks (0: not yet)."""
        sent = await self.chain.send(PAYER.private_key, to, data, gas=EXCHANGE_GAS, value_wei=value_wei)
        if blocks:
            await self.chain.mine(blocks)
            await self.chain.wait_for_receipt(sent)
        return sent

    async def pay(self, given: Given, value_wei: int = ONE, *, blocks: int = MIN_CONFIRMATIONS) -> str:
        """A plain payment to the address."""
        return await self.send(given.address, value_wei=value_wei, blocks=blocks)

    async def do(self, function: str, *arguments: Any, value_wei: int = 0, blocks: int = MIN_CONFIRMATIONS) -> str:
        """Let the exchange pay."""
        data = call_data("CoinSender", function, *arguments)
        return await self.send(self.exchange, data, value_wei=value_wei, blocks=blocks)

    async def read(self) -> int:
        """Read until there is nothing more; the head."""
        while not (step := await self.scan.advance()).is_at_head:
            pass
        return step.cursor.head_number

    async def act(self) -> None:
        """Read, and credit what is confirmed."""
        await self.deposits.crediting.act(await self.read())

    def sweeps(self) -> Sweeps:
        """What books what was moved."""
        treasury = self.chain.treasury_address
        return Sweeps(
            self.deposits.roles.service, self.deposits.reader, treasury=treasury, min_confirmations=MIN_CONFIRMATIONS
        )

    def balances(self) -> DepositBalances:
        """The nightly check."""
        return DepositBalances(
            self.deposits.reader,
            self.deposits.roles.service,
            lane(self.deposits, DepositLane.QUIET),
            chain_id=self.chain.chain_id,
            treasury=self.chain.treasury_address,
            min_confirmations=MIN_CONFIRMATIONS,
        )

    async def held_by(self, address: str) -> int:
        """Wei at an address now."""
        return int(await self.chain.rpc("eth_getBalance", address, "latest"), 16)


def lane(deposits: Deposits, which: DepositLane) -> DepositScanner:
    """What reads a lane, as a process that has just started."""
    chain, service = deposits.chain, deposits.roles.service
    addresses = DepositAddresses(service, chain.chain_id, chain.treasury_address)
    return DepositScanner(deposits.reader, service, addresses, which, chain_id=chain.chain_id, look_back_blocks=0)
