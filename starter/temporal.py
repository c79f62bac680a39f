"""Connecting to Temporal by its standard environment variables, and making sure it knows our search attributes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from temporalio.api.enums.v1 import IndexedValueType, TaskQueueType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TerminatedError
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import from_application_error
from domain.errors import (
    ConfigurationError,
    SettleError,
    StartupCheckFailed,
    TemporalBusy,
    TemporalRefused,
    TemporalRequestInvalid,
    TemporalUnavailable,
)
from workflows.naming import SEARCH_ATTRIBUTES, TASK_QUEUE

CONNECT_TIMEOUT_SECONDS: Final = 10
RPC_TIMEOUT: Final = timedelta(seconds=5)


async def connect(variables: Mapping[str, str], *, runtime: Runtime | None = None, lazy: bool = False) -> Client:
    """A client for the address, namespace, TLS and profile in `variables` (Temporal's own names).

    With `lazy` nothing is asked of the server yet. Raises `ConfigurationError` and `TemporalUnavailable`.
    """
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=variables)
    except Exception as error:  # the SDK's loader raises plain exceptions for a bad file or profile
        raise ConfigurationError(f"Temporal's settings: {error}") from error
    config.setdefault("target_host", "localhost:7233")
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            return await Client.connect(**config, data_converter=pydantic_data_converter, runtime=runtime, lazy=lazy)
    except (RuntimeError, TimeoutError) as error:
        raise TemporalUnavailable(
            f"Temporal cannot be reached at {config['target_host']} (TEMPORAL_ADDRESS): "
            f"{str(error).splitlines()[0] if str(error) else 'no answer'}"
        ) from error


async def register_search_attributes(client: Client) -> list[str]:
    """Add the search attributes that are missing; the names of those added. Safe to repeat.

    Raises as `list_missing_search_attributes` does.
    """
    missing = await list_missing_search_attributes(client)
    if missing:
        await add_search_attributes(client, missing)
    return missing


async def add_search_attributes(client: Client, names: Collection[str]) -> None:
    """Add these of our search attributes, without a look at what is there."""
    request = AddSearchAttributesRequest(namespace=client.namespace)
    for key in SEARCH_ATTRIBUTES:
        if key.name in names:
            request.search_attributes[key.name] = IndexedValueType.ValueType(int(key.indexed_value_type))
    with answered(client):
        await client.operator_service.add_search_attributes(request, timeout=RPC_TIMEOUT)


async def list_missing_search_attributes(client: Client) -> list[str]:
    """Names of our search attributes that the namespace does not have.

    Raises `TemporalUnavailable`, and `StartupCheckFailed` when one exists with another type: adding ours would
    be accepted and ignored.
    """
    with answered(client):
        listed = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace), timeout=RPC_TIMEOUT
        )
    found = listed.custom_attributes
    for key in SEARCH_ATTRIBUTES:
        if found.get(key.name, int(key.indexed_value_type)) != int(key.indexed_value_type):
            raise StartupCheckFailed(
                f"Temporal has a search attribute {key.name} of another type; remove it with "
                f"`temporal operator search-attribute remove --name {key.name}`"
            )
    return [key.name for key in SEARCH_ATTRIBUTES if key.name not in found]


async def count_pollers(client: Client) -> int:
    """How many workers ask for workflow tasks of our queue. Raises `TemporalUnavailable`."""
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=TASK_QUEUE),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    with answered(client):
        answer = await client.workflow_service.describe_task_queue(request, timeout=RPC_TIMEOUT)
    return len({poller.identity for poller in answer.pollers})


@contextmanager
def answered(client: Client) -> Iterator[None]:
    """The SDK's errors in the block as ours: `TemporalUnavailable`, and `StartupCheckFailed` without a namespace."""
    try:
        yield
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise StartupCheckFailed(f"Temporal has no namespace {client.namespace} (TEMPORAL_NAMESPACE)") from error
        raise does_not_answer(error) from error
    except RuntimeError as error:
        raise does_not_answer(error) from error


def does_not_answer(error: RPCError | RuntimeError | TimeoutError) -> SettleError:
    """The SDK's error as ours, each as what it is.

    A client that connects lazily raises a bare `RuntimeError` where nobody listens.
    """
    words = f"{(str(error).splitlines() or ['no answer in time'])[0]:.200}"
    match error.status if isinstance(error, RPCError) else None:
        case RPCStatusCode.PERMISSION_DENIED | RPCStatusCode.UNAUTHENTICATED:
            return TemporalRefused(f"Temporal does not let this process in (TEMPORAL_API_KEY, TLS): {words}")
        case RPCStatusCode.NOT_FOUND if _is_about_the_namespace(error):
            return TemporalRefused(f"Temporal has no such namespace (TEMPORAL_NAMESPACE): {words}")
        case RPCStatusCode.RESOURCE_EXHAUSTED:
            return TemporalBusy(f"Temporal has too much to do: {words}")
        case RPCStatusCode.INVALID_ARGUMENT | RPCStatusCode.UNIMPLEMENTED | RPCStatusCode.OUT_OF_RANGE:
            return TemporalRequestInvalid(f"Temporal does not take this request: {words}")
        case _:
            return TemporalUnavailable(f"Temporal does not answer: {words}")


def refused_with(error: WorkflowUpdateFailedError | WorkflowFailureError) -> SettleError:
    """What a workflow has answered an update, or ended with, as the error that it was where it was raised."""
    cause = error.cause
    if isinstance(cause, ActivityError) and isinstance(cause.cause, ApplicationError):
        cause = cause.cause
    if isinstance(cause, ApplicationError):
        return from_application_error(cause)
    if isinstance(cause, CancelledError | TerminatedError):
        # The same call again finds the end of the run, or starts another.
        return TemporalUnavailable(f"the run was stopped before it could answer: {cause}")
    return SettleError(f"the workflow has failed: {cause}")


def _is_about_the_namespace(error: Exception) -> bool:
    """Whether it says that the namespace is not there, and not, as a usual NOT_FOUND does, that a workflow is not."""
    if not isinstance(error, RPCError):
        return False
    return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)
