"""Text generation with the small model: our loop against `transformers.generate`, on the same CPU in one run.

`python -m tensoryard.benchmarks.text_generation`: greedy answers to equal prompts at batch 1, 8 and 32, by turns, one
thread each. Both have the same weights in float32 and must give the same tokens. Prints tokens per second with their
spread, and ours over theirs per round, by the wall clock and by the processor's time: on a busy machine the first
counts waiting for a turn too. And what share of our steps is spent outside the model: planning, choosing, committing,
making text. Without torch and transformers only ours are measured. `--pipeline hf` has the library's own model in our
loop, each sequence by itself, `--pipeline hf-together` all of a step at once.

`--guess ngram` compares with ourselves instead: the same with guesses ahead and without, on prompts of words.
"""

# ruff: noqa: E402 - the environment comes before the libraries that read it

from __future__ import annotations

import os

# Before NumPy and torch are imported: both read it once. Two libraries whose threads wait for each other measure that.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tensoryard.proto.request import RequestID
from tensoryard.proto.sampling import SamplingParams
from tensoryard.proto.text_batch import TextGenerationInputs
from tensoryard.proto.text_request import TextGenerationRequest
from tensoryard.workers.pipelines import hf
from tensoryard.workers.pipelines.llama import SMALL_MODEL, Llama, create

PROMPT_TOKENS = 32
BATCHES = (1, 8, 32)
#: The small model, computed by whom.
_LIBRARY = partial(hf.create, model_dir=str(SMALL_MODEL), device="cpu", prefix_cache=False, dtype="float32")
PIPELINES: dict[str, Callable[..., Llama]] = {
    "llama": partial(create, device="cpu", prefix_cache=False),
    "hf": partial(_LIBRARY, together=False),
    "hf-together": partial(_LIBRARY, together=True),
}

Prompts = np.ndarray[Any, Any]


class Ours:
    """The pipeline, as a worker drives it."""

    def __init__(self, pipeline: str = "llama", **options: Any) -> None:
        self.llama: Llama = PIPELINES[pipeline](**options)
        #: Tokens guessed, and those of them that were kept.
        self.guessed, self.kept = 0, 0
        #: Seconds inside the model, and of whole steps, of those steps that only decode.
        self.model_s: list[float] = []
        self.step_s: list[float] = []
        self._compute = self.llama.decoder.compute
        self.llama.decoder.compute = self._timed  # type: ignore[method-assign]
        self._inside = 0.0

    def _timed(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        logits = self._compute(*arguments)
        self._inside = time.perf_counter() - began
        return logits

    def generate(self, prompts: Prompts, new: int) -> list[list[int]]:
        """Greedy tokens of each prompt."""
        params = SamplingParams(temperature=0, max_new_tokens=new, ignore_eos=True)
        live = [self.llama.new_context(self._request(prompt, params)) for prompt in prompts]
        found: dict[RequestID, list[int]] = {context.request_id: [] for context in live}
        while live:
            self._step(live, found)
            for context in [context for context in live if context.is_done]:
                self.llama.release(context.request_id)
                live.remove(context)
        return list(found.values())

    def _request(self, prompt: Prompts, params: SamplingParams) -> TextGenerationRequest:
        return TextGenerationRequest(model_name="m", prompt=prompt.tolist(), sampling_params=params)

    def _step(self, live: list[Any], found: dict[RequestID, list[int]]) -> None:
        began = time.perf_counter()
        inputs = TextGenerationInputs(batches=[live])
        outputs = self.llama.execute(inputs)
        took = time.perf_counter() - began
        if len(outputs) == len(live) == inputs.input_tokens:
            self.step_s.append(took)
            self.model_s.append(self._inside)
        for key, output in outputs.items():
            for part in output if isinstance(output, list) else [output]:
                found[key] += part.tokens
                self.guessed += part.draft_tokens_generated
                self.kept += part.draft_tokens_accepted


def theirs() -> Callable[[Prompts, int], list[list[int]]] | None:
    """The same by transformers; None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(SMALL_MODEL, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    def generate(prompts: Prompts, new: int) -> list[list[int]]:
        ids = torch.from_numpy(prompts)
        mask = torch.ones_like(ids)
        found = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=1)
        tokens: list[list[int]] = found[:, prompts.shape[1] :].tolist()
        return tokens

    return generate


def timed(generate: Callable[[Prompts, int], list[list[int]]], prompts: Prompts, new: int) -> tuple[Any, Any]:
    """Tokens per second, by the wall clock and by the processor's time, and the tokens."""
    began, began_cpu = time.perf_counter(), time.process_time()
    tokens = generate(prompts, new)
    took = np.array([time.perf_counter() - began, time.process_time() - began_cpu])
    return len(prompts) * new / took, tokens


def spread(values: list[float]) -> str:
    """Median, and least to most."""
    return f"{statistics.median(values):8.2f}  ({min(values):.2f} to {max(values):.2f})"


def compare(ours: Ours, others: Callable[..., Any] | None, batch: int, new: int, rounds: int) -> None:
    """One batch size, in turns; the first round of each warms up."""
    prompts = np.random.default_rng(batch).integers(2, 2048, (batch, PROMPT_TOKENS))
    mine, other = [], []
    for number in range(rounds + 1):
        speed, tokens = timed(ours.generate, prompts, new)
        mine += [speed] if number else []
        if others is not None:
            speed, wanted = timed(others, prompts, new)
            other += [speed] if number else []
            same = sum(a == b for a, b in zip(tokens, wanted, strict=True))
            assert same >= batch * 0.9, f"only {same} of {batch} answers are the same"
    share = [1 - model / step for model, step in zip(ours.model_s, ours.step_s, strict=True)]
    print(f"batch {batch:2}: ours          {spread([speed[0] for speed in mine])} tokens/s")
    if other:
        print(f"          transformers  {spread([speed[0] for speed in other])} tokens/s")
        for clock, name in enumerate(("ratio        ", "ratio by CPU ")):
            print(f"          {name} {spread([a[clock] / b[clock] for a, b in zip(mine, other, strict=True)])}")
    print(f"          outside the model {100 * statistics.median(share):.1f} % of a step (median of {len(share)})")
    ours.model_s.clear()
    ours.step_s.clear()


def compare_guessing(kind: str, batch: int, new: int, rounds: int) -> None:
    """With guesses against without, in turns: the tokens are the same."""
    plain, guessing = Ours(), Ours(speculation=kind)
    names = [
        f"# shelf.{name}(self, key)\n" for name in ("open", "close", "read", "find", "keys", "update", "get", "pop")
    ]
    texts = [guessing.llama.tokenizer.encode(names[number % len(names)]) for number in range(batch)]
    prompts = np.array([(ids * PROMPT_TOKENS)[:PROMPT_TOKENS] for ids in texts])
    ratios = []
    for number in range(rounds + 1):
        speed, tokens = timed(guessing.generate, prompts, new)
        other, wanted = timed(plain.generate, prompts, new)
        assert tokens == wanted, "guesses have changed an answer"
        ratios += [speed / other] if number else []
    print(f"batch {batch:2}: {kind} over none {spread([ratio[0] for ratio in ratios])}")
    print(f"          by CPU         {spread([ratio[1] for ratio in ratios])}")
    print(f"          {100 * guessing.kept / max(guessing.guessed, 1):.0f} % of the guesses were right")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each answer")
    parser.add_argument("--pipeline", choices=PIPELINES, default="llama")
    parser.add_argument("--guess", choices=["ngram"], help="compare with guesses ahead and without")
    asked = parser.parse_args()
    if asked.guess:
        for batch in BATCHES:
            compare_guessing(asked.guess, batch, asked.tokens, asked.rounds)
        return
    ours, others = Ours(asked.pipeline), theirs()
    if others is None:
        print("torch and transformers are not installed: pip install 'tensoryard[parity]'")
    for batch in BATCHES:
        compare(ours, others, batch, asked.tokens, asked.rounds)


if __name__ == "__main__":
    main()
