"""The file of upstreams: what it may say, and that a mistake in it is named."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import yaml

from domain.billing.price_book import version_of
from domain.billing.pricing import cost_usd
from domain.billing.upstreams import OnClientAbort, PriceOverride, Upstreams, UsageLookup, read_upstreams
from domain.billing.usage import Usage
from domain.errors import ConfigurationError

FILE = """
upstreams:
  - name: local
    base_url: http://127.0.0.1:9400/v1/
    models: [dev-small, "gpt-4o*"]
  - name: openrouter
    base_url: https://openrouter.ai/api/v1
    api_key_env: OPENROUTER_API_KEY
    models: ["*"]
    on_client_abort: drains
    usage_lookup: openrouter
prices:
  dev-small: {input_per_million_usd: 0.1, output_per_million_usd: "0.4", cached_input_per_million_usd: 0.01}
"""


def read(text: str) -> Upstreams:
    return read_upstreams(yaml.safe_load(text), where="upstreams.yaml")


def test_upstreams_are_tried_in_the_order_of_the_file() -> None:
    upstreams = read(FILE)
    assert [upstream.name for upstream in upstreams.for_model("gpt-4o-mini")] == ["local", "openrouter"]
    assert [upstream.name for upstream in upstreams.for_model("claude-fable")] == ["openrouter"]
    local, openrouter = upstreams.upstreams
    assert local.base_url == "http://127.0.0.1:9400/v1"
    assert local.named_models == ("dev-small",)
    assert (local.on_client_abort, local.usage_lookup) == (OnClientAbort.STOPS, UsageLookup.NONE)
    assert (openrouter.on_client_abort, openrouter.usage_lookup) == (OnClientAbort.DRAINS, UsageLookup.OPENROUTER)


def test_a_price_is_as_exact_as_its_text() -> None:
    rates = read(FILE).prices["dev-small"].rates
    usage = Usage({"input_tokens": 3, "cache_read_tokens": 1, "output_tokens": 1})
    assert cost_usd(rates.price(usage)) == Decimal("0.00000061")


@pytest.mark.parametrize(
    ("fields", "units", "cost"),
    [
        ({"image_usd": "0.04"}, {"images": 3, "output_tokens": 9}, "0.12"),
        ({"audio_minute_usd": "0.006"}, {"audio_seconds": 30, "input_audio_seconds": 30}, "0.003"),
        ({"characters_per_million_usd": 15}, {"input_characters": 200, "input_tokens": 50}, "0.003"),
        (
            {"input_per_million_usd": 1, "output_per_million_usd": 1, "image_usd": 1},
            {"images": 1, "input_tokens": 1_000_000},
            "2",
        ),
    ],
)
def test_images_recordings_and_characters_have_prices_of_their_own(
    fields: dict[str, object], units: dict[str, int], cost: str
) -> None:
    override = PriceOverride.model_validate(fields)
    assert cost_usd(override.rates.price(Usage(units))) == Decimal(cost)
    assert override.rates.highest_cost(units.get("input_tokens", 0), 0, units) == Fraction(cost)


def test_the_version_of_a_price_is_that_of_its_fields_alone() -> None:
    tokens = {"input_per_million_usd": "0.1", "output_per_million_usd": "0.4"}
    # As receipts have named it before there were other fields.
    assert version_of(PriceOverride.model_validate(tokens)) == "upstreams-file:d0854544a90e"
    assert version_of(PriceOverride.model_validate({**tokens, "image_usd": 1})) != "upstreams-file:d0854544a90e"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"upstreams": []}, "upstreams"),
        ({"upstream": []}, "upstream: Extra inputs"),
        (
            {"prices": {"m": {"input_per_million_usd": -1, "output_per_million_usd": 1}}},
            "prices.m.input_per_million_usd",
        ),
        ({"prices": {"m": {"input_per_million_usd": float("nan"), "output_per_million_usd": 1}}}, "prices.m.input"),
        ({"prices": {"m": {"input_per_million_usd": True, "output_per_million_usd": 1}}}, "prices.m.input"),
        ({"prices": {"m": {"output_per_million_usd": 1}}}, "prices.m: expected input_per_million_usd"),
        (
            {"prices": {"m": {"image_usd": 1, "cached_input_per_million_usd": 1}}},
            "prices.m: expected input_per_million",
        ),
        ({"prices": {"m": {}}}, "prices.m: expected a price"),
        ({"prices": {"m": {"image_usd": -1}}}, "prices.m.image_usd"),
    ],
)
def test_a_mistake_in_the_file_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"upstreams.yaml is invalid: .*{named}"):
        read_upstreams({**yaml.safe_load(FILE), **change}, where="upstreams.yaml")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Local"),
        ("name", ""),
        ("base_url", "ftp://127.0.0.1"),
        ("base_url", "127.0.0.1:9400"),
        ("base_url", "http://127.0.0.1/v1?key=secret"),
        ("api_key_env", "sk-secret"),
        ("api_key", "sk-secret"),
        ("models", []),
        ("models", [""]),
        ("on_client_abort", "waits"),
        ("usage_lookup", "openai"),
    ],
)
def test_a_mistake_in_an_upstream_is_named_without_its_value(field: str, value: object) -> None:
    document = yaml.safe_load(FILE)
    document["upstreams"][0][field] = value
    with pytest.raises(ConfigurationError, match=rf"upstreams\.0\.{field}") as caught:
        read_upstreams(document, where="upstreams.yaml")
    assert "secret" not in str(caught.value)


def test_two_upstreams_have_two_names() -> None:
    document = yaml.safe_load(FILE)
    document["upstreams"][1]["name"] = "local"
    with pytest.raises(ConfigurationError, match="named local"):
        read_upstreams(document, where="upstreams.yaml")


@pytest.mark.parametrize("document", [None, [], "upstreams", 7])
def test_a_file_that_is_no_mapping_is_refused(document: object) -> None:
    with pytest.raises(ConfigurationError, match="upstreams.yaml is invalid: the file"):
        read_upstreams(document, where="upstreams.yaml")
