"""Connecting to Temporal, and the search attributes that the code registers."""

from __future__ import annotations

import asyncio
import re

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListSearchAttributesRequest,
    RemoveSearchAttributesRequest,
)
from temporalio.client import Client

from devstack.processes import quiet_port, wait_until
from domain.errors import ConfigurationError, StartupCheckFailed, TemporalUnavailable
from starter.temporal import (
    connect,
    count_pollers,
    list_missing_search_attributes,
    register_search_attributes,
    unreachable,
)
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.servers import Namespace

NAMES = ["PaymentPurpose", "PaymentStatus", "BillingAccountId", "ChainId", "TxHash"]


async def _remove(client: Client, names: list[str]) -> None:
    await client.operator_service.remove_search_attributes(
        RemoveSearchAttributesRequest(namespace=client.namespace, search_attributes=names)
    )


async def _types(client: Client) -> dict[str, int]:
    listed = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    return {name: int(kind) for name, kind in listed.custom_attributes.items() if name in NAMES}


async def test_search_attributes_are_registered_with_their_types_and_only_where_missing(namespace: Namespace) -> None:
    client = namespace.client
    assert await _types(client) == {
        name: int(
            IndexedValueType.INDEXED_VALUE_TYPE_INT
            if name == "ChainId"
            else IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        )
        for name in NAMES
    }
    assert await register_search_attributes(client) == []
    await _remove(client, ["TxHash", "ChainId"])
    assert await list_missing_search_attributes(client) == ["ChainId", "TxHash"]
    assert await register_search_attributes(client) == ["ChainId", "TxHash"]
    assert await list_missing_search_attributes(client) == []


async def test_two_processes_may_register_at_once(namespace: Namespace) -> None:
    await _remove(namespace.client, NAMES)
    await asyncio.gather(*(register_search_attributes(namespace.client) for _ in range(2)))
    assert await list_missing_search_attributes(namespace.client) == []


async def test_an_attribute_of_another_type_is_named_and_nothing_is_added(namespace: Namespace) -> None:
    client = namespace.client
    await _remove(client, ["ChainId", "TxHash"])
    request = AddSearchAttributesRequest(namespace=client.namespace)
    request.search_attributes["ChainId"] = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    await client.operator_service.add_search_attributes(request)
    with pytest.raises(StartupCheckFailed, match="search attribute ChainId"):
        await register_search_attributes(client)
    assert "TxHash" not in await _types(client)


async def test_a_namespace_that_does_not_exist_is_named(namespace: Namespace) -> None:
    stranger = await connect({"TEMPORAL_ADDRESS": namespace.address, "TEMPORAL_NAMESPACE": "nowhere"})
    with pytest.raises(StartupCheckFailed, match="no namespace nowhere"):
        await register_search_attributes(stranger)


async def test_a_server_that_is_not_there_is_unavailable_by_its_address(dead_temporal: Client) -> None:
    address = f"127.0.0.1:{quiet_port()}"
    with pytest.raises(TemporalUnavailable, match=re.escape(unreachable(address))) as refused:
        await connect({"TEMPORAL_ADDRESS": address})
    assert "\n" not in refused.value.message
    with pytest.raises(TemporalUnavailable):
        await list_missing_search_attributes(dead_temporal)


async def test_settings_that_the_sdk_cannot_read_are_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="Temporal's settings"):
        await connect({"TEMPORAL_CONFIG_FILE": "/nowhere/temporal.toml", "TEMPORAL_PROFILE": "nobody"})


async def test_the_workers_of_the_queue_are_counted(engine: Engine) -> None:
    client = engine.namespace.client
    assert await count_pollers(client, engine.chain.chain_id) == 0
    async with engine.worker():

        async def one() -> bool:
            return await count_pollers(client, engine.chain.chain_id) == 1

        await wait_until(one, timeout_seconds=PATIENCE_SECONDS, what="one worker")
