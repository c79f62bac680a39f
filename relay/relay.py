"""The relay: stores a signed transaction, then sends it, and knows each nonce until it is confirmed.

Whatever a pass is interrupted by, the next one goes on from what is stored: what was stored and perhaps sent is sent
again, the same bytes; what was not stored was not sent. Several relays of one account may run: a nonce is locked while
something is stored for it, and has one attempt.
"""

from __future__ import annotations

import time
from typing import Final
from uuid import UUID

import structlog

from chain.authorizations import Execution, execution_of
from chain.derivation.addresses import address_of_charge
from chain.reader import ChainReader
from chain.transactions import AccountView, ExecutionRefused, MinedTransaction
from db.engine import RelayDatabase
from db.payments import relay as books
from db.payments.relay import OpenNonce, RelayClaim, SignedTransaction
from domain.errors import AuthorizationRefused
from domain.identifiers import same_address
from domain.payments.authorizations import check_window
from relay.fees import Fees, first_fees, replacing_fees, with_margin
from relay.policy import RelayPolicy
from relay.signing import RelayKey
from telemetry.metrics.relay import (
    RELAY_BALANCE,
    RELAY_OLDEST,
    RELAY_OPEN,
    RELAY_SPENT,
    RELAY_TRANSACTIONS,
    RELAY_WAITING,
    WEI_PER_COIN,
)

log = structlog.get_logger(__name__)

CLAIMS_MAX: Final = 50
"""Claims that a pass reads."""

OPEN_MAX: Final = 16
"""Nonces without an outcome: nodes keep a limited number of one account, and one that is stuck holds up the rest."""

REPLACE_AFTER_BLOCKS: Final = 8
"""Blocks after which a transaction that is not mined is replaced by one that offers more."""

SEEN_EVERY_SECONDS: Final = 15.0
"""How often it writes that it works: `settle doctor` and the pages that offer to sign read it."""

RETRY_AFTER_SECONDS: Final = (5.0, 15.0, 60.0, 300.0)
"""When a claim is tried again that would have reverted: its payer may have moved the balance for a moment."""


class Relay:
    """One account's transactions. Safe to interrupt, to run twice, and to run at once with another."""

    def __init__(self, database: RelayDatabase, chain: ChainReader, key: RelayKey, policy: RelayPolicy) -> None:
        self._database = database
        self._chain = chain
        self._key = key
        self._policy = policy
        self._relayer = key.address.lower()
        self._refused: dict[UUID, tuple[int, float]] = {}
        self._says_at = 0.0
        self.account: AccountView | None = None
        """The account as of the last pass."""

    async def run_once(self) -> None:
        """One pass: what is open, then what is claimed. Raises `Unavailable`; the next pass goes on."""
        self.account = await self._chain.transactions.account(self._key.address)
        RELAY_BALANCE.set(self.account.balance_wei / WEI_PER_COIN)
        still_open = await self._follow_open(self.account)
        await self._relay_claims(self.account, still_open)
        await self._say_that_it_works(self.account)

    async def _say_that_it_works(self, account: AccountView) -> None:
        if time.monotonic() < self._says_at:
            return
        async with self._database.transaction() as connection:
            await books.note_seen(
                *(connection, self._policy.chain_id, self._relayer),
                chain_nonce=account.nonce,
                balance_wei=account.balance_wei,
            )
        self._says_at = time.monotonic() + SEEN_EVERY_SECONDS

    # What is open ----------------------------------------------------------------------------------------------------

    async def _follow_open(self, account: AccountView) -> int:
        """Confirm, send again or replace what is open; returns how many nonces still are."""
        async with self._database.transaction() as connection:
            nonces = await books.list_open(connection, self._policy.chain_id, self._relayer)
        hashes = [tx_hash for one in nonces for tx_hash in one.hashes]
        mined = await self._chain.transactions.mined(hashes) if hashes else {}
        still_open = [one for one in nonces if not await self._follow(one, account, mined)]
        RELAY_OPEN.set(len(still_open))
        RELAY_OLDEST.set(max((one.transactions[0].age_seconds for one in still_open), default=0.0))
        return len(still_open)

    async def _follow(self, one: OpenNonce, account: AccountView, mined: dict[str, MinedTransaction]) -> bool:
        """Whether the nonce has an outcome now."""
        found = next((mined[tx_hash] for tx_hash in one.hashes if tx_hash in mined), None)
        if found is not None:
            if account.head_number - found.block_number + 1 < self._policy.min_confirmations:
                return False
            outcome = "succeeded" if found.succeeded else "reverted"
            return await self._end(one, outcome, found)
        if account.nonce > one.nonce:
            return await self._end_if_lost(one, account)
        await self._send_again(one, account)
        return False

    async def _end(self, one: OpenNonce, outcome: str, found: MinedTransaction | None = None) -> bool:
        async with self._database.transaction() as connection:
            is_first = await books.end_nonce(
                connection,
                self._policy.chain_id,
                self._relayer,
                one.nonce,
                outcome=outcome,
                tx_hash=found.tx_hash if found else None,
                spent_wei=found.spent_wei if found else None,
            )
        if is_first:
            RELAY_TRANSACTIONS.labels(outcome).inc()
            log.info("relayed", payment_id=str(one.payment_id), nonce=one.nonce, outcome=outcome)
        return True

    async def _end_if_lost(self, one: OpenNonce, account: AccountView) -> bool:
        """A transaction that is not ours has the nonce: of another program with this key, which should not be."""
        confirmed = max(account.head_number - self._policy.min_confirmations, 0)
        if await self._chain.transactions.nonce_at(self._key.address, confirmed) <= one.nonce:
            return False
        log.error("nonce was used by a transaction that is not the relay's", nonce=one.nonce, relayer=self._relayer)
        return await self._end(one, "lost")

    async def _send_again(self, one: OpenNonce, account: AccountView) -> None:
        newest = one.newest
        replace_after = REPLACE_AFTER_BLOCKS * self._policy.block_time.total_seconds()
        if newest.is_sent and newest.age_seconds > replace_after:
            before = Fees(newest.transaction.max_fee_wei, newest.transaction.priority_fee_wei)
            fees = replacing_fees(before, account.base_fee_wei, max_fee_wei=self._policy.max_fee_wei)
            if fees is not None and await self._replace(one, fees):
                return
        await self._send(newest.transaction)

    async def _replace(self, one: OpenNonce, fees: Fees) -> bool:
        """The same call on the same nonce for more; False where it cannot be signed again, or another relay did."""
        signed = self._key.resign(one.newest.transaction.raw, fees.max_fee_wei, fees.priority_fee_wei)
        async with self._database.transaction() as connection:
            is_stored = await books.store(
                connection,
                self._policy.chain_id,
                self._relayer,
                one.nonce,
                signed,
                payment_id=one.payment_id,
                replaces=len(one.transactions),
            )
        if not is_stored:
            return False
        RELAY_TRANSACTIONS.labels("replaced").inc()
        log.warning("transaction replaced", payment_id=str(one.payment_id), nonce=one.nonce, fee_wei=fees.max_fee_wei)
        await self._send(signed)
        return True

    async def _send(self, transaction: SignedTransaction) -> None:
        refusal = await self._chain.transactions.send(transaction.raw)
        if refusal is not None:
            log.warning("transaction not taken by the nodes", tx_hash=transaction.tx_hash, reason=refusal)
            return
        async with self._database.transaction() as connection:
            await books.note_sent(connection, self._policy.chain_id, transaction.tx_hash)

    # What is claimed -------------------------------------------------------------------------------------------------

    async def _relay_claims(self, account: AccountView, still_open: int) -> None:
        policy = self._policy
        async with self._database.transaction() as connection:
            claims = [
                *await books.list_claims(connection, policy.chain_id, limits=policy.limits, limit=CLAIMS_MAX),
                *await books.list_charge_claims(
                    connection, policy.chain_id, limits=policy.charge_limits, limit=CLAIMS_MAX
                ),
            ]
        RELAY_WAITING.set(len(claims))
        waiting = {claim.payment_id for claim in claims}
        self._refused = {payment_id: rests for payment_id, rests in self._refused.items() if payment_id in waiting}
        for claim in claims:
            if still_open >= OPEN_MAX:
                return
            if self._is_resting(claim):
                continue
            fees = first_fees(account.base_fee_wei, max_fee_wei=self._policy.max_fee_wei)
            if fees is None:
                log.warning("gas is too expensive", base_fee_wei=account.base_fee_wei)
                return
            prepared = await self._prepare(claim, account)
            if prepared is None:
                continue
            execution, gas = prepared
            if not await self._has_funds(gas * fees.max_fee_wei, account):
                return
            still_open += await self._relay(claim, account, execution, gas, fees)

    def _is_resting(self, claim: RelayClaim) -> bool:
        return self._refused.get(claim.payment_id, (0, 0.0))[1] > time.monotonic()

    async def _prepare(self, claim: RelayClaim, account: AccountView) -> tuple[Execution, int] | None:
        """Its transaction and the limit of its gas; None where it is not sent now: what would revert is not paid for.

        Of a wallet that is yet to be deployed the factory is compared with the relay's own list, whatever is stored.
        """
        policy, authorization = self._policy, claim.signed.authorization
        if not (same_address(claim.token, policy.token) and same_address(authorization.to, self._destination(claim))):
            self._rest(claim, "it is not of this relay's token and treasury")
            return None
        try:
            check_window(
                authorization,
                block_time=account.block_time,
                seconds_per_block=policy.block_time.total_seconds(),
                blocks=1,
            )
            execution = execution_of(
                policy.token, claim.signed, is_contract=claim.is_contract, factories=policy.wallet_factories
            )
            gas = await self._chain.transactions.estimate_gas(self._key.address, execution.to, execution.data)
        except (AuthorizationRefused, ExecutionRefused) as refusal:
            self._rest(claim, refusal.message)
            return None
        limit = with_margin(gas)
        if limit > execution.gas_limit_max:
            self._rest(claim, f"it takes a limit of {limit} gas: expected at most {execution.gas_limit_max}")
            return None
        return execution, limit

    def _destination(self, claim: RelayClaim) -> str:
        """Where the claim has to pay: the treasury, or the contract that sends a charge's payments there.

        By the charge's id and no row: whatever the database says, nothing is sent that would pay anyone else.
        """
        treasury = self._policy.treasury
        return treasury if claim.charge_id is None else address_of_charge(claim.charge_id, treasury)

    def _rest(self, claim: RelayClaim, reason: str) -> None:
        tries = self._refused.get(claim.payment_id, (0, 0.0))[0]
        seconds = RETRY_AFTER_SECONDS[min(tries, len(RETRY_AFTER_SECONDS) - 1)]
        self._refused[claim.payment_id] = (tries + 1, time.monotonic() + seconds)
        log.info("authorization not sent now", payment_id=str(claim.payment_id), reason=reason)

    async def _has_funds(self, cost_wei: int, account: AccountView) -> bool:
        async with self._database.transaction() as connection:
            spent = await books.read_spent_today(connection, self._policy.chain_id, self._relayer)
        RELAY_SPENT.set(spent / WEI_PER_COIN)
        if spent + cost_wei > self._policy.gas_per_day_wei:
            log.error("the day's gas is used up", spent_wei=spent, limit_wei=self._policy.gas_per_day_wei)
            return False
        if account.balance_wei < cost_wei:
            log.error("the relay's account has too little gas", relayer=self._relayer, balance_wei=account.balance_wei)
            return False
        return True

    async def _relay(self, claim: RelayClaim, account: AccountView, execution: Execution, gas: int, fees: Fees) -> bool:
        """Store and send it; False where another relay has."""
        policy = self._policy
        async with self._database.transaction() as connection:
            nonce = await books.lock_next_nonce(connection, policy.chain_id, self._relayer, chain_nonce=account.nonce)
            signed = self._key.sign(
                chain_id=policy.chain_id,
                nonce=nonce,
                to=execution.to,
                calldata=execution.data,
                gas=gas,
                max_fee_wei=fees.max_fee_wei,
                priority_fee_wei=fees.priority_fee_wei,
            )
            is_stored = await books.store(
                connection, policy.chain_id, self._relayer, nonce, signed, payment_id=claim.payment_id
            )
        if not is_stored:
            return False
        log.info("authorization is sent", payment_id=str(claim.payment_id), nonce=nonce, tx_hash=signed.tx_hash)
        await self._send(signed)
        return True
