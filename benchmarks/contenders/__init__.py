"""Contenders: ours, peers and floors, each a small adapter behind the protocol of `base.py`.

Only `HOUSES` is read by others: which module's contenders share a process. Modules are loaded in those processes alone,
so that a peer that is not installed harms no other.
"""

#: By module: its contenders, in the order of the tables. Those of one module share a process, and perhaps a server.
HOUSES: dict[str, tuple[str, ...]] = {
    "ours": ("tensoryard", "tensoryard-lent"),
    "memcpy": ("memcpy",),
    "seqpacket": ("seqpacket", "seqpacket-broker"),
    "zeromq": ("zeromq-direct", "zeromq-broker"),
    "segments": ("segments",),
    "ray_graph": ("ray-graph",),
    "ray_peers": ("ray-actor", "ray-serve"),
    "mosec_peer": ("mosec",),
    "litserve_peer": ("litserve",),
    "pytriton_peer": ("pytriton",),
}

#: What each is, for people.
TITLES = {
    "tensoryard": "**Tensoryard**, any array (one copy)",
    "tensoryard-lent": "**Tensoryard**, `client.empty()` (no copy)",
    "memcpy": "one memcpy (floor)",
    "seqpacket": "UNIX seqpacket, point to point (floor)",
    "seqpacket-broker": "UNIX seqpacket through a Python broker (floor)",
    "zeromq-direct": "ZeroMQ out-of-band frames, point to point, no broker",
    "zeromq-broker": "ZeroMQ ipc through a Python broker",
    "segments": "a fresh shared-memory segment per array",
    "ray-graph": "Ray compiled graph (static, one caller)",
    "ray-actor": "Ray actor call",
    "ray-serve": "Ray Serve handle",
    "mosec": "Mosec (HTTP)",
    "litserve": "LitServe (HTTP)",
    "pytriton": "PyTriton (HTTP, binary tensors)",
}

OURS = HOUSES["ours"]
FLOORS = ("memcpy", "seqpacket", "seqpacket-broker")
PEERS = tuple(name for names in HOUSES.values() for name in names if name not in OURS + FLOORS)
