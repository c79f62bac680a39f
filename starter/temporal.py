"""Connection to Temporal by its standard environment variables, and registration of our search attributes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from temporalio.api.enums.v1 import IndexedValueType, TaskQueueType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    DescribeNamespaceRequest,
    DescribeTaskQueueRequest,
)
from temporalio.client import Client, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.common import SearchAttributeKey
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TerminatedError
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode

from activities.interceptors import from_application_error
from domain.errors import (
    ConfigurationError,
    SettleError,
    StartupCheckFailed,
    TemporalBusy,
    TemporalRefused,
    TemporalRequestInvalid,
    TemporalUnavailable,
)
from domain.setting_values import Unusable, clean_text, host_and_port
from workflows.naming import RESOLVE_FINDING, SEARCH_ATTRIBUTES, VERIFY_AND_SETTLE, WATCH_CHAIN, task_queue

CONNECT_TIMEOUT_SECONDS: Final = 10
RPC_TIMEOUT: Final = timedelta(seconds=5)

REFUSED: Final = frozenset(
    {RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED, RPCStatusCode.UNIMPLEMENTED}
)
"""Errors of a reachable server that a retry does not fix."""

_CREDENTIALS: Final = "TEMPORAL_API_KEY, or the client's certificate"
_MEANINGS: Final[Mapping[RPCStatusCode, tuple[type[SettleError], str]]] = {
    RPCStatusCode.UNAUTHENTICATED: (
        TemporalRefused,
        f"does not know these credentials, which may have expired ({_CREDENTIALS})",
    ),
    RPCStatusCode.PERMISSION_DENIED: (TemporalRefused, f"does not permit this with these credentials ({_CREDENTIALS})"),
    RPCStatusCode.RESOURCE_EXHAUSTED: (TemporalBusy, "is overloaded, or over its rate limit"),
    RPCStatusCode.INVALID_ARGUMENT: (TemporalRequestInvalid, "does not accept this request"),
    RPCStatusCode.OUT_OF_RANGE: (TemporalRequestInvalid, "does not accept this request"),
    RPCStatusCode.UNIMPLEMENTED: (TemporalRequestInvalid, "does not offer this"),
}
_NOT_CONNECTED: Final = (
    ("code: Unauthenticated", _MEANINGS[RPCStatusCode.UNAUTHENTICATED][1]),
    ("code: PermissionDenied", _MEANINGS[RPCStatusCode.PERMISSION_DENIED][1]),
    ("code: ResourceExhausted", _MEANINGS[RPCStatusCode.RESOURCE_EXHAUSTED][1]),
    (
        "InvalidContentType",
        "the server there does not use TLS, which TEMPORAL_TLS, a certificate or TEMPORAL_API_KEY asks for",
    ),
    ("UnknownIssuer", "its certificate is of an unknown authority (TEMPORAL_TLS_SERVER_CA_CERT_PATH)"),
    ("NotValidForName", "its certificate is for another name (TEMPORAL_TLS_SERVER_NAME)"),
    ("InvalidCertificate", "its certificate is not valid"),
    (
        "tonic::transport::Error(Transport, hyper",
        "the server there does not use gRPC without TLS: it is another server, such as Temporal's UI, or expects TLS "
        "(TEMPORAL_TLS=true)",
    ),
)
"""Fragments of the SDK's error text, and their meaning."""
_SAID: Final = re.compile(r'(?:message|error): "([^"]{1,200})"')

_TRUTHS: Final = frozenset({"true", "false", "1", "0"})
_EXPECTED: Final = {
    "TEMPORAL_ADDRESS": "host:port, such as localhost:7233",
    "TEMPORAL_NAMESPACE": "a namespace's name",
    "TEMPORAL_API_KEY": "a key on one line",
    "TEMPORAL_TLS": "true or false",
}

_CLOUD_HOSTS: Final = (".tmprl.cloud", ".temporal.io")
_KINDS: Final = {
    IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD: "Keyword",
    IndexedValueType.INDEXED_VALUE_TYPE_INT: "Int",
}
_PROBES: Final = {
    int(IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD): "'none'",
    int(IndexedValueType.INDEXED_VALUE_TYPE_INT): "-1",
}
"""A value of each of our types for a query; the server refuses one of another type."""
_OTHER_TYPE: Final = "invalid value type"


def unreachable(address: object) -> str:
    """How the message begins about a Temporal that does not answer at its address."""
    return f"Temporal cannot be reached at {address} (TEMPORAL_ADDRESS)"


def no_namespace(name: str) -> str:
    """The message about a namespace that Temporal does not have."""
    return f"Temporal has no namespace {name} (TEMPORAL_NAMESPACE)"


async def connect(variables: Mapping[str, str], *, runtime: Runtime | None = None, lazy: bool = False) -> Client:
    """A client for the address, namespace, TLS and profile in `variables` (Temporal's own names).

    An empty variable counts as not set. With `lazy` it does not connect yet. Raises `ConfigurationError` and
    `TemporalUnavailable`.
    """
    given = {name: _clean(name, value) for name, value in variables.items() if value != ""}
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=given)
    except Exception as error:  # the SDK's loader raises plain exceptions for an invalid file or profile
        raise ConfigurationError(f"Temporal's settings: {error}") from error
    config["target_host"] = _address(config.get("target_host") or "localhost:7233")
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            return await Client.connect(**config, data_converter=pydantic_data_converter, runtime=runtime, lazy=lazy)
    except ValueError as error:  # a key without a certificate, or the reverse
        raise ConfigurationError(f"Temporal's settings: {error}") from error
    except (RuntimeError, TimeoutError) as error:
        raise TemporalUnavailable(f"{unreachable(config['target_host'])}: {_why_not_connected(error)}") from error


def _clean(name: str, value: str) -> str:
    """One of Temporal's variables without surrounding white space; certificates have many lines and stay unchanged."""
    if not name.startswith("TEMPORAL_") or name.endswith("_DATA"):
        return value
    try:
        text = clean_text(value)
    except Unusable as error:
        raise ConfigurationError.invalid(name, error, _EXPECTED.get(name, "a plain value")) from None
    if name == "TEMPORAL_TLS" and text.lower() not in _TRUTHS:
        raise ConfigurationError.invalid(name, f"{text!r:.40}", _EXPECTED[name])
    return text


def _address(text: str) -> str:
    try:
        return host_and_port(text)
    except ValueError as error:
        reason = error if isinstance(error, Unusable) else "an invalid address"
        raise ConfigurationError.invalid("TEMPORAL_ADDRESS", reason, _EXPECTED["TEMPORAL_ADDRESS"]) from None


def _why_not_connected(error: RuntimeError | TimeoutError) -> str:
    """The SDK's error in operators' terms, without the internals of its transport."""
    text = str(error)
    said = next((found[1] for found in _SAID.finditer(text)), None)
    for sign, meaning in _NOT_CONNECTED:
        if sign in text:
            return f"{meaning}: {said}" if said and sign.startswith("code: ") else meaning
    if said is None and text and "tonic" not in text:
        return _first_line(error)
    return said or ("the connection failed" if text else "no answer in time")


async def is_serving(client: Client) -> bool:
    """Check that Temporal is serving, and accepts these credentials in this namespace.

    Raises `TemporalUnavailable`, and `StartupCheckFailed` without the namespace.
    """
    with answered(client):
        try:
            serves = await client.service_client.check_health(timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status not in REFUSED:  # a gateway may not pass it on; the next call has details
                raise
            serves = True
        # The first call of every worker. The health check is public, also with an expired key.
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=client.namespace), timeout=RPC_TIMEOUT
        )
    return serves


async def register_search_attributes(client: Client) -> list[str]:
    """Register the missing search attributes; returns the names of those added. Safe to repeat.

    Where all exist, nothing is registered and no permission is needed. Raises as `list_missing_search_attributes` does,
    and `StartupCheckFailed` where adding is refused.
    """
    missing = await list_missing_search_attributes(client)
    if missing:
        try:
            await add_search_attributes(client, missing)
        except SettleError as error:
            reason = refusal_of(error)
            if reason is None:
                raise
            raise StartupCheckFailed(
                f"Temporal's namespace {client.namespace} lacks the search attributes {', '.join(missing)}, and these "
                f"credentials may not add them ({reason}); as an administrator run: "
                f"{registration_command(client, missing)}"
            ) from error
    return missing


def registration_command(client: Client, names: Collection[str]) -> str:
    """The command with which an operator adds these search attributes, for Temporal Cloud or a self-hosted server.

    Cloud does not expose the operator API: there attributes are added with its control plane's tool.
    """
    host = client.service_client.config.target_host.rpartition(":")[0]
    keys = [key for key in SEARCH_ATTRIBUTES if key.name in names]
    kinds = {key.name: _KINDS[IndexedValueType.ValueType(int(key.indexed_value_type))] for key in keys}
    if host.endswith(_CLOUD_HOSTS):
        flags = " ".join(f"--sa {name}={kind}" for name, kind in kinds.items())
        return f"tcld namespace search-attributes add --namespace {client.namespace} {flags}"
    flags = " ".join(f"--name {name} --type {kind}" for name, kind in kinds.items())
    return f"temporal operator search-attribute create --namespace {client.namespace} {flags}"


async def add_search_attributes(client: Client, names: Collection[str]) -> None:
    """Register these search attributes without checking existing ones. Raises `TemporalUnavailable`."""
    request = AddSearchAttributesRequest(namespace=client.namespace)
    for key in SEARCH_ATTRIBUTES:
        if key.name in names:
            request.search_attributes[key.name] = IndexedValueType.ValueType(int(key.indexed_value_type))
    with answered(client):
        await client.operator_service.add_search_attributes(request, timeout=RPC_TIMEOUT)


async def list_missing_search_attributes(client: Client) -> list[str]:
    """Names of our search attributes that the namespace does not have.

    Raises `TemporalUnavailable`, and `StartupCheckFailed` when one exists with another type: adding ours would be
    accepted and ignored.
    """
    try:
        with answered(client):
            listed = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace=client.namespace), timeout=RPC_TIMEOUT
            )
    except SettleError as error:
        if refusal_of(error) is None:
            raise
        return await _probe_missing_search_attributes(client)
    found = listed.custom_attributes
    for key in SEARCH_ATTRIBUTES:
        if found.get(key.name, int(key.indexed_value_type)) != int(key.indexed_value_type):
            raise _another_type(key.name)
    return [key.name for key in SEARCH_ATTRIBUTES if key.name not in found]


async def _probe_missing_search_attributes(client: Client) -> list[str]:
    """The same without the operator API, as on Temporal Cloud: a query may only use existing attributes."""
    if await _may_be_queried(client, *SEARCH_ATTRIBUTES):
        return []
    return [key.name for key in SEARCH_ATTRIBUTES if not await _may_be_queried(client, key)]


async def _may_be_queried(client: Client, *keys: SearchAttributeKey[Any]) -> bool:
    query = " OR ".join(f"{key.name} = {_PROBES[int(key.indexed_value_type)]}" for key in keys)
    request = CountWorkflowExecutionsRequest(namespace=client.namespace, query=query)
    try:
        with answered(client):
            await client.workflow_service.count_workflow_executions(request, timeout=RPC_TIMEOUT)
    except TemporalRequestInvalid as error:
        if refusal_of(error) is not None:
            raise
        if len(keys) == 1 and _OTHER_TYPE in error.message:
            raise _another_type(keys[0].name) from None
        return False
    return True


def _another_type(name: str) -> StartupCheckFailed:
    return StartupCheckFailed(
        f"Temporal has a search attribute {name} of another type; remove it with "
        f"`temporal operator search-attribute remove --name {name}`"
    )


async def count_pollers(client: Client, chain_id: int | None) -> int:
    """How many workers poll the workflow tasks of a chain's queue (None: of the platform's).

    Raises `TemporalUnavailable`.
    """
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=task_queue(chain_id)),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    with answered(client):
        answer = await client.workflow_service.describe_task_queue(request, timeout=RPC_TIMEOUT)
    return len({poller.identity for poller in answer.pollers})


async def count_left_behind(client: Client) -> int:
    """Runs of chains that are still on the queue which all chains shared up to schema revision 0003.

    Raises `TemporalUnavailable`.
    """
    types = ", ".join(f"'{name}'" for name in (VERIFY_AND_SETTLE, WATCH_CHAIN, RESOLVE_FINDING))
    query = f"TaskQueue = '{task_queue(None)}' AND ExecutionStatus = 'Running' AND WorkflowType IN ({types})"
    with answered(client):
        return (await client.count_workflows(query, rpc_timeout=RPC_TIMEOUT)).count


def refusal_of(error: SettleError) -> str | None:
    """Errors of a reachable Temporal that does not permit or support a request."""
    cause = error.__cause__
    return _first_line(cause) if isinstance(cause, RPCError) and cause.status in REFUSED else None


@contextmanager
def answered(client: Client) -> Iterator[None]:
    """Convert the SDK's errors in the block: `TemporalUnavailable`, and `StartupCheckFailed` without a namespace."""
    try:
        yield
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise StartupCheckFailed(no_namespace(client.namespace)) from error
        raise to_temporal_unavailable(error) from error
    except RuntimeError as error:
        raise to_temporal_unavailable(error) from error


def to_temporal_unavailable(error: RPCError | RuntimeError | TimeoutError) -> SettleError:
    """Convert an error of the SDK by its status.

    A client that connects lazily raises a bare `RuntimeError` where no server listens.
    """
    if not isinstance(error, RPCError):
        return TemporalUnavailable(f"Temporal does not answer: {_why_not_connected(error)}")
    kind, meaning = _MEANINGS.get(error.status, (TemporalUnavailable, "does not answer"))
    if error.status == RPCStatusCode.NOT_FOUND and _is_about_the_namespace(error):
        kind, meaning = TemporalRefused, "has no such namespace (TEMPORAL_NAMESPACE)"
    return kind(f"Temporal {meaning}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return f"{(str(error).splitlines() or ['no answer in time'])[0]:.200}"


def refused_with(error: WorkflowUpdateFailedError | WorkflowFailureError) -> SettleError:
    """The error that a workflow returned for an update, or ended with, as it was raised."""
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
    """Whether it means that the namespace is missing, and not, as a usual NOT_FOUND does, a workflow."""
    if not isinstance(error, RPCError):
        return False
    return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)
