"""A client process of the fault matrix, started with ADDRESS and SETTINGS.

It asks what each line of its input names, and tells of each whether the answer is right.
"""

from __future__ import annotations

import sys

import msgspec
from matrix_requests import is_right, request

import tensoryard as ty


def main(address: str, settings: str) -> None:
    """Each line: KIND NAME."""
    with ty.connect(address, settings=msgspec.json.decode(settings, type=ty.Settings), timeout_s=60) as client:
        print("ready", flush=True)
        for line in sys.stdin:
            kind, name = line.split()
            output = client.submit(request(client, kind, name)).result(100)
            print("right" if is_right(output, kind, name) else "wrong", flush=True)
            del output


if __name__ == "__main__":
    main(*sys.argv[1:])
