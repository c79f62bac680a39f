"""The embedded Temporal goes on where it was."""

import socket
import sys
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from temporalio import workflow
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from devstack.temporal import EmbeddedTemporal, locate_test_server
from tests.support.parallel import process_number
from tests.support.servers import Namespace


@workflow.defn
class Waits:
    """Ends on request."""

    def __init__(self) -> None:
        self._go = False

    @workflow.run
    async def run(self, name: str) -> str:
        await workflow.wait_condition(lambda: self._go)
        return f"done, {name}"

    @workflow.signal
    def go(self) -> None:
        self._go = True


@pytest.mark.slow
async def test_a_workflow_started_before_a_kill_ends_after_it(tmp_path: Path) -> None:
    # Ports that no other test takes while this server is down.
    port = 22_000 + 10 * process_number()
    temporal = EmbeddedTemporal(tmp_path, port, port + 1, namespaces=["settle"])
    await temporal.start()
    try:
        address, ui_url = temporal.address, temporal.ui_url
        client = await Client.connect(address, namespace="settle")
        handle = await client.start_workflow(Waits.run, "you", id="waits", task_queue="q")
        async with aiohttp.ClientSession() as session, session.get(ui_url) as page:
            assert page.status == 200
        await temporal.kill()
        await temporal.start()
        assert (temporal.address, temporal.ui_url) == (address, ui_url)
        client = await Client.connect(address, namespace="settle")
        handle = client.get_workflow_handle_for(Waits.run, "waits")
        async with Worker(client, task_queue="q", workflows=[Waits], workflow_runner=UnsandboxedWorkflowRunner()):
            await handle.signal(Waits.go)
            assert await handle.result() == "done, you"
        await temporal.restart()
        assert temporal.address == address
        client = await Client.connect(address, namespace="settle")
        handle = client.get_workflow_handle_for(Waits.run, "waits")
        assert await handle.result() == "done, you"
    finally:
        await temporal.stop()
    assert not temporal.is_running


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of its own on Linux only")
async def test_it_listens_on_127_0_0_1_only(tmp_path: Path) -> None:
    temporal = EmbeddedTemporal(tmp_path)
    await temporal.start()
    try:
        for address in (temporal.address, temporal.ui_url.removeprefix("http://")):
            port = int(address.rpartition(":")[2])
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=2)
    finally:
        await temporal.stop()


async def test_it_ends_the_polls_of_a_worker_that_stops(namespace: Namespace) -> None:
    """Where the server says so of a namespace, the SDK waits for it, and loses fewer tasks."""
    asked = DescribeNamespaceRequest(namespace=namespace.name)
    described = await namespace.client.workflow_service.describe_namespace(asked)
    assert described.namespace_info.capabilities.worker_poll_complete_on_shutdown


async def test_the_time_skipping_server_is_found_and_skips_time() -> None:
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(locate_test_server())
    ) as environment:
        before = await environment.get_current_time()
        await environment.sleep(timedelta(hours=1))
        assert await environment.get_current_time() - before >= timedelta(hours=1)
