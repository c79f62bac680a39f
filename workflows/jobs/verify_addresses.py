"""Every deposit address derived again, each night: a key or treasury that was exchanged in the database is found."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.deposits.signatures import AddressesVerified, AddressSignatures
    from activities.messages import Message
    from workflows.naming import VERIFY_ADDRESSES
    from workflows.policies import BATCHES_HEARTBEAT, BATCHES_RETRY, BATCHES_START_TO_CLOSE


class VerifyAddressesInput(Message):
    """No settings: always all of them."""


@workflow.defn(name=VERIFY_ADDRESSES)
class VerifyAddresses:
    """One derivation of all addresses."""

    @workflow.run
    async def run(self, wanted: VerifyAddressesInput) -> AddressesVerified:
        """Lifecycle of a verification. What is found is in the findings; the run itself succeeds."""
        done = await workflow.execute_activity_method(
            AddressSignatures.verify_addresses,
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="derive every deposit address again",
        )
        counts = f"{done.checked} addresses derived again, {done.wrong_count} not as stored"
        workflow.set_current_details("; ".join([counts, *done.problems]))
        (workflow.logger.error if done.wrong_count else workflow.logger.info)(counts)
        return done
