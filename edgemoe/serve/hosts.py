"""What a Host header and an Origin name, and what on this machine is called so. Addresses are compared as addresses,
names exactly: a name that only looks like 127.0.0.1 may resolve to it and is somebody else's.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

# [address]:port or name:port; no user, no path, no blanks.
_AUTHORITY = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s\[\]:@/\\?#%,;]+))(?::(?P<port>[0-9]{1,5}))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_PORTS = {"http": 80, "https": 443}
ANY_PORT = -1


@dataclass(frozen=True)
class Authority:
    """name: in lower case, an IPv6 address without brackets. port: None where none is said."""

    name: str
    port: int | None


@dataclass(frozen=True)
class Origin:
    """A site: "https://chat.example:8443". port: the scheme's own where none is said; ANY_PORT for `:*`."""

    scheme: str
    name: str
    port: int | None


def authority(text: str) -> Authority | None:
    """Of a Host header; None for what names no host."""
    found = _AUTHORITY.fullmatch(text)
    if not found:
        return None
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > 65535:
        return None
    if found["address"]:
        try:
            return Authority(str(ipaddress.IPv6Address(found["address"])), port)
        except ValueError:
            return None
    return Authority(found["name"].lower(), port)


def origin(text: str, *, wild: bool = False) -> Origin | None:
    """Of an Origin header; None for what names no site, like `null`. wild: `:*` stands for any port."""
    scheme, found, rest = text.partition("://")
    scheme = scheme.lower()
    if not found or not _SCHEME.fullmatch(scheme):
        return None
    any_port = wild and rest.endswith(":*")
    place = authority(rest[:-2] if any_port else rest)
    if place is None:
        return None
    return Origin(scheme, place.name, ANY_PORT if any_port else place.port or _PORTS.get(scheme))


def same(asked: Origin, allowed: Origin) -> bool:
    """Whether a page is of a site that was allowed."""
    ports = allowed.port in (ANY_PORT, asked.port)
    return ports and (asked.scheme, asked.name) == (allowed.scheme, allowed.name)


def is_page_of(asked: Origin, host: Authority) -> bool:
    """Whether a page came from the host that it asks now."""
    port = host.port or _PORTS.get(asked.scheme)
    return asked.scheme in _PORTS and (asked.name, asked.port) == (host.name, port)


def is_loopback(name: str) -> bool:
    """Whether a name or an address is this machine's own, whatever a name server says."""
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or bool(mapped and mapped.is_loopback)
