"""Addresses with keys: taken apart, put together, and never shown with their secret."""

from __future__ import annotations

import pytest

from tensoryard.errors import ConfigError
from tensoryard.links.address import HubKeys, new_keys, public, public_of, read, with_key

WHERE = "tcp://10.0.0.5:7077"


def test_an_invitation_is_read_by_who_gets_it():
    """It names where, who the hub must be, and what lets a peer in; the hub's own secret is not in it."""
    keys = new_keys()
    told = with_key(WHERE, keys.key)
    invitation = keys.invitation(told)
    found = read(invitation)
    assert (found.endpoint, found.key, found.secret) == (WHERE, keys.key, keys.client_secret)
    assert (found.is_plain, found.is_private) == (False, False)
    assert public(invitation) == told
    assert read(told).secret is None
    assert len(invitation) == len(WHERE) + len("?key=&secret=") + 2 * 43


def test_keys_are_pairs_and_nobodys():
    """Each time others; a public half belongs to one secret half."""
    one, other = new_keys(), new_keys()
    assert len({one.secret, one.client_secret, other.secret, other.client_secret}) == 4
    assert one.key == public_of(one.secret) != public_of(one.client_secret)


def test_other_addresses_need_no_invitation():
    """What is not guarded by these keys stays as it is."""
    keys, other = new_keys(), new_keys()
    for address in ("unix:///run/x.hub", "tcp://127.0.0.1:5", f"{WHERE}?plain", with_key(WHERE, other.key)):
        assert keys.invitation(address) == address


def test_no_secret_is_shown():
    """Not by the texts that Python makes of keys and addresses, and not by an error."""
    keys = new_keys()
    invitation = keys.invitation(with_key(WHERE, keys.key))
    secret = invitation.partition("secret=")[2]
    for shown in (repr(keys), str(keys), repr(read(invitation))):
        assert secret not in shown
        assert repr(keys.client_secret) not in shown
    with pytest.raises(ConfigError) as error:
        read(invitation[:-1])
    assert secret[:-1] not in str(error.value)


@pytest.mark.parametrize(
    "query", ["?key", "?key=", "?key=abc", "?secret=abc", "?other=1", "?plain&key=abc", "?x", "?key=" + "!" * 43]
)
def test_what_makes_no_sense_is_refused(query):
    """With what is wrong in it."""
    with pytest.raises(ConfigError, match="is no address"):
        read(f"{WHERE}{query}")


def test_a_secret_needs_a_key():
    """Whom one lets oneself be known to must be known."""
    keys = HubKeys(b"1" * 32, b"2" * 32)
    secret = keys.invitation(with_key(WHERE, keys.key)).partition("&")[2]
    with pytest.raises(ConfigError, match="it has a `key` and a `secret`, or it is `plain`, or neither"):
        read(f"{WHERE}?{secret}")


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("tcp://127.0.0.1:5", True),
        ("tcp://127.8.8.8:5", True),
        ("tcp://localhost:5", True),
        ("tcp://[::1]:5", True),
        ("ipc:///x", True),
        ("tcp://0.0.0.0:5", False),
        ("tcp://*:5", False),
        ("tcp://node1:5", False),
        ("tcp://10.0.0.1:5", False),
    ],
)
def test_which_addresses_only_this_host_reaches(address, private):
    """Loopback and paths; anything else may be reached from elsewhere."""
    assert read(address).is_private is private
