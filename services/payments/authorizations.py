"""Claimed authorizations, beside the payments' workflows: what the relay has sent is submitted, and what can never pay
is ended.
"""

from __future__ import annotations

from typing import Final

import structlog

from chain.authorizations import AuthorizationKey, Fate
from chain.reader import ChainReader
from db.deposits import authorizations as signatures
from db.deposits.authorizations import OpenSignature
from db.engine import ServiceDatabase
from db.payments import authorizations
from db.payments.authorizations import Claim
from domain.errors import ChainUnavailable, Refusal
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.payments.verification import Refused
from services.payments import lifecycle
from services.ports import PaymentSubmitter
from telemetry.metrics.worker import OUTCOMES

log = structlog.get_logger(__name__)

PAGE: Final = 100
"""Claims at a time; the rest is for the next time."""

FINALIZED: Final = "finalized"


async def find_fate(chain: ChainReader, claim: Claim | OpenSignature) -> Fate:
    """What has become of a claimed authorization, as all nodes say. Raises `ChainUnavailable`."""
    finalized = await chain.heads.tagged_number(FINALIZED)
    key = AuthorizationKey(claim.token, claim.payer, claim.nonce)
    return await chain.authorizations.fate(key, from_block=claim.from_block, finalized=finalized)


def refusal_of(claim: Claim, fate: Fate) -> Refused | None:
    """How an attempt ends whose authorization can never pay; None as long as that is not proved."""
    if not fate.is_unpayable(claim.valid_before):
        return None
    why = "was cancelled by its payer" if fate.is_cancelled else f"was not used before {claim.valid_before}"
    return Refused(
        status=AttemptStatus.FAILED,
        error_code=ErrorCode.AUTHORIZATION_EXPIRED,
        message=f"the authorization {why}; block {fate.finalized_number} is finalized and later",
    )


class ClaimedAuthorizations:
    """Those of one chain. Safe to run twice and at once."""

    def __init__(
        self, database: ServiceDatabase, chain: ChainReader, starter: PaymentSubmitter, *, chain_id: int
    ) -> None:
        self._database = database
        self._chain = chain
        self._starter = starter
        self._chain_id = chain_id

    async def submit_relayed(self) -> int:
        """Submit what the relay has sent, on the payers' behalf; how many. Raises `Unavailable`."""
        async with self._database.autocommit() as connection:
            sent = await authorizations.list_to_submit(connection, self._chain_id, limit=PAGE)
        for one in sent:
            try:
                await self._starter.submit(one.owner_user_id, one.attempt_id, one.tx_hash)
            except Refusal as refusal:
                log.warning("relayed payment not submitted", attempt_id=str(one.attempt_id), error=refusal.message)
        return len(sent)

    async def end_overdue(self) -> int:
        """End claims for which nothing was sent and that can never pay any more; how many ended.

        One that another sender has executed is submitted. Raises `Unavailable`.
        """
        async with self._database.autocommit() as connection:
            overdue = await authorizations.list_overdue(connection, self._chain_id, limit=PAGE)
        ended = 0
        for claim in overdue:
            try:
                fate = await find_fate(self._chain, claim)
            except ChainUnavailable as error:
                log.warning("fate of an authorization unknown", attempt_id=str(claim.attempt_id), error=error.message)
                continue
            if fate.used_by is not None:
                await self._starter.submit(claim.owner_user_id, claim.attempt_id, fate.used_by)
            elif (refused := refusal_of(claim, fate)) is not None:
                ended += await self._end(claim, refused)
        return ended

    async def end_of_charges(self) -> int:
        """Record what has become of what was signed for charges; how many ended. Raises `Unavailable`.

        What was executed is a deposit already, or soon: nothing is credited by this, in whatever order they are seen.
        """
        async with self._database.autocommit() as connection:
            undecided = await signatures.list_open(connection, self._chain_id, limit=PAGE)
        ended = 0
        for one in undecided:
            try:
                fate = await find_fate(self._chain, one)
            except ChainUnavailable as error:
                log.warning("fate of an authorization unknown", signature_id=str(one.id), error=error.message)
                continue
            if not fate.is_executed_for_good and not fate.is_unpayable(one.valid_before):
                continue
            executed_by = fate.used_by if fate.is_executed_for_good else None
            async with self._database.transaction() as settled:
                ended += await signatures.end(settled, one.id, executed_by=executed_by)
        return ended

    async def _end(self, claim: Claim, refused: Refused) -> bool:
        async with self._database.transaction() as connection:
            attempt = await lifecycle.lock(connection, claim.attempt_id)
            if attempt.status is not AttemptStatus.CREATED_INTENT:
                return False
            await lifecycle.end_unpaid(connection, attempt, refused)
        OUTCOMES.labels(attempt.purpose.value, refused.status.value, refused.error_code.value).inc()
        log.info("authorization can never pay", attempt_id=str(claim.attempt_id), reason=refused.message)
        return True
