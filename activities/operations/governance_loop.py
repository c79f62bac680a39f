"""The governance loop's activities: what is asked, and the call through the gateway, as any client would make it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.operations.signatures import CallToMake, CallToPrepare, GovernanceLoopSignatures
from db.engine import ServiceDatabase, TenantDatabase
from db.operations import governance_calls as stored
from db.operations import heartbeats
from domain.billing.keys import hash_key
from domain.errors import BookkeepingError, ConfigurationError
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID, SYSTEM_TENANT_USER_ID
from domain.operations.governance import TENANT_NOT_VISIBLE
from domain.operations.governance_call import (
    CallOutcome,
    GovernanceCall,
    GovernanceLoopPolicy,
    answer_text,
    request_body,
)

ANSWER_SECONDS_MAX: Final = 150.0
"""Below `workflows.policies.GOVERNANCE_CALL_START_TO_CLOSE`."""
GATEWAY_UNAVAILABLE: Final = "GATEWAY_UNAVAILABLE"
"""Type of a failure that is worth another try: no answer, or the same call is still in flight."""
CALL_REFUSED: Final = "GOVERNANCE_CALL_REFUSED"
"""Type of one that is not: the key, the model or the call is refused."""
_WORTH_ANOTHER_TRY: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})


class GovernanceLoopActivities(GovernanceLoopSignatures):
    """Reads as the system tenant's principal, calls with its own service key, records as settle_service.

    Safe to run twice: the call carries the run's key as its Idempotency-Key, so that the gateway makes and charges it
    once and answers a repetition with the same answer.
    """

    def __init__(self, tenants: TenantDatabase, service: ServiceDatabase, policy: GovernanceLoopPolicy | None) -> None:
        self._tenants = tenants
        self._service = service
        self._policy = policy

    @activity.defn
    async def prepare_governance_call(self, wanted: CallToPrepare) -> str:
        """The call's body. It is kept in the workflow's history, so that each try sends the same."""
        policy = self._require_policy()
        await self._check_key(policy)
        async with self._tenants.transaction(SYSTEM_TENANT_USER_ID) as connection:
            income = await heartbeats.read_income(connection, wanted.since, wanted.until)
        if income is None:
            raise BookkeepingError(TENANT_NOT_VISIBLE)
        try:
            prompt = policy.prompt_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"GOVERNANCE_PROMPT_FILE: {policy.prompt_file} cannot be read: {error}") from None
        return request_body(
            model=policy.model, prompt=prompt, income=income, output_tokens_max=wanted.output_tokens_max
        )

    @activity.defn
    async def call_governance_model(self, wanted: CallToMake) -> GovernanceCall:
        """Make the call, and record its answer and charge; of a call that is on record already, that."""
        policy = self._require_policy()
        async with self._service.autocommit() as connection:
            made = await stored.find_call(connection, wanted.key)
        if made is not None:
            return made
        status, headers, document = await _post(policy, wanted)
        call = _read(policy, wanted, status, headers, document)
        async with self._service.autocommit() as connection:
            await stored.insert_call(connection, call)
        return call

    def _require_policy(self) -> GovernanceLoopPolicy:
        if self._policy is None:
            raise ConfigurationError.missing("GOVERNANCE_MODEL", "the model of the governance loop, or no schedule")
        return self._policy

    async def _check_key(self, policy: GovernanceLoopPolicy) -> None:
        """The budget is the key's own limit, which the database enforces; this sees that the two agree."""
        async with self._service.autocommit() as connection:
            found = await stored.find_key(connection, hash_key(policy.service_key))
        if found is None or found.billing_account_id != SYSTEM_TENANT_ACCOUNT_ID:
            raise ConfigurationError(
                f"GOVERNANCE_SERVICE_KEY is invalid: expected a service key of account {SYSTEM_TENANT_ACCOUNT_ID}"
            )
        if found.limit_day_credits is None or found.limit_day_credits > policy.budget_credits_per_day:
            limit = "none" if found.limit_day_credits is None else str(found.limit_day_credits)
            raise ConfigurationError(
                f"GOVERNANCE_SERVICE_KEY is invalid: its limit by day is {limit}, expected at most "
                f"GOVERNANCE_BUDGET_CREDITS_PER_DAY, {policy.budget_credits_per_day} (settle keys create --limit-day)"
            )


async def _post(policy: GovernanceLoopPolicy, wanted: CallToMake) -> tuple[int, Mapping[str, str], Any]:
    headers = {
        "Authorization": f"Bearer {policy.service_key}",
        "Content-Type": "application/json",
        "Idempotency-Key": wanted.key,
    }
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.post(
                f"{policy.gateway_url}/v1/chat/completions", data=wanted.body.encode(), headers=headers
            ) as response,
        ):
            text = await response.text()
    except (TimeoutError, aiohttp.ClientError) as error:
        raise ApplicationError(
            f"the gateway at {policy.gateway_url} gives no answer: {type(error).__name__}", type=GATEWAY_UNAVAILABLE
        ) from error
    try:
        return response.status, response.headers, json.loads(text)
    except ValueError:
        return response.status, response.headers, None


def _read(
    policy: GovernanceLoopPolicy, wanted: CallToMake, status: int, headers: Mapping[str, str], document: Any
) -> GovernanceCall:
    facts: dict[str, Any] = {
        "key": wanted.key,
        "scheduled_at": wanted.scheduled_at,
        "model": policy.model,
        "request_id": headers.get("X-Request-Id"),
    }
    if status == HTTPStatus.OK:
        return GovernanceCall(
            outcome=CallOutcome.ANSWERED,
            charged_credits=int(headers.get("X-Credits-Charged", "0")),
            answer=answer_text(document),
            **facts,
        )
    error = document.get("error") if isinstance(document, dict) else None
    error = error if isinstance(error, dict) else {}
    words = f"{status} {error.get('code') or 'without a code'}"
    if status == HTTPStatus.PAYMENT_REQUIRED:
        return GovernanceCall(
            outcome=CallOutcome.REFUSED,
            charged_credits=0,
            limit_source=str(error.get("limit_source") or "balance"),
            detail=words,
            **facts,
        )
    message = f"the gateway answers {words}: {error.get('message') or 'no message'}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _WORTH_ANOTHER_TRY:
        raise ApplicationError(message, type=GATEWAY_UNAVAILABLE)
    raise ApplicationError(message, type=CALL_REFUSED, non_retryable=True)
