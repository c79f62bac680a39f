"""Reader of one chain: readers over one pool of endpoints, none of which is trusted alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self, TypedDict, Unpack

from chain.authorizations import AuthorizationReader
from chain.bitcoin.node import BitcoinFamily
from chain.block_reader import BlockReader
from chain.contract_calls import ContractCalls
from chain.endpoint_pool import EndpointHealth, EndpointPool
from chain.evm import EvmFamily
from chain.family import ChainFamily
from chain.head_reader import HeadReader
from chain.log_reader import LogReader
from chain.payment_reader import PaymentReader
from chain.price_feeds import PriceFeeds
from chain.rpc import RequestObserver
from chain.transactions import TransactionCalls
from domain.utxo import is_utxo_chain

UTXO_STALL_SECONDS: Final = 3 * 3600.0
"""Of blocks that come every ten minutes, and by chance: three hours without one happen once in a thousand years."""

UTXO_HEAD_TOLERANCE: Final = 1
"""Blocks that a node may be below another one. Three, as elsewhere, would be half an hour."""


class PoolOptions(TypedDict, total=False):
    """Optional settings of an `EndpointPool`; each has a default there."""

    timeout_seconds: float
    response_bytes_max: int
    connections_max: int
    log_range_max: int
    head_tolerance_blocks: int
    mark_expiry_seconds: float
    stall_seconds: float
    join_seconds: float
    on_request: RequestObserver | None
    clock: Callable[[], float]


class ChainReader:
    """Several endpoints of one chain, in order of preference; use it as an async context manager.

    The readers share the pool and therefore the health of each endpoint; `contracts`, `authorizations` and
    `transactions` are of EVM chains only. Raises `InvalidInput` naming `CHAIN_RPC_URLS` when the addresses are not
    usable, and `CHAIN_ID` for a chain of Bitcoin's family that cannot be read.
    """

    def __init__(self, urls: Sequence[str], chain_id: int, **options: Unpack[PoolOptions]) -> None:
        family: ChainFamily
        if is_utxo_chain(chain_id):
            family = BitcoinFamily.of(chain_id)
            options = {"stall_seconds": UTXO_STALL_SECONDS, "head_tolerance_blocks": UTXO_HEAD_TOLERANCE, **options}
        else:
            family = EvmFamily()
        self._pool = EndpointPool(urls, chain_id, **options)
        self.payments = PaymentReader(self._pool, family)
        self.heads = HeadReader(self._pool, family)
        self.blocks = BlockReader(self._pool, family)
        self.logs = LogReader(self._pool, family)
        self.contracts = ContractCalls(self._pool)
        self.prices = PriceFeeds(chain_id, self.contracts, self.blocks)
        self.authorizations = AuthorizationReader(self._pool)
        self.transactions = TransactionCalls(self._pool)

    def __repr__(self) -> str:
        return f"ChainReader(chain {self.chain_id}, {', '.join(self.labels)})"

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(exc_type, exc, traceback)

    @property
    def chain_id(self) -> int:
        """The chain whose answers are used; no other's ever are."""
        return self._pool.chain_id

    @property
    def labels(self) -> tuple[str, ...]:
        """The endpoints' printable names, in order of preference."""
        return self._pool.labels

    @property
    def request_count(self) -> int:
        """HTTP requests sent since the reader was opened."""
        return self._pool.request_count

    async def health(self) -> list[EndpointHealth]:
        """What each endpoint answers now, in order of preference; never raises for a faulty endpoint."""
        return await self.heads.health()
