"""A transaction's transfers to the treasury by its receipt, confirmed by all nodes: logs come from a single one."""

from __future__ import annotations

from chain.reader import ChainReader
from domain.chain import Receipt, TransferLog, TransferScope
from domain.errors import ChainUnavailable


async def find_receipt(
    chain: ChainReader, tx_hash: str, block_number: int, *, coin: bool = False
) -> tuple[Receipt | None, int]:
    """The receipt that the nodes agree on, and its confirmations; None where most report that there is none.

    `block_number` is where the transaction is expected. With `coin`, its movements of the chain's own coin are among
    its transfers. Raises `ChainUnavailable` where they disagree, or too few
    answer to conclude that it is absent.
    """
    view = await chain.payments.look(tx_hash, block_hint=block_number, ask_all=True, coin=coin)
    if view.receipt is not None and view.canonical is not None:
        agreed = await chain.payments.cross_check(tx_hash, view, coin=coin)
        if agreed.receipt is not None and agreed.canonical is not None:
            if agreed.canonical.block_hash == agreed.receipt.block_hash:
                return agreed.receipt, agreed.head_number - agreed.receipt.block_number + 1
            raise ChainUnavailable(f"the nodes disagree on the block of transaction {tx_hash}")
    inclusion_reports = await chain.payments.inclusion_reports(tx_hash, block_number, coin=coin)
    absent = [
        inclusion_report
        for inclusion_report in inclusion_reports
        if inclusion_report.receipt is None and inclusion_report.head_number >= block_number
    ]
    if len(absent) * 2 <= len(chain.labels):
        raise ChainUnavailable(f"too few nodes answered to conclude that transaction {tx_hash} is absent")
    return None, 0


def transfers_in(receipt: Receipt | None, scope: TransferScope) -> list[TransferLog]:
    """Its transfers in the scope, of more than zero; none of a failed transaction."""
    if receipt is None or not receipt.succeeded:
        return []
    return [
        log
        for log in receipt.transfers
        if scope.selects(log.emitter.lower(), log.from_address.lower(), log.to_address.lower()) and log.value_raw > 0
    ]
