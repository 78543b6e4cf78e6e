"""The least an HTTP/1.1 client can be: kept connections, bodies of known length. For the peers that speak HTTP.

Their usual client libraries cost more than many of these servers; what is measured here is the server.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Sequence
from typing import Any

_END_OF_HEAD = b"\r\n\r\n"
_CHUNK_BYTES = 4 << 20
TIMEOUT_S = 60.0


class HttpError(Exception):
    """The server answered, and not with 200."""


class Connection:
    """One request after the other on one connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = self._open()

    def _open(self) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def send(self, path: str, body: Any, headers: str = "") -> None:
        """POST. The body is bytes-like, or a list of such pieces, which are sent where they lie."""
        pieces = body if isinstance(body, list) else [body]
        size = sum(memoryview(piece).nbytes for piece in pieces)
        kind = "" if "Content-Type" in headers else "Content-Type: application/octet-stream\r\n"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n{kind}{headers}\r\n".encode()
        if size < 1 << 16:
            self._socket.sendall(b"".join([head, *map(bytes, pieces)]))
            return
        for piece in (head, *pieces):
            self._socket.sendall(piece)

    def receive(self) -> tuple[str, bytearray]:
        """Head and body. Raises HttpError for anything but 200, OSError when the connection ends before."""
        buffer = bytearray()
        while (end := buffer.find(_END_OF_HEAD)) < 0:
            self._take(buffer)
        head = buffer[:end].decode("latin-1")
        size = _content_length(head)
        body = buffer[end + len(_END_OF_HEAD) :]
        if size - len(body) < _CHUNK_BYTES:
            while len(body) < size:
                self._take(body)
        else:
            body = self._take_large(body, size)
        if " 200 " not in head.split("\r\n", 1)[0]:
            raise HttpError(f"{head.splitlines()[0]}: {bytes(body[:300])!r}")
        return head, body

    def _take(self, buffer: bytearray) -> None:
        got = self._socket.recv(1 << 16)
        if not got:
            raise OSError("the server closed the connection")
        buffer += got

    def _take_large(self, begun: bytearray, size: int) -> bytearray:
        """Into memory of the right size at once."""
        body = bytearray(size)
        body[: len(begun)] = begun
        place, view = len(begun), memoryview(body)
        while place < size:
            got = self._socket.recv_into(view[place : place + _CHUNK_BYTES])
            if not got:
                raise OSError("the server closed the connection")
            place += got
        return body

    def ask(self, path: str, body: Any, headers: str = "") -> tuple[str, bytearray]:
        """There and back: head and body. A server may have closed a connection that it found idle; then on another."""
        try:
            self.send(path, body, headers)
            return self.receive()
        except OSError:
            self.close()
            self._socket = self._open()
        self.send(path, body, headers)
        return self.receive()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _content_length(head: str) -> int:
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            return int(value)
    raise OSError(f"an answer without Content-Length: {head[:200]}")


def flight(port: int, path: str, bodies: Sequence[Any], in_flight: int, headers: str = "") -> list[bytearray]:
    """Many small requests, one under way on each of `in_flight` connections; the answers in order."""
    answers: list[bytearray] = [bytearray()] * len(bodies)
    numbers = iter(range(len(bodies)))
    with selectors.DefaultSelector() as selector:
        for connection, number in zip(
            [Connection(port) for _ in range(min(in_flight, len(bodies)))], numbers, strict=False
        ):
            connection.send(path, bodies[number], headers)
            selector.register(connection, selectors.EVENT_READ, number)
        while selector.get_map():
            for key, _ in selector.select(TIMEOUT_S):
                connection = key.fileobj
                answers[key.data] = connection.receive()[1]
                following = next(numbers, None)
                if following is None:
                    selector.unregister(connection)
                    connection.close()
                    continue
                connection.send(path, bodies[following], headers)
                selector.modify(connection, selectors.EVENT_READ, following)
    return answers


def answers_at(port: int, path: str, body: Any, headers: str = "") -> bool:
    """Whether the server serves by now."""
    try:
        connection = Connection(port)
        try:
            connection.ask(path, body, headers)
        finally:
            connection.close()
    except (OSError, HttpError):
        return False
    return True
