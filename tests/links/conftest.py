"""The two ends of whichever link a module's own `link` fixture names (`implementations.py`)."""

from __future__ import annotations

import pytest


@pytest.fixture
def hub(link):
    hub = link.hub(link.address())
    yield hub
    hub.close()


@pytest.fixture
def make_peer(link, hub):
    peers = []

    def make(address=None, **how):
        peers.append(link.peer(address or hub.addresses[0], **how))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()
