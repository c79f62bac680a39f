"""Payments in a chain's own coin, of every kind, on a real node."""

from __future__ import annotations

from devstack.chain import call_data
from devstack.contracts import load_artifact
from domain.chain import DepositLane, DepositScope
from domain.coin import NATIVE_COIN
from tests.chain.anvil import BOB, CHAIN_ID, Node, until

COINS = DepositScope.of(CHAIN_ID, DepositLane.COIN, [NATIVE_COIN], [BOB])
"""What BOB is paid."""


class Coins:
    """A wallet that pays, and a contract that pays as an exchange's does."""

    def __init__(self, node: Node, payer: str, contract: str) -> None:
        self.node = node
        self.payer = payer
        self.contract = contract

    @classmethod
    async def on(cls, node: Node) -> Coins:
        """With 100 wei in the contract."""
        payer = str((await node.call("eth_accounts"))[0])
        coins = cls(node, payer, "")
        sent = await coins.send(None, load_artifact("CoinSender").bytecode)
        coins.contract = str((await node.call("eth_getTransactionReceipt", sent))["contractAddress"])
        await coins.send(coins.contract, value=100)
        return coins

    async def send(self, to: str | None, data: str = "0x", *, value: int = 0) -> str:
        """A transaction of the wallet, mined in a block of its own."""
        fields = {"from": self.payer, "data": data, "value": hex(value), "gas": hex(3_000_000)}
        sent = str(await self.node.call("eth_sendTransaction", fields | ({} if to is None else {"to": to})))
        await self.node.mine()
        await until(lambda: self.node.call("eth_getTransactionReceipt", sent))
        return sent

    async def pay(self, *values: int, to: str = BOB) -> str:
        """Payments of the contract, in one transaction."""
        return await self.send(self.contract, call_data("CoinSender", "pay", [(to, value) for value in values]))

    async def do(self, function: str, *arguments: object, value: int = 0) -> str:
        """Any other function of the contract."""
        return await self.send(self.contract, call_data("CoinSender", function, *arguments), value=value)

    async def held_by(self, address: str = BOB) -> int:
        return int(await self.node.call("eth_getBalance", address, "latest"), 16)
