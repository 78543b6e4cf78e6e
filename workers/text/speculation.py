"""Speculative decoding: tokens guessed ahead, and which of them the model's own choice confirms.

The sampler chooses behind every draft at once (`Sampler.sample` with `drafts`); here is who guesses, how far, and what
is kept. Drafts wait in the context's `SpecDecodingState`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...proto.text_context import TextContext
from .sampling import Sampler, SamplingState

#: Most drafts of one request in one step.
MAX_DRAFTS = 16

#: Of a long prompt, how many of its last tokens n-grams are looked for in: an index takes some 500 bytes a token.
MAX_INDEXED = 8_192


class Proposer(Protocol):
    """Guesses what comes next."""

    def propose(self, states: Sequence[SamplingState], most: Sequence[int]) -> list[list[int]]:
        """For each request at most so many tokens, perhaps none."""
        ...

    def release(self, context: TextContext) -> None:
        """The request has ended: forget it."""
        ...


class NGramProposer:
    """Guesses that what followed the last few tokens before will follow them again.

    `longest`, `shortest`: how many last tokens are looked for, the longest match first. A token costs a few look-ups
    once; nothing is searched.
    """

    #: Each request's index; gone with the request.
    _indexes: dict[TextContext, _NGramIndex]

    def __init__(self, *, longest: int = 3, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens: 1 <= shortest <= longest")
        self._sizes = range(longest, shortest - 1, -1)
        self._indexes = {}

    def propose(self, states: Sequence[SamplingState], most: Sequence[int]) -> list[list[int]]:
        """See `Proposer`."""
        return [self._guess(state.context, count) for state, count in zip(states, most, strict=True)]

    def release(self, context: TextContext) -> None:
        """See `Proposer`."""
        self._indexes.pop(context, None)

    def _guess(self, context: TextContext, most: int) -> list[int]:
        if most < 1:
            return []
        index = self._indexes.get(context)
        if index is None:
            index = self._indexes[context] = _NGramIndex(self._sizes, max(len(context.tokens) - MAX_INDEXED, 0))
        tokens = context.tokens.all[: len(context.tokens) - context.tokens.has_placeholder]
        return index.continuation(tokens, most)


class _NGramIndex:
    """Where each n-gram of one request was last followed by something."""

    __slots__ = ("_after", "_read", "_sizes")

    #: An n-gram to the position behind its last occurrence but the one at the very end; one entry per token and size.
    _after: dict[tuple[int, ...], int]
    #: Tokens whose n-grams are in, all but the last of them.
    _read: int

    def __init__(self, sizes: range, begin: int) -> None:
        self._sizes = sizes
        self._after, self._read = {}, begin

    def continuation(self, tokens: npt.NDArray[np.int64], most: int) -> list[int]:
        """What followed the longest known end of `tokens`; empty when none is known."""
        recent = tokens[max(self._read - self._sizes[0], 0) :].tolist()
        offset = len(tokens) - len(recent)
        for position in range(max(self._read, 1), len(tokens)):
            for size in self._sizes:
                if size <= position:
                    self._after[tuple(recent[position - size - offset : position - offset])] = position
        self._read = len(tokens)
        for size in self._sizes:
            start = self._after.get(tuple(recent[-size:])) if len(recent) >= size else None
            if start is not None:
                found: list[int] = tokens[start : start + most].tolist()
                return found
        return []


class DraftModelProposer:
    """Guesses by a smaller model of the same vocabulary.

    `step(contexts, drafts)` gives the draft model's logits, float32 `(requests, vocabulary)` on the device, behind each
    context and its drafts so far; it may keep a cache of its own, and drops it in `forget`. `ready(contexts)`: for
    which there can be guesses now. The tokens are drawn with the very random numbers that the model's own choice will
    use, so that where the models agree the guess is right, at any temperature.
    """

    def __init__(
        self,
        sampler: Sampler,
        step: Callable[[Sequence[TextContext], Sequence[Sequence[int]]], Any],
        forget: Callable[[TextContext], None] = lambda _context: None,
        ready: Callable[[Sequence[TextContext]], Sequence[bool]] = lambda contexts: [True] * len(contexts),
    ) -> None:
        self._sampler = sampler
        self._step = step
        self._forget = forget
        self._ready = ready

    def propose(self, states: Sequence[SamplingState], most: Sequence[int]) -> list[list[int]]:
        """See `Proposer`. A request for which the draft model has no token gets the drafts before it."""
        drafts: list[list[int]] = [[] for _ in states]
        asked = [index for index, count in enumerate(most) if count]
        ready = self._ready([states[index].context for index in asked])
        open_ones = [index for index, able in zip(asked, ready, strict=True) if able]
        while open_ones:
            some, so_far = [states[index] for index in open_ones], [drafts[index] for index in open_ones]
            sampled = self._sampler.guess(self._step([state.context for state in some], so_far), some, so_far)
            for place, index in enumerate(open_ones):
                if place not in sampled.problems:
                    drafts[index].append(sampled.tokens[place])
            open_ones = [
                index
                for place, index in enumerate(open_ones)
                if place not in sampled.problems and len(drafts[index]) < most[index]
            ]
        return drafts

    def release(self, context: TextContext) -> None:
        """See `Proposer`."""
        self._forget(context)


@dataclass
class Acceptance:
    """What became of drafts, as `CompletedBatchStats` tells it.

    `by_position`: how many drafts stood first, second, … and how many of those were accepted.
    """

    generated: int = 0
    accepted: int = 0
    longest: int = 0
    requests: int = 0
    by_position: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * MAX_DRAFTS)

    def count(self, drafts: int, accepted: int) -> None:
        """One request's drafts of one step."""
        self.generated += drafts
        self.accepted += accepted
        self.longest = max(self.longest, accepted)
        self.requests += 1
        for place in range(drafts):
            stood, passed = self.by_position[place]
            self.by_position[place] = stood + 1, passed + (place < accepted)

    @property
    def mean_length(self) -> float:
        """Drafts accepted in a row, on average over requests that had any."""
        return self.accepted / self.requests if self.requests else 0.0

    @property
    def rate_per_position(self) -> list[float]:
        """The share accepted at each position that was ever reached."""
        return [passed / stood for stood, passed in self.by_position if stood]


class Speculation:
    """Drafts for the requests of one model: asks a proposer, and learns from what is accepted how far to guess.

    `most`: drafts of one request at most. A request whose drafts were all refused gets half as many next time, one
    whose drafts were all accepted one more.
    """

    #: Drafts that each request gets next; gone with the request.
    _lengths: dict[TextContext, int]

    def __init__(self, proposer: Proposer, *, most: int = 4) -> None:
        if not 1 <= most <= MAX_DRAFTS:
            raise ValueError(f"1 to {MAX_DRAFTS} drafts, not {most}")
        self._proposer = proposer
        self._most = most
        self._lengths = {}

    def draft(self, states: Sequence[SamplingState]) -> list[list[int]]:
        """Guess for each request; the drafts are in its `SpecDecodingState` too, and are never past its end."""
        most = [self._room(state.context) for state in states]
        drafts = self._proposer.propose(states, most)
        for state, guessed, count in zip(states, drafts, most, strict=True):
            del guessed[count:]
            state.context.spec_decoding_state.draft_tokens_to_verify = guessed
        return drafts

    def settle(self, states: Sequence[SamplingState], tokens: Sequence[int], counted: Acceptance) -> list[list[int]]:
        """What each request gains by a step: the accepted drafts and one token more.

        `tokens`: what the sampler chose, one row per draft and one more for each request. The drafts are used up.
        """
        gained: list[list[int]] = []
        start = 0
        for state in states:
            drafts = state.context.spec_decoding_state.draft_tokens_to_verify
            gained.append(confirmed(drafts, tokens[start : start + len(drafts) + 1]))
            start += len(drafts) + 1
            if drafts:
                counted.count(len(drafts), len(gained[-1]) - 1)
                self._learn(state.context, len(drafts), len(gained[-1]) - 1)
            state.context.spec_decoding_state.draft_tokens_to_verify = []
        return gained

    def release(self, context: TextContext) -> None:
        """The request has ended."""
        self._lengths.pop(context, None)
        self._proposer.release(context)

    def _room(self, context: TextContext) -> int:
        # One token comes without being guessed.
        left = context.max_length - len(context.tokens) + context.tokens.has_placeholder - 1
        return max(0, min(self._lengths.get(context, self._most), left))

    def _learn(self, context: TextContext, drafts: int, accepted: int) -> None:
        length = self._lengths.get(context, self._most)
        if accepted == drafts:
            self._lengths[context] = min(self._most, length + 1)
        elif not accepted:
            self._lengths[context] = max(1, length // 2)


def confirmed(drafts: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """The tokens that a request gains: those chosen up to and with the first that differs from its draft.

    `tokens[i]` was chosen behind `drafts[:i]`, so it is the request's own choice exactly as far as the drafts were
    right. A draft that is certain is accepted with the probability that the model gives it, and the choice itself is
    the same as without drafts: the text is, too, greedy and seeded.
    """
    for place, draft in enumerate(drafts):
        if tokens[place] != draft:
            return list(tokens[: place + 1])
    return list(tokens)


def accept_by_rejection(
    target: npt.NDArray[np.float64],
    guessed: npt.NDArray[np.float64],
    drafts: Sequence[int],
    uniforms: Sequence[float],
    last: float,
) -> list[int]:
    """The classical rule, for drafts drawn at random from a distribution of their own: the tokens gained.

    `target`: the model's probabilities `(drafts + 1, vocabulary)`; `guessed`: those the drafts were drawn from,
    `(drafts, vocabulary)`; `uniforms`: one number in [0, 1) per draft; `last`: one more for the token behind.

    A draft `x` is accepted with probability `min(1, p(x) / q(x))`; the first that is not is replaced by a token drawn
    from what the model gives beyond the guess, `max(p - q, 0)`. What comes out has exactly the distribution of
    `target`. No rule accepts more, but the text depends on where drafts began (docs/decisions/0028).
    """
    for place, (draft, number) in enumerate(zip(drafts, uniforms, strict=True)):
        p, q = target[place], guessed[place]
        if number * q[draft] < p[draft]:
            continue
        beyond = np.maximum(p - q, 0)
        # Both sum to 1: nothing is beyond only where rounding made the two equal.
        return [*drafts[:place], _drawn(beyond if beyond.sum() > 0 else p, last)]
    return [*drafts, _drawn(target[len(drafts)], last)]


def _drawn(weight: npt.NDArray[np.float64], number: float) -> int:
    mass = np.cumsum(weight)
    return int(np.searchsorted(mass, number * mass[-1], side="right").clip(max=np.flatnonzero(weight)[-1]))
