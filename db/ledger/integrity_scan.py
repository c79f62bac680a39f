"""The integrity scan: checks new rows in steps, each one short transaction with a single snapshot.

Entries, journal lines and events are numbered and never change, so a checkpoint for each records up to which number all
is checked. A number is assigned before its transaction commits: a row may appear *below* rows that were checked
already. A checkpoint must not pass such a number, which is ensured as follows:

- A transaction that writes such a row has a transaction id before the row has its number: the functions change the
  account's row first, an attempt is written or locked before its event, a header before its lines.
- A step records the highest numbers that it sees (the watermarks), and *then* takes an id of its own. A transaction
  with a number at or below a watermark had it when the step's snapshot was taken, and has a lower id than the step.
- When a later snapshot's xmin, below which all transactions have finished, has reached that id, every row that will
  ever be at or below the watermarks is visible. The watermarks are then safe.
- A checkpoint moves over rows that the same step has checked in a snapshot in which they were safe already, and over
  no other. The rows between it and the newest one are checked each time.

A manual insert may take a number just before its transaction id. The full scan over old rows, part of it in each run,
finds that, and changes made behind the checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, INTERVAL, JSONB
from sqlalchemy.types import BigInteger, Text

from db.engine import ReadAllConnection, ServiceConnection
from db.ledger.invariants import CHECKS, GRACE, RECOUNT, TRIAL, WHOLE_LEDGER, About, Violation, find_violations_of

ROWS_MAX: Final = 5_000
"""Rows of each kind in one step: about a third of a second, and far below the statement time-out."""

KNOWN_MAX: Final = 1_000
"""Recorded violations, and overdue attempts, that one run checks again; the longest unchecked first."""

ANNOUNCED_MAX: Final = 20
"""Changes that one run publishes; the rest follows in the next."""

_OF_LINES: Final = frozenset({"entry_balanced", "general_entry_balanced", "line_without_entry"})
"""Triggers that protect the lines; where one was missing, lines may have been changed."""

_ENTRIES: Final = "entries"
_LINES: Final = "lines"
_EVENTS: Final = "events"

_ONE_MOMENT: Final = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
# Takes no snapshot, so that after waiting for it a step sees everything committed until then.
_ALONE: Final = text("LOCK TABLE books_checks IN SHARE UPDATE EXCLUSIVE MODE")

# Each row is looked up by an index whatever the planner's statistics say: no step scans a table.
_BY_INDEX: Final = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),"
    " set_config('enable_mergejoin', 'off', true)"
)

_MOMENT: Final = text(
    """
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
           (SELECT coalesce(max(entry_seq + 0), 0) FROM credit_ledger) AS entries,
           (SELECT coalesce(max(id), 0) FROM journal_lines) AS lines,
           (SELECT coalesce(max(id), 0) FROM payment_events) AS events
    """
)

_OWN_XID: Final = text("SELECT pg_current_xact_id()::text::bigint")

_STATE: Final = text("SELECT mark_xid, debits, credits, lines_mended, sums_of, round FROM books_checks")
_CHECKPOINTS: Final = text("SELECT stream, checked_to, safe_to, mark FROM books_checkpoints")

_SAVE_CHECKPOINT: Final = text(
    "UPDATE books_checkpoints SET checked_to = :checked_to, safe_to = :safe_to, mark = :mark WHERE stream = :stream"
)
_SAVE_MARK_XID: Final = text("UPDATE books_checks SET mark_xid = :mark_xid")
_ADD_TOTALS: Final = text(
    """
    UPDATE books_checks
       SET debits = debits + coalesce((SELECT sum(amount) FROM journal_lines
                                        WHERE id > :after AND id <= :up_to AND side = 'debit'), 0),
           credits = credits + coalesce((SELECT sum(amount) FROM journal_lines
                                          WHERE id > :after AND id <= :up_to AND side = 'credit'), 0)
    """
)
_SAVE_TOTALS: Final = text("UPDATE books_checks SET debits = :debits, credits = :credits, sums_of = lines_mended")
_NOTE_MENDED: Final = text("UPDATE books_checks SET lines_mended = lines_mended + 1")
_SAVE_ROUND: Final = text("UPDATE books_checks SET round = :round").bindparams(bindparam("round", type_=JSONB))
_SAVE_END: Final = text(
    "UPDATE books_checks SET checked_at = now(),"
    " checked_in_full_at = CASE WHEN :in_full THEN now() ELSE checked_in_full_at END RETURNING checked_at"
)

# Ids stay in the database's array format: thousands of them in each step are only passed back to it.
_NEW_ENTRIES: Final = text(
    """
    SELECT count(*) AS found, max(number) AS last, min(number) FILTER (WHERE is_young) AS first_young,
           array_agg(id)::text AS entries, array_agg(DISTINCT billing_account_id)::text AS accounts
      FROM (SELECT entry_seq AS number, id, billing_account_id,
                   reason = 'operator_credit' AND created_at >= now() - :grace AS is_young
              FROM credit_ledger WHERE entry_seq + 0 > :after ORDER BY entry_seq + 0 LIMIT :rows_max) rows
    """
).bindparams(bindparam("grace", type_=INTERVAL))
_NEW_LINES: Final = text(
    """
    SELECT count(*) AS found, max(number) AS last, NULL::bigint AS first_young,
           array_agg(number)::text AS lines, array_agg(DISTINCT entry_id)::text AS entries
      FROM (SELECT id AS number, entry_id
              FROM journal_lines WHERE id > :after ORDER BY id LIMIT :rows_max) rows
    """
)
_NEW_EVENTS: Final = text(
    """
    SELECT count(*) AS found, max(number) AS last, min(number) FILTER (WHERE is_young) AS first_young,
           array_agg(DISTINCT attempt_id)::text AS attempts
      FROM (SELECT id AS number, attempt_id, created_at >= now() - :grace AS is_young
              FROM payment_events WHERE id > :after ORDER BY id LIMIT :rows_max) rows
    """
).bindparams(bindparam("grace", type_=INTERVAL))

_LINES_BEHIND: Final = text(
    """
    SELECT coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0) AS debits,
           coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0) AS credits
      FROM journal_lines WHERE id > :after
    """
)

_OPEN: Final = text(
    """
    SELECT check_name, array_agg(subject)::text AS subjects
      FROM (SELECT check_name, subject FROM books_violations WHERE resolved_at IS NULL
             ORDER BY last_seen_at LIMIT :known_max) known
     GROUP BY check_name
    """
)

_OVERDUE: Final = text(
    """
    SELECT array_agg(id)::text FROM (
        (SELECT id FROM payment_attempts
          WHERE status = 'CREATED_INTENT' AND expires_at < now() - :grace ORDER BY expires_at LIMIT :known_max)
         UNION ALL
        (SELECT id FROM payment_attempts
          WHERE status = 'PENDING_UNVERIFIED' AND created_at < now() - :pending_max
            AND submitted_at < now() - :pending_max ORDER BY created_at LIMIT :known_max)) overdue
    """
).bindparams(bindparam("grace", type_=INTERVAL), bindparam("pending_max", type_=INTERVAL))

# Held credits change without an entry. Of more accounts than that, each run checks another selection; one without open
# holds is checked with its next entry, and by the full scan.
_HOLDING: Final = text(
    """
    SELECT array_agg(billing_account_id)::text
      FROM (SELECT billing_account_id FROM credit_holds WHERE state = 'held'
             GROUP BY billing_account_id ORDER BY random() LIMIT :known_max) holding
    """
)

_IS_ANY_OPEN: Final = text("SELECT EXISTS (SELECT 1 FROM books_violations WHERE resolved_at IS NULL)")

_RECORD: Final = text(
    """
    INSERT INTO books_violations (check_name, subject, detail)
    SELECT * FROM unnest(:checks, :subjects, :details)
    ON CONFLICT (check_name, subject) WHERE resolved_at IS NULL
    DO UPDATE SET last_seen_at = now(), detail = EXCLUDED.detail
    """
).bindparams(*(bindparam(name, type_=ARRAY(Text)) for name in ("checks", "subjects", "details")))

_RESOLVE: Final = text(
    """
    UPDATE books_violations v SET resolved_at = now()
     WHERE v.resolved_at IS NULL AND v.check_name = ANY (:names) AND v.subject = ANY (CAST(:subjects AS text[]))
       AND NOT EXISTS (SELECT 1 FROM unnest(:found_checks, :found_subjects) f (check_name, subject)
                        WHERE f.check_name = v.check_name AND f.subject = v.subject)
    RETURNING v.check_name
    """
).bindparams(*(bindparam(name, type_=ARRAY(Text)) for name in ("names", "found_checks", "found_subjects")))

_OLD_ENTRIES: Final = text(
    """
    SELECT count(*) AS found, max(at)::text AS last, array_agg(id)::text AS ids
      FROM (SELECT entry_seq AS at, id FROM credit_ledger
             WHERE entry_seq + 0 > :at AND entry_seq + 0 <= :checked_to
             ORDER BY entry_seq + 0 LIMIT :rows_max) rows
    """
)
_OLD_GENERAL_ENTRIES: Final = text(
    """
    SELECT count(*) AS found, max(id::text) AS last, array_agg(id)::text AS ids
      FROM (SELECT id FROM general_entries WHERE id > CAST(:at AS uuid) ORDER BY id LIMIT :rows_max) rows
    """
)
_OLD_LINES: Final = text(
    """
    SELECT count(*) AS found, max(id)::text AS last, array_agg(id)::text AS ids,
           coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0) AS debits,
           coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0) AS credits
      FROM (SELECT id, side, amount FROM journal_lines
             WHERE id > :at AND id <= :checked_to ORDER BY id LIMIT :rows_max) rows
    """
)
_OLD_ACCOUNTS: Final = text(
    """
    SELECT count(*) AS found, max(id) AS last, array_agg(id)::text AS ids
      FROM (SELECT id FROM billing_accounts WHERE id > :at ORDER BY id LIMIT :rows_max) rows
    """
)
_OLD_ATTEMPTS: Final = text(
    """
    SELECT count(*) AS found, max(id::text) AS last, array_agg(id)::text AS ids
      FROM (SELECT id FROM payment_attempts WHERE id > CAST(:at AS uuid) ORDER BY id LIMIT :rows_max) rows
    """
)

_LIST_OPEN: Final = text(
    """
    SELECT check_name, subject, detail FROM (
        SELECT check_name, subject, detail, id, row_number() OVER (PARTITION BY check_name ORDER BY id) AS place
          FROM books_violations WHERE resolved_at IS NULL) ranked
     WHERE place <= :shown_max ORDER BY id
    """
)

_COUNT_OPEN: Final = text(
    "SELECT check_name, count(*) AS violations FROM books_violations WHERE resolved_at IS NULL GROUP BY check_name"
)

_UNANNOUNCED: Final = text(
    """
    SELECT id, check_name, subject, detail, first_seen_at, resolved_at, announced_at IS NULL AS is_new
      FROM books_violations
     WHERE announced_at IS NULL OR (resolved_at IS NOT NULL AND resolution_announced_at IS NULL)
     ORDER BY id LIMIT :announced_max
    """
)

_ANNOUNCED: Final = text(
    """
    UPDATE books_violations
       SET announced_at = coalesce(announced_at, now()),
           resolution_announced_at = CASE WHEN id = ANY (:resolved_ids) THEN now() ELSE resolution_announced_at END
     WHERE id = ANY (:opened) OR id = ANY (:resolved_ids)
    """
).bindparams(bindparam("opened", type_=ARRAY(BigInteger)), bindparam("resolved_ids", type_=ARRAY(BigInteger)))

_STANDING: Final = text(
    """
    SELECT c.debits + l.debits AS debits, c.credits + l.credits AS credits, c.checked_at, now() AS now
      FROM books_checks c,
           LATERAL (SELECT coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0) AS debits,
                           coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0) AS credits
                      FROM journal_lines
                     WHERE id > (SELECT checked_to FROM books_checkpoints WHERE stream = 'lines')) l
    """
)


class Round(BaseModel):
    """A full scan over all old rows, in parts: its position in each table, and how many passes it has made."""

    model_config = ConfigDict(frozen=True)

    entries: int = 0
    general_entries: str = "00000000-0000-0000-0000-000000000000"
    lines: int = 0
    accounts: str = ""
    attempts: str = "00000000-0000-0000-0000-000000000000"
    # Sums of the lines passed so far: at the end they must equal the sums from when each line was new.
    debits: int = 0
    credits: int = 0
    # How often lines had been repaired when it started: a repair behind its position makes the sums useless.
    lines_mended: int = 0
    laps: dict[str, int] = Field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every table was scanned to its end."""
        return all(self.laps.get(name) for name in ("entries", "general_entries", "lines", "accounts", "attempts"))


@dataclass(frozen=True, slots=True)
class NewRows:
    """Result of a step over new rows. `positions` is for the next one; `is_last` where nothing was left.

    `is_held` where more is left but the checkpoints cannot advance, because an older transaction is still open.
    """

    entries_checked: int
    positions: Mapping[str, int]
    is_last: bool
    is_held: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A violation that is new, or resolved; not published yet."""

    id: int
    check: str
    subject: str
    detail: str
    at: datetime
    is_resolved: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """The sums of all journal lines, in credits, and the age of the last scheduled check."""

    debits: int
    credits: int
    checked_ago: timedelta | None


@dataclass(slots=True)
class _Checkpoint:
    stream: str
    checked_to: int
    safe_to: int
    mark: int


@dataclass(slots=True)
class _Books:
    """The integrity scan's own state at the start of a step."""

    checkpoints: dict[str, _Checkpoint]
    debits: int
    credits: int
    lines_mended: int
    sums_of: int
    round: Round


@dataclass(slots=True)
class _Verified:
    """Rows that a step has checked, and the violations found."""

    ids: dict[About, str] = field(default_factory=dict)
    of_ledger: list[str] = field(default_factory=list)
    found: list[Violation] = field(default_factory=list)

    def note(self, check_name: str, value: object | None, words: str) -> None:
        """The result of a check of the whole ledger; None where it holds."""
        self.of_ledger.append(check_name)
        if value is not None:
            self.found.append(Violation(check_name, WHOLE_LEDGER, words.format(value=value)))


async def record_watermarks(connection: ServiceConnection) -> None:
    """Begin a run: record the current watermarks, so that its steps may find them safe."""
    await _open(connection)


async def check_new(
    connection: ServiceConnection,
    positions: Mapping[str, int],
    *,
    pending_max: timedelta,
    rows_max: int = ROWS_MAX,
) -> NewRows:
    """One step over rows written since the checkpoints: entries, lines, and the attempts that events are about.

    `positions` is what the previous step returned, {} for the first of a run. Raises `DatabaseBusy` where another run's
    step takes longer than the lock timeout.
    """
    books = await _open(connection)
    after = {
        stream: max(checkpoint.checked_to, positions.get(stream, 0)) for stream, checkpoint in books.checkpoints.items()
    }
    limits = {_ENTRIES: rows_max, _LINES: rows_max * 2, _EVENTS: rows_max}
    rows = await _read_new(connection, after, limits)
    verified = await _verify(
        connection,
        {
            About.ENTRY: _joined(rows[_ENTRIES].entries, rows[_LINES].entries),
            About.GENERAL_ENTRY: _joined(rows[_LINES].entries),
            About.LINE: _joined(rows[_LINES].lines),
            About.ACCOUNT: _joined(rows[_ENTRIES].accounts),
            About.ATTEMPT: _joined(rows[_EVENTS].attempts),
        },
        pending_max,
    )
    await _record(connection, verified)
    ends: dict[str, int] = {}
    is_last = True
    is_held = False
    for stream, checkpoint in books.checkpoints.items():
        seen = rows[stream]
        is_cut = seen.found == limits[stream]
        ends[stream] = after[stream] if seen.last is None else seen.last
        is_last = is_last and not is_cut
        is_held = is_held or (is_cut and checkpoint.safe_to < ends[stream])
        if after[stream] == checkpoint.checked_to:
            safe_to = min(ends[stream], checkpoint.safe_to) if is_cut else checkpoint.safe_to
            await _advance(connection, checkpoint, safe_to=safe_to, first_young=seen.first_young)
    return NewRows(rows[_ENTRIES].found, ends, is_last, is_held)


async def _read_new(
    connection: ServiceConnection, after: Mapping[str, int], limits: Mapping[str, int]
) -> dict[str, Row[Any]]:
    """The next rows of each stream: how many, the last one's number, and the ids of what is checked with them."""
    rows: dict[str, Row[Any]] = {}
    for stream, query in ((_ENTRIES, _NEW_ENTRIES), (_LINES, _NEW_LINES), (_EVENTS, _NEW_EVENTS)):
        values: dict[str, Any] = {"after": after[stream], "rows_max": limits[stream]}
        if stream != _LINES:
            values["grace"] = GRACE
        rows[stream] = (await connection.connection.execute(query, values)).one()
    return rows


async def _advance(
    connection: ServiceConnection, checkpoint: _Checkpoint, *, safe_to: int, first_young: int | None
) -> None:
    """Move the checkpoint over the rows that are checked for good."""
    reached = safe_to
    if first_young is not None:
        # What follows automatically, such as a bonus, is checked once it is late: a young row is checked again.
        reached = min(reached, first_young - 1)
    if checkpoint.stream == _LINES:
        await connection.connection.execute(_ADD_TOTALS, {"after": checkpoint.checked_to, "up_to": reached})
    await _save(connection, checkpoint, checked_to=reached)


async def check_known(connection: ServiceConnection, *, pending_max: timedelta) -> None:
    """Checked in every run: the sums, overdue attempts, accounts with open holds, and the recorded violations."""
    books = await _open(connection)
    sql = connection.connection
    times = {"grace": GRACE, "pending_max": pending_max, "known_max": KNOWN_MAX}
    known: dict[About, list[str | None]] = {about: [] for about in About}
    known[About.ATTEMPT].append((await sql.execute(_OVERDUE, times)).scalar_one())
    known[About.ACCOUNT].append((await sql.execute(_HOLDING, {"known_max": KNOWN_MAX})).scalar_one())
    about_of = {check.name: check.about for check in CHECKS}
    for row in await sql.execute(_OPEN, {"known_max": KNOWN_MAX}):
        if row.check_name in about_of:
            known[about_of[row.check_name]].append(row.subjects)
    ids: dict[About, str] = {about: _joined(*arrays) for about, arrays in known.items() if about is not About.LEDGER}
    verified = await _verify(connection, ids, pending_max)
    behind = (await sql.execute(_LINES_BEHIND, {"after": books.checkpoints[_LINES].checked_to})).one()
    difference = books.debits + int(behind.debits) - books.credits - int(behind.credits)
    verified.note(TRIAL.name, difference or None, TRIAL.words)
    await _record(connection, verified)


async def check_old(
    connection: ServiceConnection,
    round_: Round | None = None,
    *,
    pending_max: timedelta,
    rows_max: int = ROWS_MAX,
) -> Round:
    """One step of a full scan over old rows; returns its position. Without `round_` it is the continuous scan, whose
    position the database stores.
    """
    books = await _open(connection)
    sql = connection.connection
    before = books.round if round_ is None else round_
    if before.lines == 0 or before.lines_mended != books.lines_mended:
        before = before.model_copy(update={"lines": 0, "debits": 0, "credits": 0, "lines_mended": books.lines_mended})
    ids: dict[About, str] = {}
    changes: dict[str, Any] = {}
    laps = dict(before.laps)
    for name, about, query in (
        (_ENTRIES, About.ENTRY, _OLD_ENTRIES),
        ("general_entries", About.GENERAL_ENTRY, _OLD_GENERAL_ENTRIES),
        (_LINES, About.LINE, _OLD_LINES),
        ("accounts", About.ACCOUNT, _OLD_ACCOUNTS),
        ("attempts", About.ATTEMPT, _OLD_ATTEMPTS),
    ):
        if round_ is not None and laps.get(name):
            continue
        values: dict[str, Any] = {"at": getattr(before, name), "rows_max": rows_max * (2 if name == _LINES else 1)}
        if name in books.checkpoints:
            values["checked_to"] = books.checkpoints[name].checked_to
        row = (await sql.execute(query, values)).one()
        ids[about] = _joined(row.ids)
        is_around = row.found < values["rows_max"]
        changes[name] = Round.model_fields[name].default if is_around else type(values["at"])(row.last)
        laps[name] = laps.get(name, 0) + is_around
        if name == _LINES:
            changes["debits"], changes["credits"] = before.debits + int(row.debits), before.credits + int(row.credits)
    verified = await _verify(connection, ids, pending_max)
    after = before.model_copy(update=changes | {"laps": laps})
    if laps.get(_LINES, 0) > before.laps.get(_LINES, 0):
        await _compare_sums(connection, books, after, verified)
    await _record(connection, verified)
    if round_ is None:
        await sql.execute(_SAVE_ROUND, {"round": after.model_dump()})
    return after


async def _compare_sums(connection: ServiceConnection, books: _Books, round_: Round, verified: _Verified) -> None:
    """Compare the recounted sums of all lines with the sums from when they were first checked."""
    now, then = (round_.debits, round_.credits), (books.debits, books.credits)
    is_changed = now != then and books.sums_of == books.lines_mended
    if books.sums_of != books.lines_mended:
        await connection.connection.execute(_SAVE_TOTALS, {"debits": Decimal(now[0]), "credits": Decimal(now[1])})
    words = f"{now[0]}, {now[1]}; they were {then[0]}, {then[1]}"
    verified.note(RECOUNT.name, words if is_changed else None, RECOUNT.words)


async def note_end(connection: ServiceConnection, *, in_full: bool) -> datetime:
    """Record that a scheduled or full scan has finished; returns when."""
    await connection.connection.execute(_ALONE)
    ended_at: datetime = (await connection.connection.execute(_SAVE_END, {"in_full": in_full})).scalar_one()
    return ended_at


async def list_open_violations(connection: ReadAllConnection, *, shown_max: int) -> list[Violation]:
    """The recorded violations that are not resolved, at most `shown_max` of each check, the oldest first."""
    rows = await connection.connection.execute(_LIST_OPEN, {"shown_max": shown_max})
    return [Violation(row.check_name, row.subject, row.detail) for row in rows]


async def count_open_violations(connection: ReadAllConnection) -> dict[str, int]:
    """Number of recorded violations that are not resolved, by check."""
    rows = await connection.connection.execute(_COUNT_OPEN)
    return {row.check_name: row.violations for row in rows}


async def list_unannounced(connection: ServiceConnection) -> list[Change]:
    """Changes to publish: violations that are new or resolved. One that came and went is both."""
    changes: list[Change] = []
    for row in await connection.connection.execute(_UNANNOUNCED, {"announced_max": ANNOUNCED_MAX}):
        told = (row.id, row.check_name, row.subject, row.detail)
        if row.is_new:
            changes.append(Change(*told, at=row.first_seen_at, is_resolved=False))
        if row.resolved_at is not None:
            changes.append(Change(*told, at=row.resolved_at, is_resolved=True))
    return changes


async def note_announced(connection: ServiceConnection, opened: Collection[int], resolved: Collection[int]) -> None:
    """Record which violations were published, as new and as resolved."""
    await connection.connection.execute(_ALONE)
    await connection.connection.execute(_ANNOUNCED, {"opened": list(opened), "resolved_ids": list(resolved)})


async def has_at_most(connection: ReadAllConnection, entries: int) -> bool:
    """Whether the ledger has at most so many entries; reads no more than that."""
    return (await connection.connection.execute(_HAS_MORE_THAN, {"entries": entries})).first() is None


async def find_standing(connection: ServiceConnection) -> Standing:
    """The sums of all journal lines, and the age of the last scheduled check."""
    row = (await connection.connection.execute(_STANDING)).one()
    return Standing(
        debits=int(row.debits),
        credits=int(row.credits),
        checked_ago=row.now - row.checked_at if row.checked_at else None,
    )


_HAS_MORE_THAN: Final = text("SELECT 1 FROM credit_ledger OFFSET :entries LIMIT 1")

# One step ------------------------------------------------------------------------------------------------------------


async def _open(connection: ServiceConnection) -> _Books:
    """Begin a step under the exclusive lock: watermarks that all transactions have passed become safe, new ones are
    recorded.
    """
    sql = connection.connection
    await sql.execute(_ONE_MOMENT)
    await sql.execute(_ALONE)
    await sql.execute(_BY_INDEX)
    moment = (await sql.execute(_MOMENT)).one()
    # After the snapshot, never before it: the id must be above all that have a number at or below a watermark.
    own_xid = (await sql.execute(_OWN_XID)).scalar_one()
    state = (await sql.execute(_STATE)).one()
    checkpoints = {row.stream: _Checkpoint(*row) for row in await sql.execute(_CHECKPOINTS)}
    # An id from the future belongs to another server, of which this is a backup: none of its transactions is open here.
    if state.mark_xid <= moment.horizon or state.mark_xid > own_xid:
        for checkpoint in checkpoints.values():
            checkpoint.safe_to = checkpoint.mark
            checkpoint.mark = max(checkpoint.mark, getattr(moment, checkpoint.stream))
            await _save(connection, checkpoint, checked_to=checkpoint.checked_to)
        await sql.execute(_SAVE_MARK_XID, {"mark_xid": own_xid})
    return _Books(
        checkpoints,
        debits=int(state.debits),
        credits=int(state.credits),
        lines_mended=state.lines_mended,
        sums_of=state.sums_of,
        round=Round.model_validate(state.round),
    )


async def _save(connection: ServiceConnection, checkpoint: _Checkpoint, *, checked_to: int) -> None:
    checkpoint.checked_to = checked_to
    await connection.connection.execute(
        _SAVE_CHECKPOINT,
        {
            "stream": checkpoint.stream,
            "checked_to": checked_to,
            "safe_to": checkpoint.safe_to,
            "mark": checkpoint.mark,
        },
    )


def _joined(*arrays: str | None) -> str:
    """Concatenate arrays in PostgreSQL's format; None is an empty one."""
    return f"{{{','.join(array[1:-1] for array in arrays if array is not None)}}}"


_NOTHING: Final = _joined()


async def _verify(connection: ServiceConnection, ids: Mapping[About, str], pending_max: timedelta) -> _Verified:
    verified = _Verified()
    for about, subjects in ids.items():
        if subjects != _NOTHING:
            verified.ids[about] = subjects
            verified.found += await find_violations_of(connection, about, subjects, pending_max=pending_max)
    return verified


async def _record(connection: ServiceConnection, verified: _Verified) -> None:
    """Record the violations found; recorded ones of the same subjects that are not found any more are resolved."""
    sql = connection.connection
    found = {(violation.check, violation.subject): violation.detail for violation in verified.found}
    # Usually none are recorded, and thousands of ids need not be sent to find that out.
    if (await sql.execute(_IS_ANY_OPEN)).scalar_one():
        verdicts = [(verified.of_ledger, _joined(f"[{WHOLE_LEDGER}]"))] + [
            ([check.name for check in CHECKS if check.about is about], subjects)
            for about, subjects in verified.ids.items()
        ]
        for names, subjects in verdicts:
            await _resolve(connection, names, subjects, found)
    if found:
        await sql.execute(
            _RECORD,
            {
                "checks": [check for check, _ in found],
                "subjects": [subject for _, subject in found],
                "details": list(found.values()),
            },
        )


async def _resolve(
    connection: ServiceConnection, names: Collection[str], subjects: str, found: Collection[tuple[str, str]]
) -> None:
    resolved = await connection.connection.execute(
        _RESOLVE,
        {
            "names": list(names),
            "subjects": subjects,
            "found_checks": [check for check, _ in found],
            "found_subjects": [subject for _, subject in found],
        },
    )
    if _OF_LINES & {row.check_name for row in resolved}:
        await connection.connection.execute(_NOTE_MENDED)
