"""`UPSTREAMS_FILE` and the keys that it names variables for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from domain.billing.upstreams import Upstream, Upstreams, read_upstreams
from domain.errors import ConfigurationError


def load_upstreams(path: Path) -> Upstreams:
    """The file's upstreams and prices. Raises `ConfigurationError`."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"UPSTREAMS_FILE: {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"UPSTREAMS_FILE: {path}{place} is not YAML") from None
    return read_upstreams(document, where=f"UPSTREAMS_FILE: {path}")


def upstream_keys(upstreams: Iterable[Upstream], variables: Mapping[str, str]) -> dict[str, str]:
    """The key of each upstream that has one, by its name. Raises `ConfigurationError` where one is missing."""
    return {
        upstream.name: _key(variables, upstream.api_key_env, f"the key of upstream {upstream.name}")
        for upstream in upstreams
        if upstream.api_key_env is not None
    }


def admin_keys(upstreams: Iterable[Upstream], variables: Mapping[str, str]) -> dict[str, str]:
    """The key for each upstream's report of costs, by its name. Raises `ConfigurationError` where one is missing."""
    return {
        upstream.name: _key(variables, upstream.costs.admin_key_env, f"the admin key of upstream {upstream.name}")
        for upstream in upstreams
        if upstream.costs is not None
    }


def _key(variables: Mapping[str, str], name: str, what: str) -> str:
    key = variables.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigurationError(f"{name} is not set: expected {what} (UPSTREAMS_FILE)")
    return key
