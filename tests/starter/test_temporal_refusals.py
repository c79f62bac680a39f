"""Temporal that is there and refuses, as Temporal Cloud does: what is there needs no right, a refusal is named."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, RemoveSearchAttributesRequest
from temporalio.client import Client

from devstack.processes import quiet_port, wait_until
from domain.errors import ConfigurationError, SettleError, StartupCheckFailed, TemporalUnavailable
from domain.payments.attempt import AttemptStatus
from starter.temporal import (
    connect,
    count_pollers,
    is_serving,
    list_missing_search_attributes,
    register_search_attributes,
    registration_command,
)
from tests.cli.command import settle
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.grpc_gate import HEALTH, OPERATOR, WORKFLOW, Gate, Refusal, gate_before
from tests.support.servers import Namespace, TemporalServer
from tests.worker.process import running_worker
from workflows.naming import SEARCH_ATTRIBUTES

NAMES = [key.name for key in SEARCH_ATTRIBUTES]
UNAUTHORIZED = Refusal(grpc.StatusCode.PERMISSION_DENIED)
EXPIRED = Refusal(grpc.StatusCode.UNAUTHENTICATED, "token has expired")
BUSY = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "namespace rate limit exceeded")
ABSENT = Refusal(grpc.StatusCode.UNIMPLEMENTED, "unknown service")
AS_ON_CLOUD = {OPERATOR: UNAUTHORIZED, f"{WORKFLOW}GetSearchAttributes": UNAUTHORIZED}


@asynccontextmanager
async def gated(namespace: Namespace, refusals: dict[str, Refusal]) -> AsyncIterator[tuple[Gate, Client]]:
    """A gate before the namespace's server, and a client of it."""
    async with gate_before(namespace.address, refusals) as gate:
        yield gate, await connect({"TEMPORAL_ADDRESS": gate.address, "TEMPORAL_NAMESPACE": namespace.name})


async def _remove(client: Client, *names: str) -> None:
    await client.operator_service.remove_search_attributes(
        RemoveSearchAttributesRequest(namespace=client.namespace, search_attributes=names)
    )

    async def gone() -> bool:
        return set(await list_missing_search_attributes(client)) >= set(names)

    await wait_until(gone, timeout_seconds=PATIENCE_SECONDS, what="attributes that were removed")


# -- search attributes


@pytest.mark.parametrize("refusal", [UNAUTHORIZED, ABSENT, EXPIRED], ids=lambda refusal: refusal.code.name)
async def test_what_is_there_is_found_and_needs_no_right(namespace: Namespace, refusal: Refusal) -> None:
    async with gated(namespace, {OPERATOR: refusal}) as (gate, client):
        assert await list_missing_search_attributes(client) == []
        assert await register_search_attributes(client) == []
        assert not [path for path in gate.refused if "Add" in path]


async def test_what_is_missing_is_named_with_the_command_for_an_administrator(namespace: Namespace) -> None:
    await _remove(namespace.client, "ChainId", "TxHash")
    async with gated(namespace, AS_ON_CLOUD) as (_, client):

        async def found() -> bool:
            return await list_missing_search_attributes(client) == ["ChainId", "TxHash"]

        await wait_until(found, timeout_seconds=PATIENCE_SECONDS, what="what the visibility store lacks")
        with pytest.raises(StartupCheckFailed) as refused:
            await register_search_attributes(client)
    command = (
        f"search-attribute create --namespace {namespace.name} --name ChainId --type Int --name TxHash --type Keyword"
    )
    assert command in refused.value.message
    assert UNAUTHORIZED.words in refused.value.message
    assert "\n" not in refused.value.message


async def test_adding_may_be_allowed_where_listing_is_not(namespace: Namespace) -> None:
    await _remove(namespace.client, "TxHash")
    async with gated(namespace, {f"{OPERATOR}ListSearchAttributes": UNAUTHORIZED}) as (_, client):

        async def found() -> bool:
            return await list_missing_search_attributes(client) == ["TxHash"]

        await wait_until(found, timeout_seconds=PATIENCE_SECONDS, what="what the visibility store lacks")
        assert await register_search_attributes(client) == ["TxHash"]
    assert await list_missing_search_attributes(namespace.client) == []


async def test_another_type_is_found_without_the_operators_interface(namespace: Namespace) -> None:
    await _remove(namespace.client, "ChainId")
    request = AddSearchAttributesRequest(namespace=namespace.name)
    request.search_attributes["ChainId"] = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    await namespace.client.operator_service.add_search_attributes(request)
    async with gated(namespace, AS_ON_CLOUD) as (_, client):

        async def is_told() -> bool:
            try:
                await list_missing_search_attributes(client)
            except StartupCheckFailed as error:
                return "ChainId" in error.message and "another type" in error.message
            return False

        await wait_until(is_told, timeout_seconds=PATIENCE_SECONDS, what="the attribute's other type")


async def test_a_namespace_that_is_not_there_is_named_all_the_same(namespace: Namespace) -> None:
    async with gate_before(namespace.address, AS_ON_CLOUD) as gate:
        client = await connect({"TEMPORAL_ADDRESS": gate.address, "TEMPORAL_NAMESPACE": "nowhere"})
        with pytest.raises(StartupCheckFailed, match="no namespace nowhere"):
            await list_missing_search_attributes(client)
        with pytest.raises(StartupCheckFailed, match="no namespace nowhere"):
            await is_serving(client)


@pytest.mark.parametrize(
    ("address", "namespace", "command"),
    [
        ("ns.a1b2c.tmprl.cloud:7233", "ns.a1b2c",
         "tcld namespace search-attributes add --namespace ns.a1b2c --sa ChainId=Int"),
        ("us-west-2.aws.api.temporal.io:7233", "ns.a1b2c",
         "tcld namespace search-attributes add --namespace ns.a1b2c --sa ChainId=Int"),
        ("temporal.example:7233", "default",
         "temporal operator search-attribute create --namespace default --name ChainId --type Int"),
    ],
)  # fmt: skip
async def test_cloud_has_a_command_of_its_own(address: str, namespace: str, command: str) -> None:
    client = await connect({"TEMPORAL_ADDRESS": address, "TEMPORAL_NAMESPACE": namespace}, lazy=True)
    assert registration_command(client, ["ChainId"]) == command


# -- what is refused is said as what it is


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("refusal", "word"),
    [(UNAUTHORIZED, "does not permit"), (EXPIRED, "expired"), (BUSY, "rate limit"), (ABSENT, "does not offer")],
    ids=lambda value: value.code.name if isinstance(value, Refusal) else value,
)
async def test_a_refusal_is_not_silence(namespace: Namespace, refusal: Refusal, word: str) -> None:
    async with gated(namespace, {}) as (gate, client):
        gate.refusals[WORKFLOW] = refusal
        for ask in (is_serving, partial(count_pollers, chain_id=None)):
            with pytest.raises(SettleError) as refused:
                await ask(client)
            assert word in refused.value.message
            assert refusal.words in refused.value.message
            assert "does not answer" not in refused.value.message


async def test_a_gateway_that_does_not_pass_health_on_serves(namespace: Namespace) -> None:
    async with gated(namespace, {HEALTH: ABSENT}) as (_, client):
        assert await is_serving(client)


@pytest.mark.parametrize(
    ("refusal", "word"), [(UNAUTHORIZED, "does not permit"), (EXPIRED, "expired"), (BUSY, "rate limit")],
    ids=lambda value: value.code.name if isinstance(value, Refusal) else value,
)  # fmt: skip
async def test_credentials_that_are_refused_at_once_are_named(
    namespace: Namespace, refusal: Refusal, word: str
) -> None:
    async with gate_before(namespace.address, {WORKFLOW: refusal}) as gate:
        with pytest.raises(TemporalUnavailable) as refused:
            await connect({"TEMPORAL_ADDRESS": gate.address, "TEMPORAL_NAMESPACE": namespace.name})
    assert gate.address in refused.value.message
    assert word in refused.value.message
    assert refusal.words in refused.value.message


# -- what listens there is something else


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed key and certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


@asynccontextmanager
async def tls_server(certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """Something that speaks TLS and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, cert = certificate
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2"])

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _not_connected(variables: dict[str, str]) -> str:
    with pytest.raises(TemporalUnavailable) as refused:
        await connect(variables)
    message = refused.value.message
    assert "(TEMPORAL_ADDRESS)" in message
    assert "\n" not in message
    for inside in ("tonic", "hyper", "Custom {", "kind:"):
        assert inside not in message
    return message


@pytest.mark.slow
async def test_the_port_of_the_ui_is_not_temporals(temporal_server: TemporalServer) -> None:
    address = temporal_server.server.ui_url.removeprefix("http://")
    assert "UI" in await _not_connected({"TEMPORAL_ADDRESS": address})


@pytest.mark.slow
async def test_tls_before_a_server_without_it_and_the_reverse_are_named(
    namespace: Namespace, certificate: tuple[Path, Path]
) -> None:
    for variables in ({"TEMPORAL_TLS": "true"}, {"TEMPORAL_API_KEY": "a-key"}):
        message = await _not_connected({"TEMPORAL_ADDRESS": namespace.address, **variables})
        assert "TLS" in message
        assert "a-key" not in message
    async with tls_server(certificate) as port:
        assert "TEMPORAL_TLS" in await _not_connected({"TEMPORAL_ADDRESS": f"127.0.0.1:{port}"})
        trust = {"TEMPORAL_ADDRESS": f"localhost:{port}", "TEMPORAL_TLS": "true"}
        assert "certificate" in await _not_connected(trust)
        trust |= {"TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(certificate[1])}
        assert "certificate" in await _not_connected({**trust, "TEMPORAL_ADDRESS": f"127.0.0.1:{port}"})


async def test_an_empty_name_has_a_message_too() -> None:
    assert "refused" in await _not_connected({"TEMPORAL_ADDRESS": f"127.0.0.1:{quiet_port()}"})
    assert "name" in (await _not_connected({"TEMPORAL_ADDRESS": "nowhere.invalid:7233"})).lower()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEMPORAL_ADDRESS", "http://localhost:7233"),
        ("TEMPORAL_ADDRESS", "https://localhost:7233"),
        ("TEMPORAL_ADDRESS", "localhost"),
        ("TEMPORAL_ADDRESS", "localhost:"),
        ("TEMPORAL_ADDRESS", "localhost:99999"),
        ("TEMPORAL_ADDRESS", "localhost:７２３３"),
        ("TEMPORAL_ADDRESS", "localhost:7233/x"),
        ("TEMPORAL_ADDRESS", "a:7233,b:7233"),
        ("TEMPORAL_ADDRESS", "a:7233\nb:7233"),
        ("TEMPORAL_ADDRESS", "a:7233 b:7233"),
        ("TEMPORAL_ADDRESS", '"localhost:7233"'),
        ("TEMPORAL_ADDRESS", "\u200blocalhost:7233"),
        ("TEMPORAL_ADDRESS", "256.0.0.1:7233"),
        ("TEMPORAL_NAMESPACE", "a\nb"),
        ("TEMPORAL_NAMESPACE", "'default'"),
        ("TEMPORAL_NAMESPACE", " "),
        ("TEMPORAL_API_KEY", "hunter2\nhunter2"),
        ("TEMPORAL_API_KEY", '"hunter2"'),
        ("TEMPORAL_TLS", "maybe"),
        ("TEMPORAL_TLS_CLIENT_CERT_DATA", "hunter2"),
        ("TEMPORAL_TLS_SERVER_CA_CERT_PATH", "/nowhere/ca.pem"),
    ],
)
async def test_a_setting_of_temporals_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await connect({"TEMPORAL_ADDRESS": f"127.0.0.1:{quiet_port()}", name: value})
    assert "\n" not in refused.value.message
    assert "hunter2" not in refused.value.message


async def test_white_space_around_a_setting_of_temporals_is_no_part_of_it(namespace: Namespace) -> None:
    client = await connect(
        {"TEMPORAL_ADDRESS": f" {namespace.address}\r\n", "TEMPORAL_NAMESPACE": f"{namespace.name} "}
    )
    assert client.namespace == namespace.name
    assert await is_serving(client)
    client = await connect({"TEMPORAL_ADDRESS": namespace.address, "TEMPORAL_NAMESPACE": "", "TEMPORAL_API_KEY": ""})
    assert client.namespace == "default"


# -- the processes


@pytest.mark.slow
async def test_a_worker_settles_where_the_operators_interface_is_refused(engine: Engine, tmp_path: Path) -> None:
    async with (
        gate_before(engine.namespace.address, AS_ON_CLOUD) as gate,
        running_worker(tmp_path, engine.variables, TEMPORAL_ADDRESS=gate.address) as worker,
    ):
        assert (await worker.readiness())[0] == 200
        payer, intent, sent = await engine.buy()
        await engine.submit(payer, intent, sent)
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED
        found = (await asyncio.to_thread(
            settle, ("doctor", "--json"), {**engine.variables, "TEMPORAL_ADDRESS": gate.address}, tmp_path
        )).json()  # fmt: skip
        assert {check["name"]: check["ok"] for check in found["checks"]}["Temporal"]
        gate.refusals[WORKFLOW] = EXPIRED
        status, checks = await worker.readiness()
        assert status == 503
        assert "expired" in checks["temporal"]


async def test_a_worker_without_an_attribute_stops_with_the_command(engine: Engine, tmp_path: Path) -> None:
    await _remove(engine.namespace.client, "TxHash")
    async with gated(engine.namespace, AS_ON_CLOUD) as (gate, client):

        async def found() -> bool:
            return await list_missing_search_attributes(client) == ["TxHash"]

        await wait_until(found, timeout_seconds=PATIENCE_SECONDS, what="what the visibility store lacks")
        async with running_worker(tmp_path, engine.variables, TEMPORAL_ADDRESS=gate.address) as worker:
            exit_code, _ = await worker.ends(timeout_seconds=30)
    [line] = worker.log.splitlines()
    assert exit_code == 1
    assert "--name TxHash --type Keyword" in line


@pytest.mark.slow
async def test_doctor_says_what_it_may_not_know(engine: Engine, tmp_path: Path) -> None:
    refusals = {**AS_ON_CLOUD, f"{WORKFLOW}DescribeTaskQueue": UNAUTHORIZED, f"{WORKFLOW}ListSchedules": UNAUTHORIZED}
    async with gate_before(engine.namespace.address, refusals) as gate:
        variables = {**engine.variables, "TEMPORAL_ADDRESS": gate.address}
        found = (await asyncio.to_thread(settle, ("doctor", "--json"), variables, tmp_path)).json()
        checks = {check["name"]: (check["ok"], check["detail"]) for check in found["checks"]}
        assert checks["workers"][0]
        assert UNAUTHORIZED.words in checks["workers"][1]
        answer = await asyncio.to_thread(settle, ("schedules", "apply"), variables, tmp_path)
        assert answer.exit_code == 1
        assert "does not permit" in answer.stderr
        assert "Traceback" not in answer.stderr
