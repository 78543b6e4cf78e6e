"""Which link speaks an address: UNIX sockets within one host, ZeroMQ for everything else.

The only place that knows; sessions and the coordinator ask here.
"""

from __future__ import annotations

from collections.abc import Sequence

from .address import HubKeys, read
from .base import HubLink, Opening, PeerLink
from .many_hubs import ManyHubs
from .seqpacket_hub import SeqpacketHub
from .seqpacket_peer import SeqpacketPeer
from .unix_socket import SCHEME
from .zeromq import ZmqHub, ZmqPeer


def make_peer(address: str, *, opening: Opening | None = None, silence_s: float | None = None) -> PeerLink:
    """A peer's end; ConfigError for what is no address. `opening` begins each conversation that it knows of.

    `silence_s`: between hosts, a connection on which nothing comes for so long is made anew.
    """
    if _is_unix(address):
        return SeqpacketPeer(address, opening=opening)
    return ZmqPeer(address, opening=opening, silence_s=silence_s)


def make_hub(
    addresses: Sequence[str],
    *,
    max_frame_bytes: int,
    max_message_bytes: int,
    peer_backlog: int,
    keys: HubKeys | None = None,
) -> HubLink:
    """A hub's end at all of these addresses, UNIX sockets first; ConfigError when it cannot listen at one.

    `max_message_bytes` bounds messages, and what may wait for one peer, where the link can know them. With `keys`,
    every `tcp://` address is guarded by them that does not say `?plain`.
    """
    near = [address for address in addresses if _is_unix(address)]
    guarded = [address for address in addresses if keys is not None and _takes_keys(address)]
    open_ = [address for address in addresses if address not in near and address not in guarded]
    hubs: list[HubLink] = []
    try:
        if near:
            hubs.append(
                SeqpacketHub(
                    near,
                    max_frame_bytes=max_frame_bytes,
                    max_message_bytes=max_message_bytes,
                    peer_backlog=peer_backlog,
                ),
            )
        if open_:
            hubs.append(ZmqHub(open_, max_frame_bytes=max_frame_bytes, peer_backlog=peer_backlog))
        if guarded:
            hubs.append(ZmqHub(guarded, max_frame_bytes=max_frame_bytes, peer_backlog=peer_backlog, keys=keys))
    except BaseException:
        for hub in hubs:
            hub.close()
        raise
    return hubs[0] if len(hubs) == 1 else ManyHubs(hubs)


def _is_unix(address: str) -> bool:
    return isinstance(address, str) and address.startswith(SCHEME)


def _takes_keys(address: str) -> bool:
    return address.startswith("tcp://") and not read(address).is_plain
