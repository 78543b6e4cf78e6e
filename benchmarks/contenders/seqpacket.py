"""The floor of every message: UNIX SOCK_SEQPACKET and nothing else, point to point and through a Python broker.

Only small messages: what an array costs beyond the message that names it is `memcpy.py`'s to say. `seqpacket_server.py`
runs on the other side.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence

from .base import Contender, end, run_server

MAX_BYTES = 4096


class Seqpacket(Contender):
    """A socket pair, with a process that answers at its other end."""

    name = "seqpacket"

    def __init__(self) -> None:
        self._own, self._other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._servers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """A worker on the other end."""
        self._servers.append(_server("worker", self._other))
        self._other.close()
        self.echo(b"are you there?")

    def stop(self) -> None:
        """The servers end when their sockets do."""
        self._own.close()
        for server in self._servers:
            end(server, by_itself_s=2)

    def echo(self, message: bytes) -> bytes:
        """One round trip."""
        self._own.send(message)
        return self._own.recv(MAX_BYTES)

    def flight(self, messages: Sequence[bytes], in_flight: int) -> list[bytes]:
        """As many on their way as may be; they come back in order."""
        own, answers = self._own, []
        for message in messages[:in_flight]:
            own.send(message)
        for message in messages[in_flight:]:
            answers.append(own.recv(MAX_BYTES))
            own.send(message)
        answers += [own.recv(MAX_BYTES) for _ in range(min(in_flight, len(messages)))]
        return answers


class SeqpacketBroker(Seqpacket):
    """The same with a process in the middle, as our coordinator is."""

    name = "seqpacket-broker"

    def start(self) -> None:
        """A broker on the other end, and a worker behind it."""
        front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._servers.append(_server("broker", self._other, front))
        self._servers.append(_server("worker", back))
        for handed_over in (self._other, front, back):
            handed_over.close()
        self.echo(b"are you there?")


def _server(role: str, *sockets: socket.socket) -> subprocess.Popen[bytes]:
    numbers = [handed.fileno() for handed in sockets]
    return run_server("seqpacket_server", role, *map(str, numbers), pass_fds=numbers)


def make() -> list[Contender]:
    """Both."""
    return [Seqpacket(), SeqpacketBroker()]
