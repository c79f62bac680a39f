"""The upstreams that calls are passed on to: `UPSTREAMS_FILE`, read and checked (SPEC 7)."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from domain.billing.pricing import ModelRates, Rate
from domain.errors import ConfigurationError

MODEL_CHARS_MAX: Final = 200


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
    """A model's price that counts instead of the price book's, in US dollars for a million tokens."""

    input_per_million_usd: Price
    output_per_million_usd: Price
    cached_input_per_million_usd: Price | None = None

    @property
    def rates(self) -> ModelRates:
        """The same as rates by unit."""
        rates = {
            "input_tokens": Rate(usd=self.input_per_million_usd),
            "output_tokens": Rate(usd=self.output_per_million_usd),
        }
        if self.cached_input_per_million_usd is not None:
            rates["cache_read_tokens"] = Rate(usd=self.cached_input_per_million_usd)
        return ModelRates(rates=rates)


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
