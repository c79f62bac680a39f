"""The schedules file: which jobs run when, as operators configure it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from domain.errors import ConfigurationError
from domain.utxo import is_utxo_chain
from workflows.registry import CHAIN_FIELD, Job

DEFAULT_FILE: Final = Path(__file__).with_name("schedules.yaml")

_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION: Final = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", re.ASCII)
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)

_DURATION_WANTS: Final = "a duration such as 30s, 15m, 1h30m or 1d"
EVERY_MAX: Final = timedelta(days=366)


class Overlap(StrEnum):
    """What happens when a run is due while the previous one is still running."""

    SKIP = "skip"
    BUFFER_ONE = "buffer_one"
    ALLOW_ALL = "allow_all"


def parse_duration(value: object) -> timedelta:
    """Parse a duration like `1d2h3m4s`, each part optional. Raises `ValueError`."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if found is None:
        raise ValueError
    numbers = [int(number or 0) for number in found.groups()]
    return timedelta(seconds=sum(n * unit for n, unit in zip(numbers, _UNITS.values(), strict=True)))


def show_duration(span: timedelta) -> str:
    """Format a duration: 90 s is `1m30s`."""
    seconds = int(span.total_seconds())
    parts = []
    for name, unit in _UNITS.items():
        number, seconds = divmod(seconds, unit)
        if number:
            parts.append(f"{number}{name}")
    return "".join(parts) or "0s"


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


EVM_JOBS: Final = frozenset({"BookSweeps", "CheckDeposits", "Reconcile"})
"""Jobs about treasuries and tokens' contracts, which chains of Bitcoin's family do not have."""


class Entry(BaseModel):
    """One schedule of the file. A field's description is what an error says is expected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str = Field(description="the name of a job")
    every: Duration = Field(
        ge=timedelta(seconds=1), le=EVERY_MAX, description=f"{_DURATION_WANTS}, from 1s to {EVERY_MAX.days}d"
    )
    offset: Duration = Field(default=timedelta(0), description=_DURATION_WANTS)
    jitter: Duration = Field(default=timedelta(0), description=_DURATION_WANTS)
    overlap: Overlap = Field(default=Overlap.SKIP, description="skip, buffer_one or allow_all")
    time_limit: Duration = Field(
        default=timedelta(hours=1), ge=timedelta(seconds=1), le=EVERY_MAX, description=_DURATION_WANTS
    )
    paused: bool = Field(default=False, strict=True, description="true or false")
    note: str = Field(default="", max_length=500, description="text of at most 500 characters")
    input: dict[str, Any] = Field(default_factory=dict, description="the job's own settings, name: value")


@dataclass(frozen=True, slots=True)
class WantedSchedule:
    """A schedule as configured. `input` is complete: missing settings have the job's defaults."""

    name: str
    job: str
    every: timedelta
    offset: timedelta
    jitter: timedelta
    overlap: Overlap
    time_limit: timedelta
    starts_paused: bool
    note: str
    input: Mapping[str, Any]
    chain_id: int | None = None
    """Of a job that works on one chain: the chain. None is the platform's."""


def load_schedules(path: Path | None, jobs: Mapping[str, Job], *, chain_id: int) -> list[WantedSchedule]:
    """The schedules of a file (default: the one that comes with the product), in order.

    Those of jobs that work on one chain are for chain `chain_id`. Raises `ConfigurationError` for the first invalid
    value, in one line that names the key, the value and what is expected.
    """
    path = path or DEFAULT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"SCHEDULES_FILE: {path} cannot be read: {error}") from None
    return parse_schedules(text, jobs, where=path.name, chain_id=chain_id)


def parse_schedules(text: str, jobs: Mapping[str, Job], *, where: str, chain_id: int) -> list[WantedSchedule]:
    """The same from text; `where` names it in errors."""
    try:
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a safe loader, stricter
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{where}: {_yaml_words(error)}") from None
    if not isinstance(document, dict) or set(document) != {"schedules"}:
        raise ConfigurationError(f"{where}: expected one key at the top, `schedules`, got {_shown(document)}")
    entries = document["schedules"]
    if not isinstance(entries, dict):
        raise ConfigurationError(f"{where}: schedules: got {_shown(entries)}, expected schedules by their names")
    wanted = [
        _read(name, entry, jobs, where=f"{where}: schedules.{name}", chain_id=chain_id)
        for name, entry in entries.items()
    ]
    return [one for one in wanted if not (is_utxo_chain(chain_id) and one.job in EVM_JOBS)]


def _read(name: object, raw: object, jobs: Mapping[str, Job], *, where: str, chain_id: int) -> WantedSchedule:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ConfigurationError(f"{where}: got the name {_shown(name)}, expected a-z, 0-9 and -, at most 63")
    try:
        entry = Entry.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError(f"{where}{_describe(error, raw)}") from None
    job = jobs.get(entry.job)
    if job is None:
        raise ConfigurationError(f"{where}.job: got {_shown(entry.job)}, expected one of {', '.join(sorted(jobs))}")
    for field in ("offset", "jitter"):
        if getattr(entry, field) >= entry.every:
            raise ConfigurationError(
                f"{where}.{field}: got {show_duration(getattr(entry, field))}, expected less than `every`, "
                f"{show_duration(entry.every)}"
            )
    return WantedSchedule(
        name=name,
        job=entry.job,
        every=entry.every,
        offset=entry.offset,
        jitter=entry.jitter,
        overlap=entry.overlap,
        time_limit=entry.time_limit,
        starts_paused=entry.paused,
        note=entry.note,
        input=_read_input(entry.input, job, where=f"{where}.input", chain_id=chain_id),
        chain_id=chain_id if job.is_of_one_chain else None,
    )


def _read_input(raw: Mapping[str, Any], job: Job, *, where: str, chain_id: int) -> Mapping[str, Any]:
    """The job's complete input as JSON. Unknown names are refused, whether or not the model forbids them."""
    # The chain is the setting CHAIN_ID's, not the file's.
    known = [name for name in job.input_model.model_fields if name != CHAIN_FIELD]
    given = {**raw, CHAIN_FIELD: chain_id} if job.is_of_one_chain else raw
    for name in raw:
        if name not in known:
            wants = f"one of {', '.join(known)}" if known else f"nothing: {job.name} has no settings"
            raise ConfigurationError(f"{where}: got {_shown(name)}, expected {wants}")
    try:
        complete: dict[str, Any] = job.input_model.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{where}.{path}: got {_shown(first['input'])}, expected: {first['msg']}") from None
    return complete


def _describe(error: ValidationError, raw: object) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return f": got {_shown(raw)}, expected at least `job:` and `every:`"
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f": got the key {_shown(name)}, expected one of {', '.join(Entry.model_fields)}"
    wants = Entry.model_fields[name].description
    got = "nothing" if first["type"] == "missing" else _shown(first["input"])
    return f".{name}: got {got}, expected {wants}"


def _shown(value: object) -> str:
    return repr(show_duration(value) if isinstance(value, timedelta) else value)[:80]


def _yaml_words(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    words = str(getattr(error, "problem", None) or error).splitlines()[0]
    return f"line {mark.line + 1}: {words}" if mark is not None else words


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises `yaml.YAMLError` for a duplicate key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r:.80} is duplicated", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
