"""Which addresses a webhook may be sent to. A tenant names them, and the worker that sends is inside our network.

Two checks, at two times: `parse_url` of what a tenant writes, when it is written; `refusal_of` of every address that a
name resolves to and of the very address that is connected to, each time. The second one is what protects.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from domain.errors import InvalidInput

URL_CHARS_MAX: Final = 2_000
HTTPS_PORT: Final = 443
UNPRIVILEGED_FROM: Final = 1_024

IpAddress = IPv4Address | IPv6Address

# IANA's registry of special-purpose addresses, without what is left of it for the public. The standard library's list
# differs between Python's versions.
_SPECIAL_V4: Final = tuple(
    (IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's metadata"),
        ("169.254.0.0/16", "link-local, where clouds have their metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "a former relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarks"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_SPECIAL_V6: Final = tuple(
    (IPv6Network(network), what)
    for network, what in (
        ("2001::/23", "reserved for protocols, Teredo among them"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4, which has an IPv4 address inside"),
        ("3fff::/20", "documentation"),
    )
)

# What resolvers take for an IPv4 address although it does not have four decimal numbers: 127.1, 0x7f.1, 2130706433.
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_HOST: Final = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LOCAL_NAMES: Final = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "private", "arpa")


def parse_url(url: str, *, allow_private: bool = False) -> str:
    """The address of an endpoint as it is stored. Raises `InvalidInput` naming the field `url`.

    https only, without credentials and fragment, on port 443 or an unprivileged one, and no host that is private by its
    own name. With `allow_private`, of a developer's machine, any port and host, and http on loopback.
    """
    parts = _split(url)
    host = parts.hostname or ""
    literal = _literal(host)
    if literal is None and not _is_host_name(host):
        raise _refused(url, "an address with a host, such as https://example.com/webhooks")
    if parts.scheme == "http" and not (allow_private and is_loopback_host(host)):
        raise _refused(url, "an https address")
    if allow_private:
        return url
    if not is_port_allowed(_port(parts)):
        raise _refused(url, f"port {HTTPS_PORT}, or one from {UNPRIVILEGED_FROM} on")
    why = refusal_of(literal) if literal is not None else "private by its name" if _is_local_name(host) else None
    if why is not None:
        raise _refused(url, f"a public address; this one is {why}")
    return url


def refusal_of(address: IpAddress, *, allow_private: bool = False) -> str | None:
    """Why nothing is sent to an address; None where it is public.

    An IPv6 address that stands for an IPv4 one is judged by that one. `allow_private` leaves multicast and unspecified
    addresses, which have no server.
    """
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped
        if address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
        if embedded is not None:
            return refusal_of(embedded, allow_private=allow_private)
    if allow_private:
        return "multicast or unspecified" if address.is_multicast or address.is_unspecified else None
    if isinstance(address, IPv4Address):
        return next((what for network, what in _SPECIAL_V4 if address in network), None)
    if address not in _GLOBAL_V6:
        return "not a public IPv6 address"
    return next((what for network, what in _SPECIAL_V6 if address in network), None)


def is_port_allowed(port: int) -> bool:
    """Whether a public endpoint may have that port: no other service's well-known one."""
    return port == HTTPS_PORT or UNPRIVILEGED_FROM <= port <= 65_535


def is_loopback(address: IpAddress) -> bool:
    """Whether it is this machine, also as an IPv4 address inside an IPv6 one."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def is_loopback_host(host: str) -> bool:
    """Whether a host, a name or an address, is this machine by what is written."""
    literal = _literal(host)
    return host == "localhost" or host.endswith(".localhost") if literal is None else is_loopback(literal)


def _split(url: str) -> SplitResult:
    if not 1 <= len(url) <= URL_CHARS_MAX:
        raise _refused(url, f"an address of 1 to {URL_CHARS_MAX} characters")
    # Parsers differ in what they do with the rest; an international host is written in punycode.
    if not all("!" <= char <= "~" for char in url) or "\\" in url:
        raise _refused(url, "printable ASCII characters without blanks and backslashes")
    try:
        parts = urlsplit(url)
        _port(parts)
    except ValueError:
        raise _refused(url, "an https address") from None
    if parts.scheme not in {"http", "https"} or not url.startswith(f"{parts.scheme}://"):
        raise _refused(url, "an https address")
    if "@" in parts.netloc:
        raise _refused(url, "an address without credentials")
    if "#" in url:
        raise _refused(url, "an address without a fragment")
    return parts


def _port(parts: SplitResult) -> int:
    if parts.port is None:
        return HTTPS_PORT if parts.scheme == "https" else 80
    return parts.port


def _literal(host: str) -> IpAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_host_name(host: str) -> bool:
    name = host.removesuffix(".")
    return len(name) <= 253 and _HOST.fullmatch(name) is not None and not _ends_in_a_number(name)


def _ends_in_a_number(name: str) -> bool:
    return _NUMERIC_LABEL.fullmatch(name.rpartition(".")[2]) is not None


def _is_local_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return len(labels) == 1 or labels[-1] in _LOCAL_NAMES


def _refused(url: str, expected: str) -> InvalidInput:
    # Of the address only its host: credentials, path and query may hold secrets.
    shown = re.sub(r"(?<=://)[^/]*@|(?<=[^:/])[/?#].*", "", url, flags=re.DOTALL)[:80]
    return InvalidInput("url", f"expected {expected}, got {shown!r}")
