"""A cluster inside a script: a pipeline of your own, served by two processes for as long as the `with` block lasts."""

from pathlib import Path

import numpy as np

import tensoryard as ty


def main() -> None:
    mean = ty.Deployment(
        model="mean",
        task=ty.PipelineTask.EMBEDDINGS_GENERATION,
        pipeline=f"{Path(__file__).with_name('channel_mean.py')}:create",
        replicas=2,
    )
    with ty.local([mean], runtime="process") as yard, yard.connect() as client:
        # An array in shared memory: filled once, read by the worker where it lies. Nothing is copied.
        photo = client.empty((1080, 1920, 3), np.uint8)
        photo[:] = [10, 20, 30]
        reply = client.submit(ty.EmbeddingsRequest(model="mean", input=photo))
        print("mean of each channel:", reply.result().embeddings)
        print(f"by handle: {reply.ledger.shared_bytes_in} bytes, copied {reply.ledger.copies_in} times")
        print(f"through sockets: {reply.ledger.socket_bytes} bytes")


if __name__ == "__main__":  # the workers' processes import this file's neighbours, never run it
    main()
