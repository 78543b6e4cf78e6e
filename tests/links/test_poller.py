"""Waiting on descriptors alone and together with ZeroMQ's sockets."""

from __future__ import annotations

import os

import pytest
import zmq

from tensoryard.links import Poller


@pytest.fixture(params=["epoll", "zmq"])
def sockets(request):
    """Both kinds: with a socket of ZeroMQ's, and without."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind("inproc://nobody-sends")
        yield [socket] if request.param == "zmq" else []


def test_it_tells_what_has_input(sockets):
    """A descriptor is told by its number while it is readable, and not longer."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    poller = Poller([*sockets, fd])
    try:
        assert poller.poll(0.0) == {}
        os.eventfd_write(fd, 1)
        assert fd in poller.poll(30.0)
        assert fd in poller.poll(30.0)
        os.eventfd_read(fd)
        assert poller.poll(0.0) == {}
    finally:
        poller.close()
        poller.close()
        os.close(fd)
