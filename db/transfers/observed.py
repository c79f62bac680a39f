"""Queries of the chain watcher: the cursor, tracked blocks, observed transfers, and what a transfer may pay.

What is read from the chain is written in the transaction that moves the cursor: either both are there, or neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, Row, TextClause, bindparam, text

from db.deposits.deposits import keep_deposits
from db.engine import ReadAllConnection, ServiceConnection
from db.transfers.identity import find_known_transfers
from domain.chain import DepositScope, MinedBlock, Transfer, TransferScope
from domain.coin import NATIVE_COIN
from domain.transfers.income import ZERO_ADDRESS, NonPayer, non_payer
from domain.transfers.matching import CLOCK_SLACK, RECENT, Candidate, MatchContext, renewal_id

TRACKED_BLOCKS_MAX: Final = 1_024
"""Block hashes kept for each scope: at the head one for each block, half an hour of Base, whose finality takes 20
minutes."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last block whose transfers are all recorded; its hash is None where nothing has been read yet."""

    first_block: int
    """The first block that was ever read; the cursor never moves below it."""
    block_number: int
    block_hash: str | None
    head_number: int
    gap_end: int | None = None
    """Last block of the highest unread gap at or below the cursor; reading past it takes a scan of its own."""

    @property
    def lag_blocks(self) -> int:
        """How far the chain's head was ahead."""
        return max(self.head_number - self.block_number, 0)


_IN_SCOPE: Final = {
    TransferScope: "o.token = :token AND o.to_address = :to_address",
    DepositScope: """CASE WHEN :is_of_coin THEN o.token = :coin
                     ELSE o.token <> :coin AND EXISTS (
                          SELECT FROM deposit_addresses d
                           WHERE d.chain_id = o.chain_id AND lower(d.address) = lower(o.to_address)) END""",
}
"""Which observed transfers are of a scope. Those of tokens to deposit addresses are of every lane of them."""


def _by_scope(query: str) -> dict[type[TransferScope], TextClause]:
    """A query of each kind of scope; `{in_scope}` is the condition on `observed_transfers o`."""
    return {kind: text(query.format(in_scope=condition)) for kind, condition in _IN_SCOPE.items()}


def _kind(scope: TransferScope) -> type[TransferScope]:
    return DepositScope if isinstance(scope, DepositScope) else TransferScope


async def _keep_deposits(connection: ServiceConnection, scope: TransferScope, tx_hashes: Collection[str]) -> None:
    """Deposits follow what was observed, in the same transaction."""
    if isinstance(scope, DepositScope):
        await keep_deposits(connection, scope.chain_id, tx_hashes)


def _scope_values(scope: TransferScope) -> dict[str, Any]:
    return {
        "chain_id": scope.chain_id,
        "token": scope.token,
        "to_address": scope.treasury,
        "is_of_coin": scope.is_of_coin,
        "coin": NATIVE_COIN,
    }


_CURSOR: Final = text(
    """
    SELECT first_block, block_number, block_hash, head_number,
           (SELECT max(g.last_block) FROM chain_gaps g
             WHERE g.chain_id = c.chain_id AND g.token = c.token AND g.to_address = c.to_address
               AND g.read_at IS NULL AND g.first_block <= c.block_number)
      FROM chain_cursors c
     WHERE chain_id = :chain_id AND token = :token AND to_address = :to_address
    """
)

_INSERT_CURSOR: Final = text(
    """
    INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number)
    VALUES (:chain_id, :token, :to_address, :first_block, :first_block - 1, :head_number) ON CONFLICT DO NOTHING
    """
)

_MOVE_CURSOR: Final = text(
    """
    UPDATE chain_cursors
       SET block_number = :block_number, block_hash = :block_hash, head_number = :head_number, updated_at = now()
     WHERE chain_id = :chain_id AND token = :token AND to_address = :to_address
       AND block_number = :old_number AND block_hash IS NOT DISTINCT FROM :old_hash
    """
)

_SET_WAITS_FOR: Final = text(
    """
    UPDATE chain_cursors
       SET waits_for = :waits_for,
           waits_since = CASE WHEN CAST(:waits_for AS text) IS NOT NULL THEN coalesce(waits_since, now()) END
     WHERE chain_id = :chain_id AND token = :token AND to_address = :to_address
       AND waits_for IS DISTINCT FROM :waits_for
    """
)

_TRACK_BLOCK: Final = text(
    """
    INSERT INTO watched_blocks (chain_id, token, to_address, block_number, block_hash)
    VALUES (:chain_id, :token, :to_address, :block_number, :block_hash)
    ON CONFLICT (chain_id, token, to_address, block_number) DO UPDATE SET block_hash = EXCLUDED.block_hash
    """
)

_DELETE_TRACKED_ABOVE: Final = text(
    """
    DELETE FROM watched_blocks
     WHERE chain_id = :chain_id AND token = :token AND to_address = :to_address AND block_number > :block_number
    """
)

_DELETE_OLDEST_TRACKED: Final = text(
    """
    DELETE FROM watched_blocks
     WHERE chain_id = :chain_id AND token = :token AND to_address = :to_address
       AND block_number <= (
               SELECT block_number FROM watched_blocks
                WHERE chain_id = :chain_id AND token = :token AND to_address = :to_address
                ORDER BY block_number DESC OFFSET :kept LIMIT 1)
    """
)

_TRACKED: Final = text(
    """
    SELECT block_number, block_hash FROM watched_blocks
     WHERE chain_id = :chain_id AND token = :token AND to_address = :to_address
       AND block_number <= :up_to ORDER BY block_number DESC
    """
)

# A transfer that moved to another block is matched again: by its new block a payment may be late, or in time.
_RECORD: Final = text(
    """
    INSERT INTO observed_transfers AS o (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token,
                                         from_address, to_address, value_raw)
    SELECT :chain_id, t.tx_hash, t.log_index, t.block_number, t.block_hash, t.block_time, t.token, t.from_address,
           t.to_address, t.value_raw
      FROM unnest(CAST(:tx_hashes AS text[]), CAST(:log_indexes AS bigint[]), CAST(:block_numbers AS bigint[]),
                  CAST(:block_hashes AS text[]), CAST(:block_times AS timestamptz[]), CAST(:senders AS text[]),
                  CAST(:values_raw AS numeric[]), CAST(:tokens AS text[]), CAST(:recipients AS text[]))
           AS t (tx_hash, log_index, block_number, block_hash, block_time, from_address, value_raw, token, to_address)
    ON CONFLICT (chain_id, tx_hash, log_index) DO UPDATE
       SET block_number = EXCLUDED.block_number, block_hash = EXCLUDED.block_hash, block_time = EXCLUDED.block_time,
           token = EXCLUDED.token, to_address = EXCLUDED.to_address,
           from_address = EXCLUDED.from_address, value_raw = EXCLUDED.value_raw, handled_at = NULL, attempt_id = NULL
     WHERE o.block_hash <> EXCLUDED.block_hash
        OR (:corrects AND (o.value_raw, lower(o.from_address)) <> (EXCLUDED.value_raw, lower(EXCLUDED.from_address)))
    RETURNING (o.xmax = 0) AS is_new
    """
)

_BLOCKS_WITH_TRANSFERS: Final = _by_scope(
    """
    SELECT DISTINCT o.block_number, o.block_hash FROM observed_transfers o
     WHERE o.chain_id = :chain_id AND o.block_number > :above AND {in_scope} ORDER BY o.block_number
    """
)

_MOVE_TO_ORPHANED: Final = _by_scope(
    """
    WITH removed AS (
        DELETE FROM observed_transfers o
         WHERE o.chain_id = :chain_id AND o.block_hash = ANY (CAST(:block_hashes AS text[])) AND {in_scope}
        RETURNING chain_id, tx_hash, log_index, block_number, block_hash, from_address, value_raw, observed_at
    )
    INSERT INTO orphaned_transfers (chain_id, tx_hash, log_index, block_number, block_hash, from_address, value_raw,
                                    observed_at)
    SELECT * FROM removed RETURNING tx_hash
    """
)

_OBSERVED: Final = _by_scope(
    """
    SELECT o.tx_hash, o.log_index, o.block_number, o.block_hash, o.block_time, o.from_address, o.value_raw, o.token,
           o.to_address
      FROM observed_transfers o
     WHERE o.chain_id = :chain_id AND o.block_number BETWEEN :first AND :last AND {in_scope}
     ORDER BY o.block_number, o.log_index
    """
)

_INVALIDATE: Final = text(
    """
    WITH removed AS (
        DELETE FROM observed_transfers
         WHERE chain_id = :chain_id AND tx_hash = :tx_hash AND log_index = ANY (CAST(:log_indexes AS bigint[]))
        RETURNING chain_id, tx_hash, log_index, block_number, block_hash, from_address, value_raw, observed_at
    )
    INSERT INTO orphaned_transfers (chain_id, tx_hash, log_index, block_number, block_hash, from_address, value_raw,
                                    observed_at)
    SELECT * FROM removed
    """
)

# The usual case: the sender submitted the transfer, and it was credited at its present place.
_MARK_SETTLED_HANDLED: Final = text(
    """
    UPDATE observed_transfers o SET handled_at = now(), attempt_id = s.attempt_id
      FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
     WHERE o.handled_at IS NULL AND o.chain_id = :chain_id
       AND s.chain_id = o.chain_id AND s.tx_hash = o.tx_hash AND s.log_index = o.log_index
       AND is_alike(s.from_address, s.value_raw, o.from_address, o.value_raw) AND a.status = 'CREDITED'
    """
)

_UNHANDLED: Final = text(
    """
    SELECT o.tx_hash, o.log_index, o.block_number, o.block_hash, o.block_time, o.from_address, o.value_raw
      FROM observed_transfers o
     WHERE o.handled_at IS NULL AND o.chain_id = :chain_id AND o.token = :token AND o.to_address = :to_address
       AND o.block_number <= :up_to AND (o.block_number, o.log_index) > (:after_block, :after_index)
       AND NOT EXISTS (
               SELECT FROM payment_attempts a
                WHERE a.tx_hash = o.tx_hash AND a.chain_id = o.chain_id AND a.status = 'PENDING_UNVERIFIED'
                  AND a.kind <> 'deposit' AND lower(a.from_address) = lower(o.from_address))
     ORDER BY o.block_number, o.log_index LIMIT :limit
    """
)

_OBSERVED_AT: Final = text(
    """
    SELECT o.tx_hash, o.log_index, o.block_number, o.block_hash, o.block_time, o.from_address, o.value_raw, o.token,
           o.to_address
      FROM observed_transfers o
     WHERE o.chain_id = :chain_id AND o.tx_hash = :tx_hash AND o.log_index = :log_index
    """
)

CANDIDATES_MAX: Final = 50
"""Attempts of each kind that are read: a payer may have thousands, and the query runs for every dust transfer."""

OTHERS_NAMED: Final = 5
"""Attempts of other amounts that a finding may name."""

# One statement, so that an attempt is seen in one state. First the attempts that the transfer may pay, oldest first;
# then those that explain why it pays none: the latest of its amount that had expired, the latest of other amounts.
_CANDIDATES: Final = text(
    """
    WITH own AS NOT MATERIALIZED (
        SELECT * FROM payment_attempts
         WHERE lower(from_address) = lower(:from_address) AND chain_id = :chain_id AND kind = 'wallet'
           AND lower(token) = lower(:token) AND lower(to_address) = lower(:to_address)
    )
    SELECT a.id AS attempt_id, b.owner_user_id, a.billing_account_id, a.from_address, a.amount_raw, a.status,
           a.error_code, a.tx_hash, a.created_at, a.expires_at, a.authorization_nonce AS nonce,
           -- Intents older than the column lived for the default of 30 minutes.
           coalesce(a.payable_until, a.expires_at, a.created_at + interval '30 minutes') AS payable_until,
           EXISTS (SELECT FROM observed_transfers o WHERE o.chain_id = a.chain_id AND o.tx_hash = a.tx_hash)
             AS hash_is_observed,
           EXISTS (SELECT FROM observed_transfers o
                    WHERE o.chain_id = a.chain_id AND o.tx_hash = a.tx_hash AND o.value_raw >= a.amount_raw
                      AND lower(o.from_address) = lower(a.from_address)) AS hash_is_own_payment
      FROM ((SELECT * FROM own
              WHERE amount_raw = :value_raw AND expires_at > :mined_at
                AND (status = 'CREATED_INTENT' OR error_code = 'INTENT_EXPIRED')
              ORDER BY created_at LIMIT :most)
             UNION
            (SELECT * FROM own
              WHERE amount_raw = :value_raw AND status = 'PENDING_UNVERIFIED' ORDER BY created_at LIMIT :most)
             UNION
            (SELECT * FROM own
              WHERE amount_raw = :value_raw AND expires_at <= :mined_at
                AND (status = 'CREATED_INTENT' OR error_code = 'INTENT_EXPIRED')
              ORDER BY created_at DESC LIMIT 1)
             UNION
            (SELECT * FROM own
              WHERE amount_raw <> :value_raw AND expires_at > :recent AND created_at <= :made_before
                AND (status = 'CREATED_INTENT' OR error_code = 'INTENT_EXPIRED')
              ORDER BY created_at DESC LIMIT 1)
             UNION
            (SELECT * FROM own
              WHERE amount_raw = :value_raw AND created_at <= :made_before
                AND coalesce(payable_until, created_at + interval '30 minutes') > :recent
                AND status IN ('REJECTED', 'FAILED') AND error_code <> 'INTENT_EXPIRED'
              ORDER BY created_at LIMIT :most)
             UNION
            (SELECT * FROM own
              WHERE amount_raw <> :value_raw AND created_at <= :made_before
                AND coalesce(payable_until, created_at + interval '30 minutes') > :recent
                AND (status = 'PENDING_UNVERIFIED'
                     OR (status IN ('REJECTED', 'FAILED') AND error_code <> 'INTENT_EXPIRED'))
              ORDER BY created_at DESC LIMIT :others_named)
             UNION
            (SELECT * FROM payment_attempts
              WHERE authorization_nonce = :nonce AND chain_id = :chain_id AND lower(token) = lower(:token)
                AND lower(from_address) = lower(:from_address))
             UNION
            (SELECT * FROM payment_attempts
              WHERE tx_hash = :tx_hash AND chain_id = :chain_id AND kind <> 'deposit'
              ORDER BY (lower(from_address) = lower(:from_address)) DESC, created_at LIMIT :most)) a
      JOIN billing_accounts b ON b.id = a.billing_account_id
    """
)

_ACCOUNT_OF_SENDER: Final = text(
    """
    SELECT b.id FROM billing_accounts b JOIN users u ON u.id = b.owner_user_id
     WHERE lower(u.wallet_address) = lower(:from_address) AND b.kind = 'personal' ORDER BY b.created_at LIMIT 1
    """
)

_INCOME_RULE: Final = text(
    """
    SELECT non_payer_kind(:from_address) AS kind,
           first_block_answered_for(:chain_id, :token, :to_address) AS first_block
    """
)

_SUBMITTED_RENEWALS: Final = text(
    """
    SELECT id FROM payment_attempts
     WHERE id = ANY (CAST(:ids AS uuid[])) AND status <> 'CREATED_INTENT'
       AND error_code IS DISTINCT FROM 'INTENT_EXPIRED'
    """
)

_MARK_HANDLED: Final = text(
    """
    UPDATE observed_transfers SET handled_at = now(), attempt_id = :attempt_id
     WHERE chain_id = :chain_id AND tx_hash = :tx_hash AND log_index = :log_index AND block_hash = :block_hash
       AND handled_at IS NULL
    """
)


async def find_cursor(connection: ReadAllConnection, scope: TransferScope) -> Cursor | None:
    """The scope's cursor; None before the first read."""
    row = (await connection.connection.execute(_CURSOR, _scope_values(scope))).one_or_none()
    return Cursor(*row) if row else None


async def create_cursor(connection: ServiceConnection, scope: TransferScope, first_block: int, head: int) -> None:
    """Create the scope's cursor, so that reading begins at `first_block`. Safe to repeat."""
    values = {**_scope_values(scope), "first_block": first_block, "head_number": head}
    await connection.connection.execute(_INSERT_CURSOR, values)


_SET_FROM_BLOCK: Final = text(
    """
    UPDATE chain_cursors SET answers_from = :from_block
     WHERE chain_id = :chain_id AND lower(token) = lower(:token) AND lower(to_address) = lower(:to_address)
       AND answers_from IS DISTINCT FROM :from_block
    """
).bindparams(bindparam("from_block", type_=BigInteger))


_CURSOR_EXISTS: Final = text(
    """
    SELECT 1 FROM chain_cursors
     WHERE chain_id = :chain_id AND lower(token) = lower(:token) AND lower(to_address) = lower(:to_address) LIMIT 1
    """
)


async def set_from_block(connection: ServiceConnection, scope: TransferScope, from_block: int | None) -> bool:
    """Store the first block whose transfers are accepted; None: the first that was ever read. Safe to repeat.

    False where the scope has no cursor yet, and nothing was stored.
    """
    await connection.connection.execute(_SET_FROM_BLOCK, {**_scope_values(scope), "from_block": from_block})
    return (await connection.connection.execute(_CURSOR_EXISTS, _scope_values(scope))).first() is not None


async def move_cursor(connection: ServiceConnection, scope: TransferScope, old: Cursor, new: Cursor) -> bool:
    """Move the cursor from `old` to `new`; False where it is not at `old` any more, because another worker moved it."""
    values = {
        **_scope_values(scope),
        "block_number": new.block_number,
        "block_hash": new.block_hash,
        "head_number": new.head_number,
        "old_number": old.block_number,
        "old_hash": old.block_hash,
    }
    return (await connection.connection.execute(_MOVE_CURSOR, values)).rowcount == 1


async def track_block(connection: ServiceConnection, scope: TransferScope, block: MinedBlock) -> None:
    """Store a block's hash, and delete the oldest ones above `TRACKED_BLOCKS_MAX`."""
    values = {**_scope_values(scope), "block_number": block.number, "block_hash": block.block_hash}
    await connection.connection.execute(_TRACK_BLOCK, values)
    await connection.connection.execute(_DELETE_OLDEST_TRACKED, {**_scope_values(scope), "kept": TRACKED_BLOCKS_MAX})


async def list_tracked_blocks(
    connection: ReadAllConnection, scope: TransferScope, *, up_to: int
) -> list[tuple[int, str]]:
    """Numbers and hashes of the tracked blocks up to a height, newest first."""
    rows = await connection.connection.execute(_TRACKED, {**_scope_values(scope), "up_to": up_to})
    return [(row.block_number, row.block_hash) for row in rows]


async def delete_tracked_above(connection: ServiceConnection, scope: TransferScope, block_number: int) -> None:
    """Delete the hashes of tracked blocks above this height."""
    await connection.connection.execute(_DELETE_TRACKED_ABOVE, {**_scope_values(scope), "block_number": block_number})


async def record_waiting(connection: ServiceConnection, scope: TransferScope, waits_for: str | None) -> None:
    """Store what the watcher waits for, and since when; None once it continues."""
    await connection.connection.execute(_SET_WAITS_FOR, {**_scope_values(scope), "waits_for": waits_for})


async def record_transfers(
    connection: ServiceConnection, scope: TransferScope, transfers: Sequence[Transfer], *, corrects: bool = False
) -> int:
    """Insert transfers, and move known ones to their present block; the number of new ones.

    With `corrects`, all nodes agree on them, and they overwrite what a single node had reported differently.
    """
    if not transfers:
        return 0
    values = {
        **_scope_values(scope),
        "tx_hashes": [one.tx_hash for one in transfers],
        "log_indexes": [one.log_index for one in transfers],
        "block_numbers": [one.block_number for one in transfers],
        "block_hashes": [one.block_hash for one in transfers],
        "block_times": [one.block_time for one in transfers],
        "senders": [one.from_address for one in transfers],
        "values_raw": [Decimal(one.value_raw) for one in transfers],
        "tokens": [one.token or scope.token for one in transfers],
        "recipients": [one.to_address or scope.treasury for one in transfers],
        "corrects": corrects,
    }
    added: int = sum(row.is_new for row in await connection.connection.execute(_RECORD, values))
    await _keep_deposits(connection, scope, {one.tx_hash for one in transfers})
    return added


async def list_blocks_with_transfers(
    connection: ReadAllConnection, scope: TransferScope, *, above: int
) -> list[tuple[int, str]]:
    """Numbers and hashes of the blocks above a height in which transfers were observed."""
    rows = await connection.connection.execute(
        _BLOCKS_WITH_TRANSFERS[_kind(scope)], {**_scope_values(scope), "above": above}
    )
    return [(row.block_number, row.block_hash) for row in rows]


async def orphan_transfers(connection: ServiceConnection, scope: TransferScope, block_hashes: Collection[str]) -> int:
    """Move the transfers of blocks that left the canonical chain to `orphaned_transfers`; how many."""
    values = {**_scope_values(scope), "block_hashes": list(block_hashes)}
    rows = (await connection.connection.execute(_MOVE_TO_ORPHANED[_kind(scope)], values)).all()
    await _keep_deposits(connection, scope, {row.tx_hash for row in rows})
    return len(rows)


async def list_observed(
    connection: ReadAllConnection, scope: TransferScope, *, first: int, last: int
) -> list[Transfer]:
    """The transfers that were observed in these blocks; of a lane those to the addresses that are in the scope."""
    values = {**_scope_values(scope), "first": first, "last": last}
    rows = await connection.connection.execute(_OBSERVED[_kind(scope)], values)
    return [_transfer(row, scope) for row in rows if _is_selected(row, scope)]


async def find_observed(
    connection: ReadAllConnection, chain_id: int, tx_hash: str, log_index: int | None
) -> tuple[TransferScope, Transfer] | None:
    """The observed transfer at that place, with its scope; None where there is none."""
    values = {"chain_id": chain_id, "tx_hash": tx_hash, "log_index": log_index}
    row = (await connection.connection.execute(_OBSERVED_AT, values)).one_or_none()
    if row is None:
        return None
    scope = TransferScope(chain_id=chain_id, token=row.token, treasury=row.to_address)
    return scope, _transfer(row, scope)


async def invalidate_transfers(
    connection: ServiceConnection, scope: TransferScope, tx_hash: str, log_indexes: Collection[int]
) -> int:
    """Delete recorded logs that, as all nodes agree, the transaction does not have; how many there were."""
    values = {"chain_id": scope.chain_id, "tx_hash": tx_hash, "log_indexes": list(log_indexes)}
    deleted = (await connection.connection.execute(_INVALIDATE, values)).rowcount
    await _keep_deposits(connection, scope, {tx_hash})
    return deleted


async def mark_settled_handled(connection: ServiceConnection, scope: TransferScope) -> int:
    """Mark transfers as handled that have paid the attempts they were submitted for; how many."""
    return (await connection.connection.execute(_MARK_SETTLED_HANDLED, {"chain_id": scope.chain_id})).rowcount


async def page_unhandled(
    connection: ReadAllConnection,
    scope: TransferScope,
    *,
    up_to_block: int,
    after: tuple[int, int],
    limit: int,
) -> list[Transfer]:
    """Transfers up to a block without a decision, in the chain's order, after (block number, log index).

    Without those that an attempt of the sender waits for: its workflow decides them.
    """
    values = {
        **_scope_values(scope),
        "up_to": up_to_block,
        "after_block": after[0],
        "after_index": after[1],
        "limit": limit,
    }
    return [_transfer(row, scope) for row in await connection.connection.execute(_UNHANDLED, values)]


_MAY_BE_SIGNED: Final = text(
    """
    SELECT EXISTS (
        SELECT FROM payment_attempts
         WHERE chain_id = :chain_id AND lower(token) = lower(:token) AND lower(from_address) = lower(:from_address)
           AND authorization_nonce IS NOT NULL AND status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED'))
        OR EXISTS (
        SELECT FROM payment_attempts
         WHERE lower(from_address) = :zero AND amount_raw = :value_raw AND chain_id = :chain_id
           AND kind = 'authorization' AND status = 'CREATED_INTENT')
    """
)


async def may_be_signed_for(connection: ReadAllConnection, scope: TransferScope, transfer: Transfer) -> bool:
    """Whether an attempt is open that a signature of this sender pays, or one of any sender and this amount."""
    values = {
        **_scope_values(scope),
        "from_address": transfer.from_address,
        "value_raw": Decimal(transfer.value_raw),
        "zero": ZERO_ADDRESS,
    }
    return bool((await connection.connection.execute(_MAY_BE_SIGNED, values)).scalar_one())


_CLAIM_BY_TRANSFER: Final = text("SELECT claim_by_transfer(:chain_id, :token, :from_address, :nonce)")


async def claim_by_transfer(
    connection: ServiceConnection, scope: TransferScope, transfer: Transfer, nonce: str
) -> bool:
    """Claim an executed authorization for the open attempt whose own nonce it has; False where there is none."""
    values = {**_scope_values(scope), "from_address": transfer.from_address, "nonce": nonce}
    return bool((await connection.connection.execute(_CLAIM_BY_TRANSFER, values)).scalar_one())


async def find_match_context(
    connection: ReadAllConnection, scope: TransferScope, transfer: Transfer, *, nonce: str | None = None
) -> MatchContext:
    """Everything that `decide` needs about a transfer's sender and transaction.

    `nonce` is that of the authorization that has caused the transfer, where there is one and it matters.
    """
    values: Mapping[str, Any] = {
        **_scope_values(scope),
        "tx_hash": transfer.tx_hash,
        "from_address": transfer.from_address,
        "value_raw": Decimal(transfer.value_raw),
        "recent": transfer.block_time - RECENT,
        "mined_at": transfer.block_time,
        "made_before": transfer.block_time + CLOCK_SLACK,
        "most": CANDIDATES_MAX,
        "others_named": OTHERS_NAMED,
        "nonce": nonce,
    }
    execute = connection.connection.execute
    candidates = [Candidate.model_validate(row) for row in await execute(_CANDIDATES, values)]
    candidates = await _with_renewals(connection, candidates)
    # Read after the candidates: an attempt credited in between then counts as paid, not as one without a transfer.
    known = await find_known_transfers(connection, scope, transfer.tx_hash, alike=transfer)
    account: str | None = (await execute(_ACCOUNT_OF_SENDER, values)).scalar_one_or_none()
    rule = (await execute(_INCOME_RULE, values)).one()
    return MatchContext(
        candidates=tuple(candidates),
        paid=known.paid,
        siblings=known.observed,
        senders_account_id=account,
        sender_kind=non_payer(
            transfer.from_address,
            treasury=scope.treasury,
            token=scope.token,
            known=NonPayer(rule.kind) if rule.kind else None,
        ),
        first_block=rule.first_block,
        nonce=nonce,
    )


async def _with_renewals(connection: ReadAllConnection, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each with whether the attempt that replaces it has been submitted already."""
    replaced = {renewal_id(one.attempt_id): one.attempt_id for one in candidates if one.ended_without_payment}
    if not replaced:
        return list(candidates)
    rows = await connection.connection.execute(_SUBMITTED_RENEWALS, {"ids": list(replaced)})
    renewed = {replaced[row.id] for row in rows}
    return [one.model_copy(update={"is_renewed": one.attempt_id in renewed}) for one in candidates]


async def mark_handled(
    connection: ServiceConnection, scope: TransferScope, transfer: Transfer, attempt_id: UUID | None
) -> bool:
    """Record the decision about a transfer; False where there is one already, or it is in another block by now."""
    values = {
        "chain_id": scope.chain_id,
        "tx_hash": transfer.tx_hash,
        "log_index": transfer.log_index,
        "block_hash": transfer.block_hash,
        "attempt_id": attempt_id,
    }
    return (await connection.connection.execute(_MARK_HANDLED, values)).rowcount == 1


_REOPEN: Final = text(
    """
    UPDATE observed_transfers SET handled_at = NULL, attempt_id = NULL
     WHERE chain_id = :chain_id AND tx_hash = :tx_hash AND log_index = :log_index AND block_hash = :block_hash
    """
)


async def recheck_transfer(connection: ServiceConnection, scope: TransferScope, transfer: Transfer) -> None:
    """Remove the decision about a transfer, so that the watcher matches it again."""
    values = {
        "chain_id": scope.chain_id,
        "tx_hash": transfer.tx_hash,
        "log_index": transfer.log_index,
        "block_hash": transfer.block_hash,
    }
    await connection.connection.execute(_REOPEN, values)


def _is_selected(row: Row[Any], scope: TransferScope) -> bool:
    """Whether nodes that are asked for the scope return it, too: a lane has a part of the addresses."""
    return scope.selects(row.token.lower(), row.from_address.lower(), row.to_address.lower())


def _transfer(row: Row[Any], scope: TransferScope) -> Transfer:
    values = dict(row._mapping)
    if not isinstance(scope, DepositScope):
        # Of a treasury the scope says it, and a node's answer, which is compared with it, does not.
        values = {name: value for name, value in values.items() if name not in {"token", "to_address"}}
    return Transfer.model_validate(values)
