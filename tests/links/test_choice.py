"""An address decides which link speaks it; a coordinator may listen on both at once."""

from __future__ import annotations

import pytest

from tensoryard.errors import ConfigError
from tensoryard.links import SeqpacketHub, SeqpacketPeer, ZmqHub, ZmqPeer, make_hub, make_peer
from tensoryard.links.many_hubs import ManyHubs

from ..baseline import Baseline
from ..scripted import closing, fresh_address

LIMITS = {"max_frame_bytes": 1 << 20, "max_message_bytes": 1 << 22, "peer_backlog": 100}
TCP = "tcp://127.0.0.1:0"


@pytest.mark.parametrize(("scheme", "kind"), [("unix", SeqpacketPeer), ("ipc", ZmqPeer), ("tcp", ZmqPeer)])
def test_the_scheme_decides(scheme, kind):
    """`unix://` is a UNIX socket, `ipc://` and `tcp://` are ZeroMQ."""
    address = "tcp://127.0.0.1:5" if scheme == "tcp" else fresh_address(scheme)
    with closing(make_peer(address)) as (peer,):
        assert type(peer) is kind


@pytest.mark.parametrize(
    "address", ["", "garbage", "http://x", "unix://x", "unix:/x", "UNIX:///x", 7, None, b"unix:///x"]
)
def test_what_no_link_speaks_is_refused(address):
    """Anything else is a ConfigError that quotes it, and nothing is left open."""
    before = Baseline()
    with pytest.raises(ConfigError, match="is no address"):
        make_peer(address)
    before.assert_nothing_new()


def test_an_opening_is_passed_on():
    """Each link gets what begins a conversation."""
    for scheme in ("unix", "ipc"):
        said = []
        address = fresh_address(scheme)
        with closing(make_hub([address], **LIMITS)):
            with closing(make_peer(address, opening=lambda: said.append(1) or [b"hello"])):
                assert said == [1]


@pytest.mark.parametrize(
    ("schemes", "kind"),
    [(["unix", "unix"], SeqpacketHub), (["ipc", "tcp"], ZmqHub), (["tcp", "unix", "ipc"], ManyHubs)],
    ids=["near", "far", "both"],
)
def test_a_hub_has_no_more_kinds_than_it_needs(schemes, kind):
    """Addresses of one kind make one hub of that kind; of both, one of each. Those of UNIX sockets come first."""
    addresses = [TCP if scheme == "tcp" else fresh_address(scheme) for scheme in schemes]
    with closing(make_hub(addresses, **LIMITS)) as (hub,):
        assert type(hub) is kind
        there = list(hub.addresses)
        assert len(there) == len(addresses)
        assert there == sorted(there, key=lambda address: not address.startswith("unix:"))


@pytest.mark.parametrize("wrong", ["tcp://0.0.0.0:0", "nonsense", "unix://relative", "unix:///no/such/folder/x"])
def test_a_hub_that_cannot_be_leaves_nothing(wrong):
    """When one address cannot be had, the others are free again and nothing stays open."""
    good = fresh_address()
    before = Baseline()
    with pytest.raises(ConfigError):
        make_hub([good, TCP, wrong], **LIMITS)
    before.assert_nothing_new()
    with closing(make_hub([good], **LIMITS)):
        pass
