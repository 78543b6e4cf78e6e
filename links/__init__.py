"""Links: the thin seam between our processes and a transport; frames go in at one end and come out at the other.

`base.py` says what a link is, `zeromq.py` is one; `session.py` is a peer's conversation over one.
"""

from .base import Frames, HubLink, PeerLink
from .pid_namespace import pid_namespace
from .session import Session
from .zeromq import ZmqHub, ZmqPeer

__all__ = ["Frames", "HubLink", "PeerLink", "Session", "ZmqHub", "ZmqPeer", "pid_namespace"]
