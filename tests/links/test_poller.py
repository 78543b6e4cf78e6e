"""Waiting on descriptors alone and together with ZeroMQ's sockets."""

from __future__ import annotations

import os

import pytest
import zmq

from tensoryard.links import Poller


@pytest.fixture(params=["epoll", "zmq"])
def poller(request):
    """Both kinds: with a socket of ZeroMQ's, and without."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind("inproc://nobody-sends")
        made = Poller([socket] if request.param == "zmq" else [])
        yield made
        made.close()
        made.close()


def test_it_tells_what_has_input(poller):
    """A descriptor is told by its number while it is readable, and not once it is struck off."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    before = len(poller)
    try:
        poller.register(fd)
        assert len(poller) == before + 1
        assert poller.poll(0.0) == {}
        os.eventfd_write(fd, 1)
        assert fd in poller.poll(30.0)
        poller.unregister(fd)
        assert poller.poll(0.0) == {}
        assert len(poller) == before
    finally:
        os.close(fd)
