"""A transaction's transfers to the treasury by its receipt, which all nodes are asked for: logs are one node's word."""

from __future__ import annotations

from chain.reader import ChainReader
from domain.chain import Receipt, TransferLog, TransferScope
from domain.errors import ChainUnavailable
from domain.identifiers import same_address


async def find_receipt(chain: ChainReader, tx_hash: str, block_number: int) -> tuple[Receipt | None, int]:
    """The receipt that the nodes agree on, and its confirmations; None where most say that there is none.

    `block_number` is where the transaction is believed to be. Raises `ChainUnavailable` where they do not agree, or too
    few answer to say that it is not there.
    """
    view = await chain.payments.look(tx_hash, block_hint=block_number, ask_all=True)
    if view.receipt is not None and view.canonical is not None:
        agreed = await chain.payments.cross_check(tx_hash, view)
        if agreed.receipt is not None and agreed.canonical is not None:
            if agreed.canonical.block_hash == agreed.receipt.block_hash:
                return agreed.receipt, agreed.head_number - agreed.receipt.block_number + 1
            raise ChainUnavailable(f"the nodes do not agree on where transaction {tx_hash} is")
    inclusion_reports = await chain.payments.inclusion_reports(tx_hash, block_number)
    absent = [
        inclusion_report
        for inclusion_report in inclusion_reports
        if inclusion_report.receipt is None and inclusion_report.head_number >= block_number
    ]
    if len(absent) * 2 <= len(chain.labels):
        raise ChainUnavailable(f"too few nodes say that transaction {tx_hash} is not there")
    return None, 0


def transfers_in(receipt: Receipt | None, scope: TransferScope) -> list[TransferLog]:
    """Those of the scope's token to its treasury, of more than nothing; none of a transaction that failed."""
    if receipt is None or not receipt.succeeded:
        return []
    return [
        log
        for log in receipt.transfers
        if same_address(log.emitter, scope.token) and same_address(log.to_address, scope.treasury) and log.value_raw > 0
    ]
