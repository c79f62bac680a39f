"""Parser of database addresses, as libpq reads them: TCP and sockets, several hosts, TLS, time-outs, options.

libpq itself parses the address, so that settle connects to exactly what `psql` connects to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

EXPECTED: Final = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with a socket's folder as postgresql:///DATABASE?host=/FOLDER&user=USER"
SCHEMES: Final = ("postgresql", "postgres")
_ENCODE: Final = "special characters of the password must be percent-encoded, @ as %40, / as %2F, % as %25"
_WORDS: Final[dict[str, frozenset[str]]] = {
    "sslmode": frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}),
    "target_session_attrs": frozenset({"any", "read-write", "read-only", "primary", "standby", "prefer-standby"}),
    "load_balance_hosts": frozenset({"disable", "random"}),
}


def parse_address(url: str) -> dict[str, str]:
    """An address as libpq's connection parameters by name: `host`, `port`, `user`, `password`, `dbname`, `sslmode`, …

    Raises `ValueError` that describes the value without repeating any of it, because it holds a password.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        raise ValueError("an address whose scheme is not postgresql://")
    try:
        found = {name: str(value) for name, value in conninfo_to_dict(f"postgresql://{rest}").items()}
    except psycopg.ProgrammingError as error:
        raise ValueError(_reason(str(error))) from None
    _check(found)
    return found


def normalize_address(url: str) -> str:
    """The same address with the scheme `postgresql`. Raises `ValueError` as `parse_address` does."""
    parse_address(url)
    return f"postgresql://{url.strip().partition('://')[2]}"


def format_address(parameters: Mapping[str, str]) -> str:
    """An address that `parse_address` reads as these parameters."""
    return f"postgresql:///?{urlencode(parameters, safe='/')}".replace("+", "%20")


def has_several_hosts(parameters: Mapping[str, str]) -> bool:
    """Whether the address names several servers, as with a primary and its standbys."""
    return "," in parameters.get("hostaddr", parameters.get("host", ""))


def _reason(said: str) -> str:
    if "query parameter" in said:
        return f"an address with a parameter unknown to libpq ({_ENCODE})"
    if "percent-encoded token" in said or "forbidden value" in said:
        return f"an address with a % that is not followed by two hexadecimal digits ({_ENCODE})"
    return f"an address that libpq cannot read ({_ENCODE})"


def _check(found: Mapping[str, str]) -> None:
    hosts = found.get("hostaddr", found.get("host", "")).split(",")
    if not all(hosts):
        raise ValueError("an address that names no server, neither a host nor the folder of a socket")
    if any("@" in host or (not host.startswith("/") and re.search(r"[\s/?#]", host)) for host in hosts):
        raise ValueError(f"an address with an invalid host ({_ENCODE})")
    if not found.get("dbname"):
        raise ValueError("an address that names no database")
    ports = found.get("port", "").split(",")
    if not all(port == "" or _is_port(port) for port in ports):
        raise ValueError(f"an address whose port is not in 1 to 65535 ({_ENCODE})")
    if len(ports) not in {1, len(hosts)}:
        raise ValueError("an address with different numbers of ports and hosts")
    if re.fullmatch(r"-?[0-9]{1,6}", found.get("connect_timeout", "0")) is None:
        raise ValueError("an address whose connect_timeout is not a number of whole seconds")
    for name, known in _WORDS.items():
        if name in found and found[name] not in known:
            raise ValueError(f"an address whose {name} is not one of {', '.join(sorted(known))}")


def _is_port(port: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", port) is not None and 1 <= int(port) <= 65_535
