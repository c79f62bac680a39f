"""Preconditions on chain and token before money may be credited, decided by a quorum of the nodes.

Written once: `settle doctor` reports them, a worker refuses to start without them, and no verification result is final
before they were confirmed at or after the payment's block. Decided as receipts are (`chain.quorum`): a claim counts
when its votes outnumber all others, so that one false node neither stops the others nor gets anything credited.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from chain.quorum import NoResponse, reached_by_most
from domain.coin import NATIVE_COIN
from domain.errors import PreconditionNotMet, StartupCheckFailed
from domain.identifiers import same_address
from domain.money import USDC_DECIMALS

TOKEN_DECIMALS: Final = USDC_DECIMALS
"""Only with these is an amount in raw units worth what the intent says."""

LIFETIME_SECONDS: Final = 60.0
"""How long an answer may be reused where no payment needs a newer one: an upgraded token is noticed within it."""

RETRY_SECONDS: Final = 2.0
"""The same while they are not met, so that a recovery is noticed soon."""

CHECK_SECONDS_MAX: Final = 7.0
"""Time limit for all nodes together, so that a readiness check ends in time with the reason."""

RESERVED_ADDRESSES: Final = 0x10000
"""Below are the zero address, precompiled contracts and 0x…dEaD: what is sent there is lost."""

SETTING: Final = "USDC_TOKEN_ADDRESS"
ELSEWHERE: Final = "the token of a payment method (settle methods list), or of an earlier USDC_TOKEN_ADDRESS,"
"""Where a token comes from that is not the setting's: its method says which it is, or an attempt that still waits."""

TOKENS_MAX: Final = 16
"""Tokens whose answer is cached: the one of the settings, and those that open intents name."""

log = logging.getLogger(__name__)


class State(StrEnum):
    """Known state of the preconditions."""

    MET = "met"
    BROKEN = "broken"
    """Most of the answering nodes contradict them: only an operator can fix it."""
    UNKNOWN = "unknown"
    """No node answers, or they contradict each other: wait and ask again."""


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """One node's answer about the token. None where the contract does not answer that question, or was not asked."""

    endpoint: str
    chain_id: int
    head_number: int = 0
    has_code: bool = False
    decimals: int | None = None
    symbol: str | None = None
    treasury_balance_raw: int | None = None

    @property
    def claim(self) -> tuple[bool, int | None, bool]:
        """The part on which nodes must agree: the balance itself changes with every block."""
        return self.has_code, self.decimals, self.treasury_balance_raw is not None


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The nodes' combined answer. `message` is one line; where it is broken it names the setting."""

    state: State
    message: str
    head_number: int = 0
    """The block that most of the agreeing nodes have reached: the answer holds up to there."""
    answer: TokenAnswer | None = None
    dissenters: tuple[str, ...] = ()
    """Nodes that answer otherwise, each with its answer."""
    is_answered: bool = True
    """Whether any node answered at all."""


COIN_IS_MET: Final = Preconditions(
    State.MET, "the chain's own coin has no contract that could be another one", head_number=2**63 - 1
)


class _AsksForTokens(Protocol):
    @property
    def chain_id(self) -> int: ...

    async def ask_about_token(self, token: str, treasury: str) -> tuple[list[TokenAnswer], list[NoResponse]]: ...


def evaluate(
    chain_id: int,
    token: str,
    treasury: str,
    answers: Sequence[TokenAnswer],
    silent: Sequence[NoResponse],
    *,
    decimals: int = TOKEN_DECIMALS,
    named: str = SETTING,
) -> Preconditions:
    """Whether payments in `token` to `treasury` may be credited, by the answers of all nodes.

    `decimals` are those that its amounts are counted in: the payment method's, where it is not USDC. `named`: what
    gives the token.
    """
    if int(treasury, 16) < RESERVED_ADDRESSES or same_address(treasury, token):
        what = "the token itself" if same_address(treasury, token) else "an address without a known key"
        return Preconditions(
            State.BROKEN,
            f"TREASURY_ADDRESS is invalid: {treasury} is {what}, expected the address of a recipient",
        )
    right = [answer for answer in answers if answer.chain_id == chain_id]
    wrong = [answer for answer in answers if answer.chain_id != chain_id]
    strangers = tuple(f"{answer.endpoint}: answers for chain {answer.chain_id}" for answer in wrong)
    if len(wrong) > len(right):
        return Preconditions(
            State.BROKEN,
            f"CHAIN_ID is {chain_id}, but the nodes of CHAIN_RPC_URLS are of another chain: {'; '.join(strangers)}",
            dissenters=strangers,
        )
    if not right:
        reasons = "; ".join(f"{one.endpoint}: {one.reason}" for one in silent)
        message = f"no chain node answers about token {token}: {reasons}"
        return Preconditions(State.UNKNOWN, message, is_answered=False)
    group = max(([one for one in right if one.claim == answer.claim] for answer in right), key=len)
    others = [answer for answer in right if answer not in group]
    if len(group) <= len(others):
        sides = "; ".join(f"{answer.endpoint}: {_said(answer)}" for answer in right)
        return Preconditions(State.UNKNOWN, f"the nodes contradict each other about token {token}: {sides}")
    answer = group[0]
    problem = _problem(token, answer, decimals)
    names = ", ".join(one.endpoint for one in group)
    return Preconditions(
        State.BROKEN if problem else State.MET,
        f"{named} is invalid: {problem} ({names})" if problem else f"{_said(answer)} ({names})",
        head_number=reached_by_most([one.head_number for one in group]),
        answer=answer,
        dissenters=strangers + tuple(f"{one.endpoint}: {_said(one)}" for one in others),
    )


def _problem(token: str, answer: TokenAnswer, decimals: int) -> str | None:
    """Why the contract cannot be the token, or None."""
    if not answer.has_code:
        return f"there is no contract at {token}"
    if answer.decimals is None:
        return f"the contract at {token} has no decimals(), expected {decimals}"
    if answer.decimals != decimals:
        return f"the token at {token} has {answer.decimals} decimals, expected {decimals}"
    if answer.treasury_balance_raw is None:
        return f"the contract at {token} has no balanceOf(), expected an ERC-20 token"
    return None


def _said(answer: TokenAnswer) -> str:
    if not answer.has_code:
        return "no contract there"
    decimals = "no decimals" if answer.decimals is None else f"{answer.decimals} decimals"
    return f"{decimals}{'' if answer.treasury_balance_raw is not None else ', no balances'}"


@dataclass(frozen=True, slots=True)
class _Token:
    """What a node is asked about, and what it is expected to be."""

    address: str
    decimals: int = TOKEN_DECIMALS


@dataclass(frozen=True, slots=True)
class _Kept:
    found: Preconditions
    asked_at: float


class SettlementPreconditions:
    """Checks the preconditions for each token and caches the answer. Concurrent callers share one request.

    `usdc` is the setting's token; without it each is taken for that. `clock` is a monotonic clock in seconds.
    """

    def __init__(
        self,
        chain: _AsksForTokens,
        treasury: str,
        *,
        usdc: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain = chain
        self._treasury = treasury
        self._usdc = usdc
        self._clock = clock
        self._kept: dict[_Token, _Kept] = {}
        self._confirmed: dict[_Token, bool] = {}
        """Whether the token was valid when any node last answered."""
        self._asking: dict[_Token, asyncio.Task[Preconditions]] = {}

    async def check(self, token: str, *, decimals: int = TOKEN_DECIMALS) -> Preconditions:
        """Ask every node now; a call during a running request waits for the request after that one."""
        return await self._check(_Token(token, decimals))

    async def _check(self, token: _Token) -> Preconditions:
        under_way = self._asking.get(token)
        if under_way is not None and not under_way.done():
            # The running request may be older than what this caller asks about.
            await asyncio.wait([under_way])
        under_way = self._asking.get(token)
        if under_way is None or under_way.done():
            under_way = self._asking[token] = asyncio.ensure_future(self._ask(token))
        # Shielded: one cancelled caller must not cancel it for the others.
        return await asyncio.shield(under_way)

    async def known(self, token: str) -> Preconditions:
        """The cached answer, at most `LIFETIME_SECONDS` old, or `RETRY_SECONDS` where they are not met."""
        kept = self._fresh(_Token(token))
        return kept.found if kept is not None else await self.check(token)

    async def require(self, token: str, *, at_block: int, decimals: int = TOKEN_DECIMALS) -> None:
        """Pass where most nodes confirm the token as of `at_block` or later. Raises `PreconditionNotMet`.

        One request serves all payments in blocks up to the head at which it was answered.
        """
        kept = self._fresh(_Token(token, decimals))
        found = kept.found if kept is not None and kept.found.state is State.MET else None
        if found is None or found.head_number < at_block:
            found = await self.check(token, decimals=decimals)
        if found.state is not State.MET:
            raise PreconditionNotMet(found.message, is_broken=found.state is State.BROKEN)

    async def require_at_start(self, token: str) -> Preconditions:
        """Check at a process's start. Raises `StartupCheckFailed` where the preconditions are broken.

        Where they are unknown because nodes do not answer, the process starts; it is not ready, and credits nothing.
        """
        found = await self.check(token)
        if found.state is State.BROKEN:
            raise StartupCheckFailed(found.message)
        return found

    async def require_known(self, token: str) -> None:
        """Check for readiness. Raises `PreconditionNotMet` where the preconditions are not known to be met.

        Nodes that no longer answer add nothing about the token, and readiness reports them elsewhere.
        """
        found = await self.known(token)
        silent_since = not found.is_answered and self._confirmed.get(_Token(token), False)
        if found.state is not State.MET and not silent_since:
            raise PreconditionNotMet(found.message, is_broken=found.state is State.BROKEN)

    def _fresh(self, token: _Token) -> _Kept | None:
        kept = self._kept.get(token)
        if kept is None:
            return None
        lifetime_seconds = LIFETIME_SECONDS if kept.found.state is State.MET else RETRY_SECONDS
        return kept if self._clock() - kept.asked_at < lifetime_seconds else None

    async def _ask(self, token: _Token) -> Preconditions:
        asked_at = self._clock()
        if same_address(token.address, NATIVE_COIN):
            return COIN_IS_MET
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                answers, silent = await self._chain.ask_about_token(token.address, self._treasury)
            is_setting = self._usdc is None or same_address(token.address, self._usdc)
            found = evaluate(
                *(self._chain.chain_id, token.address, self._treasury, answers, silent),
                decimals=token.decimals,
                named=SETTING if is_setting else ELSEWHERE,
            )
        except TimeoutError:
            message = f"the chain nodes did not answer in time about token {token.address}"
            found = Preconditions(State.UNKNOWN, message, is_answered=False)
        self._keep(token, _Kept(found, asked_at))
        return found

    def _keep(self, token: _Token, kept: _Kept) -> None:
        before = self._kept.pop(token, None)
        if before is not None and before.found.state is not kept.found.state:
            # Logged once per change, not per request; the first answer is reported by the caller that asked for it.
            level = logging.INFO if kept.found.state is State.MET else logging.ERROR
            log.log(level, "preconditions of settling are %s: %s", kept.found.state.value, kept.found.message)
        known = before.found.dissenters if before else ()
        for dissenter in set(kept.found.dissenters) - set(known) if kept.found.state is State.MET else ():
            log.warning("chain node contradicts the others about token %s: %s", token.address, dissenter)
        self._kept[token] = kept
        if kept.found.is_answered:
            self._confirmed[token] = kept.found.state is State.MET
        while len(self._kept) > TOKENS_MAX:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._confirmed.pop(oldest, None)
