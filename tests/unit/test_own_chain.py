"""The rule that every activity begins with: another chain's work is handed back, and nothing is decided about it."""

from __future__ import annotations

import pytest
from temporalio.exceptions import ApplicationErrorCategory

from activities.interceptors import HANDED_BACK, to_application_error
from domain.chain import require_own_chain
from domain.errors import Refusal, WorkerOfAnotherChain
from workflows.naming import PLATFORM_TASK_QUEUE, chain_of_task_queue, schedule_id, schedule_name_of, task_queue


@pytest.mark.parametrize("chain_id", [1, None])
def test_work_of_the_own_chain_or_of_none_is_processed(chain_id: int | None) -> None:
    require_own_chain("attempt 7", chain_id, own=1)


def test_another_chains_work_is_not_and_the_error_names_the_missing_worker() -> None:
    with pytest.raises(WorkerOfAnotherChain) as caught:
        require_own_chain("attempt 7", 8453, own=1)
    for words in ("attempt 7", "chain 8453", "CHAIN_ID is 1", "CHAIN_ID=8453"):
        assert words in caught.value.message


def test_it_is_no_refusal_but_asked_again_soon_and_no_warning() -> None:
    error = WorkerOfAnotherChain("attempt 7", 8453, 1)
    assert not isinstance(error, Refusal)
    raised = to_application_error(error)
    assert (raised.type, raised.non_retryable, raised.next_retry_delay) == (error.code, False, HANDED_BACK)
    assert raised.category is ApplicationErrorCategory.BENIGN


def test_each_chain_has_its_own_queue_and_the_name_says_which() -> None:
    assert task_queue(8453) == "settlement-8453"
    assert chain_of_task_queue(task_queue(8453)) == 8453
    assert task_queue(None) == PLATFORM_TASK_QUEUE == "settlement"


@pytest.mark.parametrize("queue", ["settlement", "settlement-", "settlement-bare", "settlement--1", "8453"])
def test_other_names_are_no_queue_of_a_chain(queue: str) -> None:
    with pytest.raises(ValueError, match="task queue"):
        chain_of_task_queue(queue)


def test_a_schedule_of_a_chain_has_the_chain_in_its_id() -> None:
    assert schedule_id("beat") == "settle-beat"
    assert schedule_id("watch", 8453) == "settle-watch-8453"
    assert schedule_name_of("settle-watch-8453", 8453) == "watch"
    with pytest.raises(ValueError, match="schedule of ours"):
        schedule_name_of("settle-watch-8453", 1)
