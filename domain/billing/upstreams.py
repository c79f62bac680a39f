"""The upstreams that calls are passed on to: `UPSTREAMS_FILE`, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from domain.billing.pricing import IMAGES, ModelRates, Rate
from domain.errors import ConfigurationError

MODEL_CHARS_MAX: Final = 200
MINUTES_PER_HOUR: Final = 60
"""Audio is priced by the minute, and in the price book by the hour."""


class OnClientAbort(StrEnum):
    """What an upstream does when its caller hangs up."""

    STOPS = "stops"
    """It stops, and bills what it wrote until then."""
    DRAINS = "drains"
    """It goes on, and bills all: so the gateway reads to the end, within bounds."""


class UsageLookup(StrEnum):
    """Where the record of a call can be asked for later."""

    NONE = "none"
    OPENROUTER = "openrouter"
    LITELLM = "litellm"


class CostKind(StrEnum):
    """How a provider reports what it billed for a day."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OPENROUTER = "openrouter"
    LITELLM = "litellm"


def _http_address(value: str) -> str:
    address = urlsplit(value)
    if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
        raise ValueError("expected an http or https address without a query")
    return value.rstrip("/")


def _exact(value: object) -> object:
    """YAML reads 0.1 as a float; its text is what was meant."""
    if isinstance(value, bool):
        raise ValueError("expected a decimal number")
    return repr(value) if isinstance(value, float) else value


Price = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, allow_inf_nan=False)]
Pattern = Annotated[str, Field(min_length=1, max_length=MODEL_CHARS_MAX)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Costs(_Strict):
    """Where a provider's own bill of a day is, which the receipts are compared with."""

    kind: CostKind
    admin_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
    """The variable that holds the key for it, another than the one for calls as a rule."""
    tolerance_usd: Price = Decimal(1)
    """A difference up to this is none."""
    tolerance_percent: Annotated[Price, Field(le=100)] = Decimal(1)
    """Nor is one up to this share of the bill."""


class Upstream(_Strict):
    """One address that answers calls, and which models' it gets."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    base_url: Annotated[str, AfterValidator(_http_address)]
    """With the path below which the API's routes are, `/v1` as a rule."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    """The variable that holds its key; the key itself is in no file."""
    models: tuple[Pattern, ...] = Field(min_length=1)
    on_client_abort: OnClientAbort = OnClientAbort.STOPS
    usage_lookup: UsageLookup = UsageLookup.NONE
    costs: Costs | None = None
    reports_usage_on_request: bool = True
    """Whether `stream_options` may be sent: a few upstreams refuse the field."""

    def offers(self, model: str) -> bool:
        """Whether calls for the model go to it."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    @property
    def named_models(self) -> tuple[str, ...]:
        """The models that are named in full, not by a pattern."""
        return tuple(model for model in self.models if not any(sign in model for sign in "*?["))


class PriceOverride(_Strict):
    """A model's price that counts instead of the price book's, in US dollars: for a million tokens of each kind, for an
    image, a minute of a recording, or a million characters that are read out; or for tokens and one of these.
    """

    input_per_million_usd: Price | None = None
    output_per_million_usd: Price | None = None
    cached_input_per_million_usd: Price | None = None
    image_usd: Price | None = None
    audio_minute_usd: Price | None = None
    characters_per_million_usd: Price | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        tokens = (self.input_per_million_usd, self.output_per_million_usd)
        others = (self.image_usd, self.audio_minute_usd, self.characters_per_million_usd)
        if tokens.count(None) == 1 or (self.cached_input_per_million_usd is not None and None in tokens):
            raise ValueError("expected input_per_million_usd and output_per_million_usd, both of them")
        if None in tokens and others.count(None) == len(others):
            raise ValueError("expected a price: for tokens, image_usd, audio_minute_usd or characters_per_million_usd")
        return self

    @property
    def rates(self) -> ModelRates:
        """The same as rates by unit."""
        hour = None if self.audio_minute_usd is None else self.audio_minute_usd * MINUTES_PER_HOUR
        prices = {
            "input_tokens": self.input_per_million_usd,
            "output_tokens": self.output_per_million_usd,
            "cache_read_tokens": self.cached_input_per_million_usd,
            IMAGES: self.image_usd,
            "audio_seconds": hour,
            "input_audio_seconds": hour,
            "input_characters": self.characters_per_million_usd,
        }
        return ModelRates(rates={unit: Rate(usd=price) for unit, price in prices.items() if price is not None})

    @property
    def digest_fields(self) -> Mapping[str, Any]:
        """What a price's version is computed from: fields that came later count only where they are set."""
        first = ("input_per_million_usd", "output_per_million_usd", "cached_input_per_million_usd")
        dumped = self.model_dump(mode="json")
        return {name: value for name, value in dumped.items() if name in first or value is not None}


class Upstreams(_Strict):
    """All upstreams, in the order in which they are tried, and prices that count before the price book's."""

    upstreams: tuple[Upstream, ...] = Field(min_length=1)
    prices: Mapping[str, PriceOverride] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [upstream.name for upstream in self.upstreams]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two upstreams are named {twice[0]}")
        return self

    def for_model(self, model: str) -> tuple[Upstream, ...]:
        """The upstreams that offer a model, in the order in which they are tried."""
        return tuple(upstream for upstream in self.upstreams if upstream.offers(model))


def read_upstreams(document: Any, *, where: str) -> Upstreams:
    """Read the parsed YAML of a file. Raises `ConfigurationError`, which names each field that is wrong."""
    try:
        return Upstreams.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise ConfigurationError(f"{where} is invalid: {'; '.join(map(_describe, problems))}") from None


def _describe(problem: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "the file"
    return f"{field}: {problem['msg'].removeprefix('Value error, ')}"
