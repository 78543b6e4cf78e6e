"""Search by meaning: embed some sentences, and find the one that a question means."""

import numpy as np

import tensoryard as ty

SENTENCES = [
    "Bread needs flour, water, salt and time.",
    "The train to the coast leaves at noon.",
    "A kitten slept on the warm keyboard.",
    "Shared memory lets processes read the same bytes.",
]


def main() -> None:
    with ty.connect() as client:
        vectors = client.embed(SENTENCES, model="all-MiniLM-L6-v2")
        for question in ("How do I bake?", "When can I travel to the sea?", "Which animal is it?"):
            scores = vectors @ client.embed(question, model="all-MiniLM-L6-v2")[0]
            print(f"{question:<32} {scores.max():.2f}  {SENTENCES[int(np.argmax(scores))]}")


if __name__ == "__main__":
    main()
