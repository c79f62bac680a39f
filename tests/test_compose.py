"""docker-compose.yml fits together: no engine is needed to find a name that leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from devstack.chain import LocalChain
from settings import Settings, load

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


PROVIDERS_KEYS = {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"}
"""No settings: a file of upstreams may name any variable."""


def with_defaults(text: str) -> str:
    """A value as docker-compose makes it in an empty environment."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize(
    ("service", "needed", "condition"),
    [
        (name, needed, how["condition"])
        for name, service in SERVICES.items()
        for needed, how in service.get("depends_on", {}).items()
    ],
)
def test_what_a_service_waits_for_can_happen(service: str, needed: str, condition: str) -> None:
    assert needed in SERVICES, service
    assert "profiles" not in SERVICES[needed], f"{service} would pull in {needed}"
    match condition:
        case "service_healthy":
            assert SERVICES[needed]["healthcheck"]["test"]
        case "service_completed_successfully":
            assert SERVICES[needed]["restart"] == "on-failure", f"{needed} would be started again when it is done"
        case _:
            pytest.fail(f"{service} waits for {needed} to be {condition}")


@pytest.mark.parametrize("name", ["worker", "api"])
def test_worker_and_api_start_after_migrations_and_namespace(name: str) -> None:
    assert set(SERVICES[name]["depends_on"]) == {"migrate", "temporal-namespace"}


def test_the_published_port_of_the_api_is_the_one_that_its_address_names() -> None:
    environment = {key: with_defaults(value) for key, value in SERVICES["api"]["environment"].items()}
    [published] = [with_defaults(port).split(":") for port in SERVICES["api"]["ports"]]
    assert published[2] == environment["API_PORT"]
    assert load(environment).api_url == f"http://localhost:{published[1]}"


def test_the_gateway_has_one_password_and_the_file_that_its_settings_name() -> None:
    gateway = SERVICES["gateway"]
    assert {key for key in gateway["environment"] if key.endswith("DATABASE_URL")} == {"DATABASE_URL"}
    [config] = gateway["configs"]
    assert config["target"] == gateway["environment"]["UPSTREAMS_FILE"]
    assert set(COMPOSE["configs"]) == {config["source"]}
    [published] = [with_defaults(port).split(":") for port in gateway["ports"]]
    assert published[2] == gateway["environment"]["GATEWAY_PORT"]
    assert with_defaults(gateway["environment"]["GATEWAY_URL"]) == f"http://localhost:{published[1]}"


def test_the_relay_has_one_password_and_no_other_service_its_key() -> None:
    relay = SERVICES["relay"]
    assert {key for key in relay["environment"] if key.endswith("DATABASE_URL")} == {"RELAY_DATABASE_URL"}
    with_key = {
        name
        for name, service in SERVICES.items()
        if any("PRIVATE_KEY" in key for key in service.get("environment", ()))
    }
    assert with_key == {"relay"}


def test_relay_and_api_call_the_same_factories_of_wallets() -> None:
    of_both = [SERVICES[name]["environment"]["SMART_WALLET_FACTORIES"] for name in ("api", "relay")]
    assert of_both[0] == of_both[1]


def test_no_two_services_want_the_same_port_of_this_machine() -> None:
    taken = [with_defaults(port).split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize("name", ["worker", "migrate", "api", "schedules", "gateway", "relay"])
def test_every_setting_of_ours_is_one_and_has_a_good_value(name: str) -> None:
    known = {str(field.alias) for field in Settings.model_fields.values()} | PROVIDERS_KEYS
    environment = {key: with_defaults(value) for key, value in SERVICES[name]["environment"].items()}
    assert {key for key in environment if not key.startswith("TEMPORAL_")} <= known
    load(environment)


def test_the_local_chain_is_the_one_the_settings_name(tmp_path: Path) -> None:
    chain = LocalChain(tmp_path)
    settings = load({key: with_defaults(value) for key, value in SERVICES["worker"]["environment"].items()})
    assert settings.chain_id == chain.chain_id
    assert settings.usdc_token_address == chain.token_address
    assert settings.treasury_address == chain.treasury_address


def test_ports_are_published_on_this_machine_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)


def test_every_named_volume_is_declared() -> None:
    used = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])
