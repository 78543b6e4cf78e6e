"""Text as its tokens come: documentation of a function that does not exist, or of the one you name."""

import sys

import tensoryard as ty


def main(name: str = "shelves.count_books(shelf)") -> None:
    with ty.connect() as client:
        tokens = 0
        for piece in client.stream(f"# {name}\n", model="small-llama", temperature=0.6, top_p=0.9, seed=7):
            print(piece.text, end="", flush=True)
            tokens += len(piece.tokens)
        print(f"\n({tokens} tokens)")


if __name__ == "__main__":
    main(*sys.argv[1:])
