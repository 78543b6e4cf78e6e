"""Speech while it is made: each sentence arrives as soon as it is spoken. Writes speech.wav, or the file you name."""

import sys

import numpy as np

import tensoryard as ty
from tensoryard.workers.pipelines.espeak import write_wav

TEXT = "The first sentence is here already. The second one is being spoken. The third has to wait a little."


def main(path: str = "speech.wav") -> None:
    with ty.connect() as client:
        chunks = []
        for chunk in client.submit(ty.AudioGenerationRequest(model="espeak", input=TEXT, options={"rate": 150})):
            print(f"chunk {chunk.metadata.chunk_id}: {chunk.metadata.duration:.1f} s of sound")
            chunks.append(chunk)
        write_wav(path, np.concatenate([chunk.audio_data for chunk in chunks]), chunks[0].metadata.sample_rate)
        print(f"written to {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
