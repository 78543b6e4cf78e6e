"""Many requests at once from an event loop: `map` keeps a bounded number under way and gives the results in order."""

import asyncio

import tensoryard as ty


async def main() -> None:
    async with await ty.connect_async() as client:
        requests = [ty.EmbeddingsRequest(model="all-MiniLM-L6-v2", input=f"sentence {n}") for n in range(100)]
        total = 0
        async for output in client.map(requests, max_in_flight=16):
            total += len(output.embeddings)
        print(f"{total} sentences embedded")


if __name__ == "__main__":
    asyncio.run(main())
