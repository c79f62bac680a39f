"""Parsers for the text of settings (the types of `settings.Settings`), and detection of mistyped names.

A parser returns the value in canonical form or raises `ValueError`: `Unusable` where the message can say more than the
expected form.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

SHARE_DIGITS_MAX: Final = 30
INTEGER_DIGITS_MAX: Final = 20
NAME_CHARS_MAX: Final = 40

SIMILAR_CHARS_MIN: Final = 9
SIMILARITY_MIN: Final = 0.9

_INTEGER: Final = re.compile(rf"-?[0-9]{{1,{INTEGER_DIGITS_MAX}}}", re.ASCII)
_DECIMAL: Final = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
"""A host whose last label is one of these is either an IPv4 address or invalid (WHATWG URL, "ends in a number")."""
_NEXT_ADDRESS: Final = re.compile(r"[\s;|,]+https?://", re.IGNORECASE)
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_QUOTES: Final = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019"}
_CONTROL_NAMES: Final = {"\n": "a line break", "\r": "a line break", "\t": "a tab"}
_USUAL_PORTS: Final = {"http": 80, "https": 443}
_PLACEHOLDER: Final = "{tx_hash}"


class Unusable(ValueError):
    """Describes what is wrong with a value, as a phrase after "got". Never quotes the value: it may hold a password."""


# -- text


def clean_text(value: str) -> str:
    """The text without surrounding white space.

    Raises `ValueError` where nothing but white space is left, for quotation marks around the value (a shell removes
    them, Docker and systemd files may keep them), and for invisible characters.
    """
    text = value.strip()
    if not text:
        raise Unusable("nothing but white space")
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        raise Unusable("a value in quotation marks, which are not part of it")
    for position, character in enumerate(text, start=1):
        if not character.isprintable():
            name = _CONTROL_NAMES.get(character) or unicodedata.name(character, "a control character")
            raise Unusable(f"a value with U+{ord(character):04X} ({name}) as character {position}")
    return text


def plain_integer(text: str) -> str:
    """Text of ASCII digits, unchanged: no sign but a minus, no underscores, no digits of other scripts."""
    if _INTEGER.fullmatch(text) is None:
        raise ValueError
    return text


def plain_decimal(text: str) -> str:
    """Text of ASCII digits with at most one decimal point, unchanged: no exponent, NaN or infinity."""
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError
    return text


def share(value: object) -> Decimal:
    """An exact fraction from 0 to 1. A float is refused because it is not exact."""
    if isinstance(value, float):
        raise ValueError
    text = str(value).strip()
    plain_decimal(text)
    found = Decimal(text)
    if not 0 <= found <= 1 or int(found.as_tuple().exponent) < -SHARE_DIGITS_MAX:
        raise ValueError
    return found


def factor(value: object) -> Decimal:
    """An exact decimal from 1 to 1000. A float is refused because it is not exact."""
    if isinstance(value, float):
        raise ValueError
    text = str(value).strip()
    plain_decimal(text)
    found = Decimal(text)
    if not 1 <= found <= 1000 or int(found.as_tuple().exponent) < -SHARE_DIGITS_MAX:
        raise ValueError
    return found


def switch(value: object) -> bool:
    """`true` or `false`, in any case."""
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def plain_name(value: object) -> str:
    """A display name of 1 to `NAME_CHARS_MAX` characters."""
    text = str(value).strip()
    if not 1 <= len(text) <= NAME_CHARS_MAX or not text.isprintable():
        raise ValueError
    return text


def path(value: object) -> Path:
    """A path. `~` is expanded here, because no shell reads a service manager's file."""
    try:
        return Path(str(value)).expanduser()
    except RuntimeError:
        raise Unusable("a path in an unknown home folder") from None


def split_list(value: object) -> tuple[str, ...]:
    """The entries of a comma-separated list; one trailing comma is allowed."""
    if isinstance(value, tuple):
        return value
    entries = [entry.strip() for entry in str(value).split(",")]
    if len(entries) > 1 and not entries[-1]:
        entries.pop()
    if not all(entries):
        raise Unusable("an empty entry between commas")
    return tuple(entries)


# -- hosts and networks


def host_name(text: str) -> str:
    """An ASCII host in the form in which it is resolved: lower case; IPv6 in brackets and compressed."""
    if text.startswith("["):
        if not text.endswith("]"):
            raise Unusable("an address whose host is not an IPv6 address")
        return f"[{_ipv6(text[1:-1])}]"
    name, root = (text[:-1], ".") if text.endswith(".") else (text, "")
    name = name.lower()
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Unusable("a host that is neither a domain name nor an IP address")
    if _NUMBER_LABEL.fullmatch(labels[-1]):
        try:
            return str(ip_address(name))
        except ValueError:
            raise Unusable("a host that is not an IPv4 address") from None
    return name + root


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise Unusable("a host that is not an IPv6 address") from None
    if address.scope_id is not None:
        raise Unusable("an IPv6 address with a zone")
    mapped = address.ipv4_mapped
    if mapped is not None:  # not the dotted form, which some versions of Python write and no browser does
        return f"::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}"
    return address.compressed


def host_and_port(text: str) -> str:
    """`host:port` of one server, in ASCII; IPv6 in brackets."""
    if "://" in text or "/" in text:
        raise Unusable("an address with a scheme or a path")
    if re.search(r"[\s,;|]", text):
        raise Unusable("several addresses, or one that contains a space")
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        raise Unusable("an address with an invalid host or port")
    if found["port"] is None:
        raise Unusable("an address without a port")
    if not 1 <= int(found["port"]) <= 65_535:
        raise Unusable("an address whose port is not in 1 to 65535")
    return f"{host_name(found['host'])}:{int(found['port'])}"


def listening_host(value: object) -> str:
    """An IP address or a name of this machine to listen on, without a port."""
    text = str(value)
    if text.startswith("["):
        return host_name(text)[1:-1]
    return _ipv6(text) if text.count(":") > 1 else host_name(text)


def networks(value: object) -> tuple[str, ...]:
    """IP addresses and networks, as networks with the host bits cleared; the whole internet is refused."""
    # The canonical form: not every consumer accepts host bits in a network.
    found = []
    for entry in split_list(value):
        network = ip_network(entry, strict=False)
        if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
            network = ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
        if network.prefixlen == 0:
            raise Unusable("a network that contains every address")
        found.append(str(network))
    return tuple(dict.fromkeys(found))


# -- web addresses


@dataclass(frozen=True, slots=True)
class _WebAddress:
    scheme: str
    userinfo: str
    host: str
    port: int | None
    """None for the scheme's default."""
    parts: SplitResult

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port else "")

    def __str__(self) -> str:
        netloc = f"{self.userinfo}{self.host}" + (f":{self.port}" if self.port else "")
        return urlunsplit(self.parts._replace(scheme=self.scheme, netloc=netloc))

    @property
    def node(self) -> tuple[str, int | None, str, str]:
        """A key that is equal for all spellings of one server's address: scheme, user and trailing slash are
        ignored.
        """
        host = "127.0.0.1" if self.host in {"localhost", "[::1]"} else self.host.rstrip(".")
        return host, self.port, self.parts.path.rstrip("/"), self.parts.query


def _web_address(value: object) -> _WebAddress:
    text = str(value)
    if _NEXT_ADDRESS.search(text) or text.partition("?")[0].count("://") > 1:
        raise Unusable("several addresses that are not separated by commas")
    if " " in text:
        raise Unusable("an address that contains a space")
    parts = urlsplit(text)
    if parts.scheme not in _USUAL_PORTS:
        raise Unusable("an address that does not begin with http:// or https://")
    userinfo, at, place = parts.netloc.rpartition("@")
    found = _HOST_AND_PORT.fullmatch(place)
    if found is None:
        raise Unusable("an address with an invalid host or port")
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= 65_535:
        raise Unusable("an address whose port is not in 1 to 65535")
    return _WebAddress(
        scheme=parts.scheme,
        userinfo=userinfo + at,
        host=host_name(found["host"]),
        port=None if port == _USUAL_PORTS[parts.scheme] else port,
        parts=parts,
    )


def http_url(value: object) -> str:
    """Address of an HTTP server for this process; may hold a user and password, but no fragment."""
    return str(_server(value))


def public_url(value: object) -> str:
    """A public HTTP address: without user and password."""
    address = _server(value)
    if address.userinfo:
        raise Unusable("an address with a user or password, which would be public")
    return str(address)


def _server(value: object) -> _WebAddress:
    address = _web_address(value)
    if address.parts.fragment:
        raise Unusable("an address that contains # (in a password or key write %23)")
    return address


def http_urls(value: object) -> tuple[str, ...]:
    """Comma-separated addresses of different servers."""
    entries = split_list(value)
    known: dict[object, int] = {}
    found = []
    for position, entry in enumerate(entries, start=1):
        try:
            address = _server(entry)
        except ValueError as error:
            reason = str(error) if isinstance(error, Unusable) else "an invalid address"
            raise Unusable(f"{reason}, as number {position} of {len(entries)}") from None
        first = known.setdefault(address.node, position)
        if first != position:
            raise Unusable(f"the same node as number {first} and as number {position}")
        found.append(str(address))
    return tuple(found)


def origin(value: object) -> str:
    """Scheme, host and port as a browser writes an origin: punycode, lower case, without the default port or a path."""
    address = _web_address(value)
    parts = address.parts
    if parts.path.strip("/") or "?" in str(value) or "#" in str(value):
        raise Unusable("an address with something after host and port")
    if address.userinfo:
        raise Unusable("an address with a user or password, which would be public")
    if address.host.endswith("."):
        raise Unusable("an address whose host ends with a dot")
    return address.origin


def transaction_url(value: object) -> str:
    """A public address that contains the placeholder `{tx_hash}` once, and not in its host."""
    text = str(value)
    if text.count(_PLACEHOLDER) != 1 or set("{}") & set(text.replace(_PLACEHOLDER, "")):
        raise ValueError
    address = _web_address(text)
    if address.userinfo:
        raise Unusable("an address with a user or password, which would be public")
    return str(address)


# -- names


def suspicious_names(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Those of `names` that no setting reads and that resemble a known one, each with the known one."""
    given = set(names)
    spelled = [_Spelling(name) for name in sorted(known)]
    found = {}
    for name in sorted(given - set(known)):
        written = _Spelling(name)
        likeness, meant = max(((_similarity(written, wanted), wanted) for wanted in spelled), key=lambda pair: pair[0])
        if likeness >= SIMILARITY_MIN:
            found[name] = meant.name
    return found


class _Spelling:
    """A name as it is compared: without prefix and case, also without word separators and plural endings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = name.upper().removeprefix("SETTLE_").replace("-", "_")
        words = self.text.split("_")
        self.bare = "".join(f"{word[:-3]}Y" if word.endswith("IES") else word.removesuffix("S") for word in words)
        self.letters = Counter(self.text)


def _similarity(written: _Spelling, wanted: _Spelling) -> float:
    """1 for the same name in another spelling; names of other programs stay below `SIMILARITY_MIN`."""
    if written.bare == wanted.bare:
        return 1
    if min(len(written.text), len(wanted.text)) < SIMILAR_CHARS_MIN:  # "APP_PORT" belongs to another program
        return 0
    is_part = wanted.text.startswith(written.text) or wanted.text.endswith(f"_{written.text}")
    # What order adds to the letters in common can only lower the ratio. Each process compares all of its variables
    # with all settings when it starts: the exact ratio of each pair took most of a command's time.
    in_common = (written.letters & wanted.letters).total()
    if not is_part and 2 * in_common / (len(written.text) + len(wanted.text)) < SIMILARITY_MIN:
        return 0
    ratio = SequenceMatcher(None, written.text, wanted.text, autojunk=False).ratio()
    return SIMILARITY_MIN + ratio * (1 - SIMILARITY_MIN) if is_part else ratio
