"""The other side of `seqpacket.py`: a worker that answers what it gets, or a broker that passes on.

`python -m …seqpacket_server worker FD` and `… broker FRONT_FD BACK_FD`; both end at end of file.
"""

from __future__ import annotations

import select
import socket
import sys

MAX_BYTES = 4096


def work(link: socket.socket) -> None:
    """Answer."""
    while message := link.recv(MAX_BYTES):
        link.send(message)


def pass_on(front: socket.socket, back: socket.socket) -> None:
    """What comes on one side goes to the other; all that is there, before it is waited again."""
    other = {front.fileno(): (front, back), back.fileno(): (back, front)}
    poller = select.poll()
    for number in other:
        poller.register(number, select.POLLIN)
    while True:
        for number, _ in poller.poll():
            if not _drain(*other[number]):
                return


def _drain(source: socket.socket, target: socket.socket) -> bool:
    """False at the end of file."""
    while True:
        try:
            message = source.recv(MAX_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        if not message:
            return False
        target.send(message)


def main() -> None:
    """Take the role and the sockets from the command line."""
    role, *numbers = sys.argv[1:]
    links = [socket.socket(fileno=int(number)) for number in numbers]
    {"worker": work, "broker": pass_on}[role](*links)


if __name__ == "__main__":
    main()
