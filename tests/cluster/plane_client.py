"""A client process on a simulated host: sends arrays, checks what comes back, and says what became of it, as JSON.

    python plane_client.py ADDRESS REQUESTS ARRAYS SIZE_BYTES

Says "half" when half of the answers are there.
"""

from __future__ import annotations

import collections
import json
import sys
from typing import Any

import numpy as np

import tensoryard as ty


def main(address: str, requests: int, arrays: int, size_bytes: int) -> dict[str, Any]:
    """Send so many requests at once, which share so many arrays; the answers are those arrays and one more."""
    with ty.connect(address, timeout_s=60) as client:
        images = [client.empty((size_bytes // 4096, 1024), np.float32) for _ in range(arrays)]
        for number, image in enumerate(images):
            image[:] = number
        before = client.status()
        replies = [
            (n % arrays, client.submit(ty.PixelGenerationRequest(model="shown", images=[images[n % arrays]])))
            for n in range(requests)
        ]
        served: collections.Counter[str] = collections.Counter()
        seen: dict[str, set[int]] = collections.defaultdict(set)
        wrong = 0
        for n, (number, reply) in enumerate(replies):
            wrong += not (reply.result(100).images[0] == number + 1).all()
            served[reply.ledger.worker] += 1
            seen[reply.ledger.worker].add(number)
            if n == requests // 2:
                print("half", flush=True)
        after = client.status()
        return {
            "wrong": wrong,
            "served": served,
            "seen": {worker: sorted(numbers) for worker, numbers in seen.items()},
            "carried_bytes": after.carried_bytes - before.carried_bytes,
            "finished": after.outcomes.get("finished", 0) - before.outcomes.get("finished", 0),
            "own_blocks": client._connection.pool.statistics().used_blocks,
        }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:]))))
