"""Links: the thin seam between our processes and a transport; frames go in at one end and come out at the other.

`base.py` says what a link is, `choice.py` picks one by address: `seqpacket_hub.py` and `seqpacket_peer.py` within one
host, `zeromq.py` between hosts. `memory.py` is one without any transport; `session.py` a peer's conversation over one.
"""

from .base import Frames, HubLink, Opening, PeerLink
from .choice import make_hub, make_peer
from .memory import MemoryNetwork
from .pid_namespace import pid_namespace
from .poller import Poller
from .seqpacket_hub import SeqpacketHub
from .seqpacket_peer import SeqpacketPeer
from .session import Session
from .zeromq import ZmqHub, ZmqPeer

__all__ = [
    "Frames",
    "HubLink",
    "MemoryNetwork",
    "Opening",
    "PeerLink",
    "Poller",
    "SeqpacketHub",
    "SeqpacketPeer",
    "Session",
    "ZmqHub",
    "ZmqPeer",
    "make_hub",
    "make_peer",
    "pid_namespace",
]
