"""What one decode step costs on the host: a batch of text contexts, each advanced by one token with its stop rules.

`python benchmarks/token_step.py`: 256 contexts, each with EOS ids, two stop token sequences and two stop strings, get a
token and its decoded piece of text per step; the goal is under 1 ms. Prints median and 99th percentile over all steps,
for whole steps and for their parts, which are timed in runs of their own. Beside the wall clock's times stand those of
the thread's own clock, which runs only while it computes: on a busy machine the first also count waiting for a turn.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import numpy as np

from tensoryard.proto.eos import EOSTracker
from tensoryard.proto.request import RequestID
from tensoryard.proto.sampling import SamplingParams
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.tokens import TokenBuffer

VOCABULARY = 32_000
PROMPT_TOKENS = 512
EOS_IDS = (1, 2)
GOAL_MS = 1.0

#: Pieces as a tokenizer makes them: short words and syllables, some of which begin a stop string without ending it.
PIECES = (
    " the",
    " of",
    "ing",
    " model",
    "\n",
    ".",
    " and",
    "tion",
    " a",
    "Us",
    "###",
    " in",
    ",",
    " value",
    "er",
    " 42",
)


def context_of(number: int) -> TextContext:
    """One request in the middle of its answer; no two have the same rules."""
    tracker = EOSTracker(
        eos_token_ids=EOS_IDS,
        eos_sequences=[[700 + number, 13], [29, 31, 37 + number]],
        eos_stop_strings=[f"\n\nUser {number}:", "### End"],
    )
    return TextContext(
        tokens=TokenBuffer(np.arange(100, 100 + PROMPT_TOKENS, dtype=np.int64)),
        max_length=1 << 40,
        request_id=RequestID(f"request-{number}"),
        eos_tracker=tracker,
        sampling_params=SamplingParams(seed=number),
        vocab_size=VOCABULARY,
    )


def steps_of(count: int, batch: int, seed: int) -> list[tuple[list[int], list[str]]]:
    """What the model and the tokenizer bring each step: no end token, now and then the beginning of an ending."""
    chance = random.Random(seed)  # noqa: S311 - the same steps in every run
    ids = [*range(3, 4096), *[13, 29, 31] * 40]
    return [(chance.choices(ids, k=batch), chance.choices(PIECES, k=batch)) for _ in range(count)]


def step(contexts: list[TextContext], tokens: list[int], pieces: list[str]) -> int:
    """Advance every context by its token and its text; how many have ended."""
    for context, token, piece in zip(contexts, tokens, pieces, strict=True):
        context.update(token)
        context.update_with_text(piece)
    return sum(context.is_done for context in contexts)


def update_only(contexts: list[TextContext], tokens: list[int], _pieces: list[str]) -> None:
    """The tokens alone: buffer, EOS ids and stop sequences."""
    for context, token in zip(contexts, tokens, strict=True):
        context.update(token)


def text_only(contexts: list[TextContext], _tokens: list[int], pieces: list[str]) -> None:
    """The text alone: stop strings."""
    for context, piece in zip(contexts, pieces, strict=True):
        context.update_with_text(piece)


def output_only(contexts: list[TextContext], tokens: list[int], _pieces: list[str]) -> None:
    """The tokens, and the output that each streams."""
    for context, token in zip(contexts, tokens, strict=True):
        context.update(token)
        context.to_generation_output()


def timed(
    work: Callable[[list[TextContext], list[int], list[str]], object],
    count: int,
    batch: int,
) -> tuple[list[float], list[float]]:
    """Milliseconds of each step, by the wall clock and by the thread's, after a tenth as many to warm up."""
    contexts = [context_of(number) for number in range(batch)]
    wall, own = [], []
    for tokens, pieces in steps_of(count + count // 10, batch, seed=1):
        started, started_own = time.perf_counter(), time.thread_time()
        work(contexts, tokens, pieces)
        own.append((time.thread_time() - started_own) * 1e3)
        wall.append((time.perf_counter() - started) * 1e3)
    assert not any(context.is_done for context in contexts), "the steps were meant to end nothing"
    return wall[count // 10 :], own[count // 10 :]


def row(name: str, took: tuple[list[float], list[float]], batch: int) -> str:
    """One line of the table."""
    figures = [
        figure for times in took for figure in (statistics.median(times), statistics.quantiles(times, n=100)[98])
    ]
    return f"{name:34}" + "".join(f"{figure:10.3f}" for figure in (*figures, figures[0] * 1e3 / batch))


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="What one decode step costs on the host.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    asked = parser.parse_args()
    print(f"{asked.batch} contexts, {asked.steps} steps each, milliseconds a step; goal: a whole one under {GOAL_MS}")
    print(f"{'':34}{'wall':>10}{'p99':>10}{'own':>10}{'p99':>10}{'µs/ctx':>10}")
    for name, work in (
        ("whole step: token and text", step),
        ("  token, EOS ids, stop sequences", update_only),
        ("  text, stop strings", text_only),
        ("token and streamed output", output_only),
    ):
        print(row(name, timed(work, asked.steps, asked.batch), asked.batch))


if __name__ == "__main__":
    main()
