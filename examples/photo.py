"""Edit a picture: large arrays go to the worker and come back by handle, and the reply tells what became of them."""

import numpy as np

import tensoryard as ty

HALF_AND_SHARP = [{"op": "resize", "scale": 0.5}, {"op": "sharpen", "amount": 0.8}]


def main() -> None:
    with ty.connect() as client:
        picture = client.empty((1200, 1600, 3), np.uint8)
        picture[...] = np.linspace(0, 255, 1600, dtype=np.uint8)[None, :, None]
        request = ty.PixelGenerationRequest(
            model="photo-edit",
            images=[picture],
            options={"operations": HALF_AND_SHARP},
        )
        reply = client.submit(request, deadline_s=30)
        (edited,) = reply.result().images
        print(f"{picture.shape} -> {edited.shape} by {reply.ledger.worker}")
        print(f"{reply.ledger.copies_in + reply.ledger.copies_out} copies, {reply.ledger.socket_bytes} bytes by socket")


if __name__ == "__main__":
    main()
