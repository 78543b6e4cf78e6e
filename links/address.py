"""What an address of ZeroMQ's says beside where: who the hub must prove to be, and what lets a peer in.

    tcp://HOST:PORT?key=PUBLIC&secret=SECRET      keys of CURVE, 32 bytes each, as URL-safe base64 without padding
    tcp://HOST:PORT?plain                         nothing is encrypted and anybody is let in, on purpose

`zeromq.py` connects and binds by it. Who holds a whole address is let in: it is handed out like a password, and what is
printed and logged is `public`.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import zmq
from zmq.utils import z85

from ..errors import ConfigError

_KEY_BYTES = 32
#: Addresses that only this host reaches.
_PRIVATE = ("ipc://", "tcp://127.", "tcp://localhost:", "tcp://[::1]:")


@dataclass(frozen=True)
class HubKeys:
    """The keys of one cluster: its hub's pair, and the pair of all whom it lets in."""

    secret: bytes = field(repr=False)
    client_secret: bytes = field(repr=False)

    @property
    def key(self) -> bytes:
        """What peers know the hub by."""
        return public_of(self.secret)

    def invitation(self, address: str) -> str:
        """An address of the hub's with all that a peer needs; one that is not guarded stays as it is."""
        if read(address).key != self.key:
            return address
        return f"{address}&secret={_text(self.client_secret)}"


def new_keys() -> HubKeys:
    """Keys that nobody has."""
    return HubKeys(new_secret(), new_secret())


def new_secret() -> bytes:
    """The secret half of a pair that nobody has."""
    found: bytes = z85.decode(zmq.curve_keypair()[1])
    return found


def public_of(secret: bytes) -> bytes:
    """The public half of a pair."""
    found: bytes = z85.decode(zmq.curve_public(z85.encode(secret)))
    return found


@dataclass(frozen=True)
class Address:
    """One address, taken apart."""

    #: What ZeroMQ connects to, or binds.
    endpoint: str
    #: What the hub must prove to hold the secret half of.
    key: bytes | None = None
    #: What the hub lets us in by.
    secret: bytes | None = field(default=None, repr=False)
    #: Whether it is meant to be open to anybody.
    is_plain: bool = False

    @property
    def is_private(self) -> bool:
        """Whether only this host reaches it."""
        return self.endpoint.startswith(_PRIVATE)


def read(address: str) -> Address:
    """Take an address apart. ConfigError for what is none, without quoting its secret."""
    if not isinstance(address, str):
        raise ConfigError(f"{address!r:.60} is no address: it is a text")
    endpoint, _, query = address.partition("?")
    said = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(said.keys() - {"key", "secret", "plain"})
    if unknown or (query and not said):
        raise ConfigError(
            f"{endpoint!r} is no address with {(unknown or [query])[0]!r:.60}: known are key, secret, plain"
        )
    keys = {name: _key(endpoint, name, said[name]) for name in ("key", "secret") if name in said}
    if ("plain" in said and keys) or ("secret" in keys and "key" not in keys):
        raise ConfigError(f"{endpoint!r} is no address: it has a `key` and a `secret`, or it is `plain`, or neither")
    return Address(endpoint, **keys, is_plain="plain" in said)


def public(address: str) -> str:
    """The address less its secret: to be printed and logged."""
    return str(address).partition("&secret=")[0]


def with_key(endpoint: str, key: bytes) -> str:
    """Where a guarded hub listens, as it tells."""
    return f"{endpoint}?key={_text(key)}"


def _key(endpoint: str, name: str, text: str) -> bytes:
    try:
        found = base64.b64decode(text + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != _KEY_BYTES:
        raise ConfigError(
            f"{endpoint!r} is no address: its `{name}` is no key; `tensoryard address` prints a whole one"
        )
    return found


def _text(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode().rstrip("=")
