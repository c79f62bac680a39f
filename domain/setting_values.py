"""What the text of a setting may look like: parsers for the types of `settings.Settings`, and mistyped names.

A parser returns the value in its canonical form, or raises `ValueError`: `Unusable` where there is more to say than
what is wanted.
"""

from __future__ import annotations

import re
import unicodedata
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
"""A host whose last part is one of these is an IPv4 address or nothing (WHATWG URL, "ends in a number")."""
_NEXT_ADDRESS: Final = re.compile(r"[\s;|,]+https?://", re.IGNORECASE)
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_QUOTES: Final = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019"}
_CONTROL_NAMES: Final = {"\n": "a line break", "\r": "a line break", "\t": "a tab"}
_USUAL_PORTS: Final = {"http": 80, "https": 443}
_PLACEHOLDER: Final = "{tx_hash}"


class Unusable(ValueError):
    """What is wrong with a value, in words that follow "got". They never quote it: it may carry a password."""


# -- text


def clean_text(value: str) -> str:
    """The text without white space around it.

    Raises `ValueError` for nothing but white space, for quotation marks around the value (a shell takes them away,
    Docker and systemd's files need not) and for a character that nobody can see.
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
    """Text of ASCII digits with at most one point in it, unchanged: no exponent, no NaN, no infinity."""
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError
    return text


def share(value: object) -> Decimal:
    """An exact part of one, from 0 to 1. A float has lost its exactness and is refused."""
    if isinstance(value, float):
        raise ValueError
    text = str(value).strip()
    plain_decimal(text)
    found = Decimal(text)
    if not 0 <= found <= 1 or int(found.as_tuple().exponent) < -SHARE_DIGITS_MAX:
        raise ValueError
    return found


def plain_name(value: object) -> str:
    """A name for people to read, of 1 to `NAME_CHARS_MAX` characters."""
    text = str(value).strip()
    if not 1 <= len(text) <= NAME_CHARS_MAX or not text.isprintable():
        raise ValueError
    return text


def path(value: object) -> Path:
    """A path; `~` is the home folder, because a service manager's file is read by no shell."""
    try:
        return Path(str(value)).expanduser()
    except RuntimeError:
        raise Unusable("a path in a home folder that is not known") from None


def split_list(value: object) -> tuple[str, ...]:
    """The entries of a list with commas between them; one comma after the last is no entry."""
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
    """An ASCII host as it is looked up: in lower case; IPv6 in brackets and compressed."""
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
        raise Unusable("several addresses, or one with a blank in it")
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        raise Unusable("an address with a host or a port that is none")
    if found["port"] is None:
        raise Unusable("an address without a port")
    if not 1 <= int(found["port"]) <= 65_535:
        raise Unusable("an address with a port that is not one of 1 to 65535")
    return f"{host_name(found['host'])}:{int(found['port'])}"


def listening_host(value: object) -> str:
    """An IP address or name of this machine to listen on, without a port."""
    text = str(value)
    if text.startswith("["):
        return host_name(text)[1:-1]
    return _ipv6(text) if text.count(":") > 1 else host_name(text)


def networks(value: object) -> tuple[str, ...]:
    """IP addresses and networks, as networks. Bits of the host are cleared; the whole internet is refused."""
    # As a network is written: whoever applies it need not be as lenient about bits of the host as people are.
    found = []
    for entry in split_list(value):
        network = ip_network(entry, strict=False)
        if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
            network = ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
        if network.prefixlen == 0:
            raise Unusable("a network that everybody is in")
        found.append(str(network))
    return tuple(dict.fromkeys(found))


# -- web addresses


@dataclass(frozen=True, slots=True)
class _WebAddress:
    scheme: str
    userinfo: str
    host: str
    port: int | None
    """None for the scheme's own."""
    parts: SplitResult

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port else "")

    def __str__(self) -> str:
        netloc = f"{self.userinfo}{self.host}" + (f":{self.port}" if self.port else "")
        return urlunsplit(self.parts._replace(scheme=self.scheme, netloc=netloc))

    @property
    def node(self) -> tuple[str, int | None, str, str]:
        """The same for every way to write one server's address; scheme, user and last slash make no other server."""
        host = "127.0.0.1" if self.host in {"localhost", "[::1]"} else self.host.rstrip(".")
        return host, self.port, self.parts.path.rstrip("/"), self.parts.query


def _web_address(value: object) -> _WebAddress:
    text = str(value)
    if _NEXT_ADDRESS.search(text) or text.partition("?")[0].count("://") > 1:
        raise Unusable("several addresses that are not separated by commas")
    if " " in text:
        raise Unusable("an address with a blank in it")
    parts = urlsplit(text)
    if parts.scheme not in _USUAL_PORTS:
        raise Unusable("an address that does not begin with http:// or https://")
    userinfo, at, place = parts.netloc.rpartition("@")
    found = _HOST_AND_PORT.fullmatch(place)
    if found is None:
        raise Unusable("an address with a host or a port that is none")
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= 65_535:
        raise Unusable("an address with a port that is not one of 1 to 65535")
    return _WebAddress(
        scheme=parts.scheme,
        userinfo=userinfo + at,
        host=host_name(found["host"]),
        port=None if port == _USUAL_PORTS[parts.scheme] else port,
        parts=parts,
    )


def http_url(value: object) -> str:
    """The address of an HTTP server for this process; user and password may be part of it, a fragment not."""
    return str(_server(value))


def public_url(value: object) -> str:
    """The same for people's eyes: without a user or password."""
    address = _server(value)
    if address.userinfo:
        raise Unusable("an address with a user or password, which everybody would see")
    return str(address)


def _server(value: object) -> _WebAddress:
    address = _web_address(value)
    if address.parts.fragment:
        raise Unusable("an address with a # in it (in a password or key it is written %23)")
    return address


def http_urls(value: object) -> tuple[str, ...]:
    """Addresses of different servers, with commas between them."""
    entries = split_list(value)
    known: dict[object, int] = {}
    found = []
    for position, entry in enumerate(entries, start=1):
        try:
            address = _server(entry)
        except ValueError as error:
            reason = str(error) if isinstance(error, Unusable) else "what is no address"
            raise Unusable(f"{reason}, as number {position} of {len(entries)}") from None
        first = known.setdefault(address.node, position)
        if first != position:
            raise Unusable(f"the same node as number {first} and as number {position}")
        found.append(str(address))
    return tuple(found)


def origin(value: object) -> str:
    """Scheme, host and port, as a browser writes an origin: punycode, lower case, no default port, nothing after it."""
    address = _web_address(value)
    parts = address.parts
    if parts.path.strip("/") or "?" in str(value) or "#" in str(value):
        raise Unusable("an address with something after host and port")
    if address.userinfo:
        raise Unusable("an address with a user or password, which everybody would see")
    if address.host.endswith("."):
        raise Unusable("an address whose host ends with a dot")
    return address.origin


def transaction_url(value: object) -> str:
    """A public address with exactly the placeholder `{tx_hash}` in it, not in its host."""
    text = str(value)
    if text.count(_PLACEHOLDER) != 1 or set("{}") & set(text.replace(_PLACEHOLDER, "")):
        raise ValueError
    address = _web_address(text)
    if address.userinfo:
        raise Unusable("an address with a user or password, which everybody would see")
    return str(address)


# -- names


def suspicious_names(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Those of `names` that nobody reads and that look like a known one mistyped, each with the known one."""
    given = set(names)
    found = {}
    for name in sorted(given - set(known)):
        meant = max(sorted(known), key=lambda candidate: _similarity(name, candidate))
        if _similarity(name, meant) >= SIMILARITY_MIN:
            found[name] = meant
    return found


def _similarity(name: str, meant: str) -> float:
    """1 for the same name in another writing; names of other programs stay below `SIMILARITY_MIN`."""
    written, wanted = (text.upper().removeprefix("SETTLE_").replace("-", "_") for text in (name, meant))
    if _bare(written) == _bare(wanted):
        return 1
    if min(len(written), len(wanted)) < SIMILAR_CHARS_MIN:  # "APP_PORT" is somebody's own
        return 0
    ratio = SequenceMatcher(None, written, wanted, autojunk=False).ratio()
    is_part = wanted.startswith(written) or wanted.endswith(f"_{written}")
    return SIMILARITY_MIN + ratio * (1 - SIMILARITY_MIN) if is_part else ratio


def _bare(name: str) -> str:
    """Without the marks of words and of the plural."""
    words = (f"{word[:-3]}Y" if word.endswith("IES") else word.removesuffix("S") for word in name.split("_"))
    return "".join(words)
