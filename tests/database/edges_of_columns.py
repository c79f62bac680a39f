"""Values on both sides of the edge of each CHECK that is of one column and named after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters, digits, hexdigits
from typing import Any, Final

ALPHANUMERIC: Final = digits + ascii_letters


@dataclass(frozen=True, slots=True)
class Sides:
    """Values of a column, or rows, that a CHECK accepts, and others that it refuses."""

    accepted: Sequence[Any]
    refused: Sequence[Any]

    def of(self, column: str) -> Sides:
        """Rows with these values of a column."""
        return Sides([{column: value} for value in self.accepted], [{column: value} for value in self.refused])


def _between(low: int, high: int) -> Sides:
    return Sides([low, high], [low - 1, high + 1])


def _length(low: int, high: int) -> Sides:
    return Sides(["x" * low, "x" * high], ["x" * (low - 1), "x" * (high + 1)])


def _bytes(low: int, high: int) -> Sides:
    accepted, refused = _length(low, high).accepted, _length(low, high).refused
    return Sides(*([f"\\x{'00' * len(text)}" for text in texts] for texts in (accepted, refused)))


def _bytes_at_most(high: int) -> Sides:
    return Sides(["\\x", f"\\x{'00' * high}"], [f"\\x{'00' * (high + 1)}"])


def _one_of(*values: str) -> Sides:
    return Sides(values, ["something else", ""])


def hexadecimal(length: int, *, prefix: str = "0x", upper: bool) -> Sides:
    """So many hexadecimal digits; with upper case, or refusing it."""
    text = hexdigits[:16] * 5
    right, upper_case = prefix + text[:length], prefix + "ABCDEF" + text[: length - 6]
    wrong = [right[:-1], right + "0", right[:-1] + "g", " " + right, right + " ", *([right[1:]] if prefix else [])]
    return Sides([right, upper_case], wrong) if upper else Sides([right], [*wrong, upper_case])


POSITIVE: Final = Sides([1], [0, -1])
NOT_NEGATIVE: Final = Sides([0, 1], [-1])
NOT_EMPTY: Final = Sides(["x"], [""])
SHARE: Final = Sides(["0", "0.5", "1"], ["-0.0001", "1.0001"])
DIGITS: Final = _between(0, 36)
ADDRESS: Final = hexadecimal(40, upper=True)
LOWER_ADDRESS: Final = hexadecimal(40, upper=False)
HASH: Final = hexadecimal(64, upper=False)
REVISION: Final = Sides(["0123", "4567", "0089"], ["009", "00009", "000a"])
BASE58: Final = ["123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", "1" * 26, "z" * 64]
BECH32: Final = ["bc1qpzry9x8gf2tvdw0s3jn54khce6mua7l", "bc1" + "q" * 11, "az" * 8 + "1" + "q" * 87]
BECH32_WITH_ANOTHER_LETTER: Final = ["bc1" + "q" * 11 + letter for letter in "1bio"]
NO_ADDRESS: Final = [
    *("1" * 25, "z" * 65, *(wrong + "1" * 29 for wrong in "0OIl "), "1" * 30 + " ", *BECH32_WITH_ANOTHER_LETTER),
    *("bc1" + "q" * 10, "bc1" + "q" * 88, "b" * 17 + "1" + "q" * 87, "1" + "q" * 87),
    *("0x" + "1" * 39, "0x" + "1" * 39 + "g"),
]

OF_ONE_COLUMN: Final[Sequence[tuple[Sides, str]]] = (
    (
        POSITIVE,
        """
        charge_authorizations.chain_id charge_authorizations.valid_before charge_authorizations.value_raw
        charges.amount_usd_cents charges.quoted_amount_raw deposit_addresses.chain_id deposits.chain_id
        deposits.operator_credits findings.times_opened journal_lines.amount observed_transfers.chain_id
        observed_transfers.value_raw payment_attempts.chain_id payment_authorizations.valid_before
        payment_destinations.chain_id payment_methods.chain_id payment_methods.confirmations
        payment_methods.min_amount_raw price_quotes.answer_raw price_quotes.round_id price_sources.chain_id
        price_sources.max_age_seconds price_sources.min_answer_raw relay_transactions.gas
        relay_transactions.max_fee_wei relayers.chain_id settled_transfers.chain_id settled_transfers.value_raw
        sweep_cursors.chain_id sweep_transactions.chain_id sweep_transactions.gas_used sweeps.chain_id
        swept_transfers.chain_id swept_transfers.value_raw transfer_credits.value_raw
        """,
    ),
    (
        NOT_NEGATIVE,
        """
        chain_cursors.answers_from chain_cursors.first_block chain_gaps.first_block charge_authorizations.from_block
        charge_authorizations.valid_after charge_receipts.charged_credits charge_receipts.input_tokens
        charge_receipts.output_tokens charge_receipts.provider_cost_usd charge_receipts.uncollected_credits
        charge_receipts.user_cost_usd credit_holds.amount_credits credit_holds.input_tokens_estimate
        credit_holds.output_bytes credit_holds.output_tokens_limit deposits.credits deposits.value_raw
        finality_progress.block_number governance_calls.charged_credits observed_transfers.block_number
        observed_transfers.log_index payment_authorizations.from_block payment_authorizations.valid_after
        price_quotes.block_number price_sources.sequencer_grace_seconds relay_nonces.nonce relay_nonces.spent_wei
        relay_transactions.priority_fee_wei relayers.balance_wei relayers.next_nonce settled_transfers.block_number
        settled_transfers.log_index settled_transfers.surplus_raw settled_transfers.unapplied_raw
        sweep_transactions.gas_price_wei sweep_transactions.l1_fee_wei sweep_transactions.nonce
        sweep_transactions.spent_wei swept_transfers.credits swept_transfers.log_index transfer_finality.block_number
        transfer_finality.log_index webhook_deliveries.failures webhook_tries.duration_ms
        """,
    ),
    (
        NOT_EMPTY,
        """
        address_rings.path billing_accounts.id books_violations.check_name books_violations.subject
        charge_receipts.charge_reason charge_receipts.model charge_receipts.provider charge_receipts.request_id
        charge_receipts.source_reference charge_receipts.source_system credit_holds.model credit_holds.request_id
        credit_ledger.reason deposit_addresses.address findings.key findings.kind general_entries.reference
        governance_heartbeats.key ledger_accounts.code model_prices.model model_prices.provider
        payment_events.event_type price_sources.description price_versions.created_by price_versions.source users.id
        webhook_events.subject webhook_events.type
        """,
    ),
    (
        ADDRESS,
        """
        charge_authorizations.payer charge_authorizations.to_address charge_authorizations.token
        deposit_addresses.treasury login_challenges.wallet_address observed_transfers.from_address
        payment_attempts.from_address payment_attempts.token payment_methods.address price_sources.feed
        price_sources.second_feed price_sources.sequencer_feed settled_transfers.from_address
        sweep_transactions.sender users.wallet_address
        """,
    ),
    (LOWER_ADDRESS, "payment_destinations.to_address payment_destinations.token relayers.address"),
    (
        HASH,
        """
        charge_authorizations.executed_by charge_authorizations.nonce deposit_addresses.salt deposits.tx_hash
        observed_transfers.block_hash observed_transfers.tx_hash payment_attempts.tx_hash
        payment_authorizations.own_nonce relay_nonces.mined_tx_hash relay_transactions.tx_hash
        settled_transfers.block_hash settled_transfers.tx_hash sweep_transactions.tx_hash swept_transfers.block_hash
        swept_transfers.tx_hash transfer_finality.block_hash
        """,
    ),
    (DIGITS, "payment_methods.decimals price_quotes.decimals price_sources.decimals price_sources.second_decimals"),
    (SHARE, "payment_attempts.revenue_share transfer_credits.revenue_share"),
    (REVISION, "schema_compatibility.compatible_from schema_compatibility.revision"),
    (_length(1, 255), "call_claims.key idempotency_keys.key"),
    (_length(1, 200), "rate_limits.bucket"),
    (_length(1, 2_000), "login_challenges.message webhook_endpoints.url"),
    (Sides(["", "x" * 512], ["x" * 513]), "webhook_tries.response_head"),
    (_bytes(32, 32), "idempotency_keys.request_hash sessions.token_hash"),
    (_bytes(24, 64), "webhook_secrets.secret"),
    (_bytes_at_most(8_192), "charge_authorizations.signature payment_authorizations.signature"),
    (_bytes_at_most(65_536), "relay_transactions.raw"),
    (_bytes_at_most(131_072), "sweep_transactions.raw"),
    (_between(6, 100_000), "address_rings.gap_limit"),
    (_between(0, 2**31), "address_rings.next_index"),
    (Sides([0, 2**31 - 1], [-1]), "deposit_addresses.index"),
    (_between(1, 10_000), "price_sources.max_divergence_bps"),
    (Sides(["1", "2.5"], ["0.9999"]), "credit_holds.markup_factor"),
    (Sides([1, -1], [0]), "credit_ledger.amount"),
    (Sides([True], [False]), "books_checks.is_only"),
    (Sides([["payment.credited"]], [[]]), "webhook_endpoints.events"),
    (hexadecimal(8, prefix="", upper=False), "address_rings.fingerprint"),
    (Sides([ALPHANUMERIC, "a" * 16, "a" * 64], ["a" * 15, "a" * 65, "a" * 15 + "-"]), "login_challenges.nonce"),
    (Sides(["USDC:base", "a.b_C-1:2"], ["USDC", ":base", "USDC:", "a b:c", "a:b:c"]), "payment_methods.id"),
    (Sides(["USDC.e", "a_B-1"], ["", "a b", "a:b"]), "payment_methods.token"),
    (Sides(["x" * 100], ["", "  ", "x" * 101]), "operator_actions.operator"),
    (Sides(["x" * 2_000], ["", "  ", "x" * 2_001]), "operator_actions.reason"),
    (Sides(["acc", None], ["cogni_system"]), "transfer_credits.billing_account_id"),
    (_one_of("secp256k1"), "address_rings.curve"),
    (_one_of("balance_exhausted", "account_limit", "key_limit"), "billing_alerts.kind"),
    (_one_of("day", "month"), "billing_alerts.period"),
    (_one_of("entries", "lines", "events"), "books_checkpoints.stream"),
    (_one_of("executed", "expired"), "charge_authorizations.outcome"),
    (_one_of("held", "captured", "voided"), "credit_holds.state"),
    (_one_of("absorbed_cost", "sweep"), "general_entries.reason"),
    (_one_of("asset", "liability", "equity", "revenue", "expense"), "ledger_accounts.type"),
    (_one_of("worker", "upgrade", "intent"), "payment_destinations.noted_by"),
    (_one_of("succeeded", "reverted", "lost"), "relay_nonces.outcome"),
    (_one_of("succeeded", "reverted", "replaced"), "sweep_transactions.outcome"),
    (_one_of("sent", "done", "failed"), "sweeps.status"),
    (_one_of("whole", "surplus", "refund"), "transfer_credits.part"),
    (_one_of("final", "reversed"), "transfer_finality.outcome"),
    (_one_of("pending", "delivered", "failed", "stopped"), "webhook_deliveries.state"),
    (_one_of("deleted", "stopped_by_receiver"), "webhook_endpoints.disabled_reason"),
)
"""Of the CHECKs that are named after their column."""
