"""LitServe, serving raw bytes: `python -m …litserve_server PORT`.

One process in front and one worker for each path; arrays come and go as the bodies of HTTP messages.
"""

# No `from __future__ import annotations` here: LitServe reads `decode_request`'s annotation as an object.

import struct
import sys
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Response

from ..works import Array, fill, page_sum, touched

RawBody = Annotated[bytes, Body(media_type="application/octet-stream")]
#: Requests in one batch, as our worker has; a batch waits for no more.
BATCH = 32


class Raw(litserve.LitAPI):
    """Bytes in, bytes out."""

    def setup(self, device: Any) -> None:  # noqa: ARG002 - LitServe gives it
        """Memory for what is made is taken when it is first needed."""
        self.sources: dict[int, Array] = {}
        self.targets: dict[int, Array] = {}

    def decode_request(self, request: RawBody) -> bytes:
        """As they are."""
        return request

    def encode_response(self, output: Any) -> Response:
        """As they are."""
        return Response(content=bytes(output), media_type="application/octet-stream")


class Echo(Raw):
    """The same bytes, a batch at a time."""

    def batch(self, inputs: Any) -> Any:
        """A list is good enough."""
        return list(inputs)

    def unbatch(self, output: Any) -> Any:
        """One by one."""
        return list(output)

    def predict(self, x: Any) -> Any:
        """Nothing."""
        return x


class Read(Raw):
    """An array's page sum."""

    def predict(self, x: Any) -> Any:
        """One at a time."""
        return struct.pack("<q", page_sum(np.frombuffer(x, np.uint8)))


class Make(Raw):
    """An array."""

    def predict(self, x: Any) -> Any:
        """Into memory that is used again."""
        nbytes, seed = struct.unpack("<qq", x)
        if nbytes not in self.sources:
            self.sources[nbytes], self.targets[nbytes] = touched(nbytes), touched(nbytes)
        return memoryview(fill(self.targets[nbytes], seed, self.sources[nbytes]))


def main() -> None:
    """Serve until a signal."""
    apis = [
        Echo(max_batch_size=BATCH, batch_timeout=0.0, api_path="/echo"),
        Read(api_path="/read"),
        Make(api_path="/make"),
    ]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="error", generate_client_file=False
    )


if __name__ == "__main__":
    main()
