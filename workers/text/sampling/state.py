"""What one request brings to the choice of its tokens: parameters, counts, and where its stream stands.

Made from a `TextContext` whenever a worker takes the request up, also after a preemption or on another worker: all of
it follows from the context's tokens. `plan.py` puts the states of a batch together.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....errors import InvalidRequest
from ....proto.logits import LogitsProcessor
from ....proto.text_context import TextContext
from .log_probabilities import require_top
from .penalties import Penalties, TokenCounts
from .uniforms import Stream

#: Below this temperature a division would tell less than the likeliest token does.
LOWEST_TEMPERATURE = 1e-5


class SamplingState:
    """One request's side of the sampler.

    `Sampler.admit` makes one. `processors`: run on its logits after penalties, in this order, with the functions of its
    `SamplingParams` behind them. Raises InvalidRequest for a request that asks for more log probabilities than are
    given, or names processors of which none were made.
    """

    __slots__ = (
        "_counts",
        "_epoch",
        "_may_end_from",
        "_thinking",
        "_watches_phase",
        "chance",
        "context",
        "end_ids",
        "penalties",
        "position",
        "processors",
        "top_log_probabilities",
        "wants_log_probabilities",
    )

    context: TextContext
    #: Index in the sequence of the token chosen next: what the random number goes by.
    position: int
    #: Neutral penalties are None.
    penalties: Penalties | None
    #: Its random numbers, by position.
    chance: Stream
    processors: tuple[LogitsProcessor, ...]
    wants_log_probabilities: bool
    top_log_probabilities: int
    #: Tokens not to be chosen while the minimum of new tokens is not reached.
    end_ids: list[int]
    _counts: TokenCounts | None
    #: Grows when what a plan holds about this request no longer applies.
    _epoch: int
    #: Whether thinking has a temperature of its own, and then whether the plan was made for thinking.
    _watches_phase: bool
    _thinking: bool
    #: The first position at which an end token may stand.
    _may_end_from: int

    def __init__(self, context: TextContext, *, vocab_size: int, processors: Sequence[LogitsProcessor] = ()) -> None:
        params = context.sampling_params
        if params.named_processors and not processors:
            raise InvalidRequest("the request names logits processors, and this engine makes none")
        self.context = context
        self.position = len(context.tokens) - context.tokens.has_placeholder
        self.processors = (*processors, *(params.logits_processors or ()))
        self.top_log_probabilities = require_top(context.log_probabilities)
        self.wants_log_probabilities = context.log_probabilities > 0 or context.log_probabilities_echo
        self.end_ids = sorted(token for token in context.eos_tracker.eos_token_ids if token < vocab_size)
        self.penalties = self._counts = None
        if params.needs_penalties:
            self.penalties = Penalties(params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
            self._counts = self._count()
        self.chance = Stream(params.seed)
        self._may_end_from = context.first_generated + context.min_tokens if self.end_ids else 0
        self._epoch, self._thinking = 0, False
        self._watches_phase = params.thinking_temperature is not None

    def _count(self) -> TokenCounts:
        tokens, first = self.context.tokens.all[: self.position], self.context.first_generated
        counts = TokenCounts(tokens[:first] if self.context.sampling_params.repetition_penalty != 1 else None)
        counts.add(tokens[first:].tolist())
        return counts

    @property
    def epoch(self) -> int:
        """Changes when a plan made earlier no longer fits."""
        if self._watches_phase:
            thinking = self.context.in_reasoning_phase
            if thinking != self._thinking:
                self._thinking = thinking
                self._epoch += 1
        return self._epoch

    @property
    def temperature(self) -> float:
        """The temperature of the next token; 0 is greedy."""
        params = self.context.sampling_params
        if params.thinking_temperature is not None and self.context.in_reasoning_phase:
            return params.thinking_temperature
        return params.temperature

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is simply the likeliest."""
        return self.temperature < LOWEST_TEMPERATURE or self.top_k == 1

    @property
    def top_k(self) -> int:
        """How many of the likeliest tokens take part; -1 is all."""
        params = self.context.sampling_params
        # A greedy answer sets `top_k` to 1, which says nothing about its thinking.
        return -1 if params.temperature == 0 else params.top_k

    def may_not_end(self, ahead: int = 0) -> bool:
        """Whether the minimum of new tokens forbids an end token, `ahead` drafts behind the position."""
        return self.position + ahead < self._may_end_from

    def counts(self, drafts: Sequence[int] = ()) -> TokenCounts:
        """The tokens seen, with drafts taken for accepted."""
        assert self._counts is not None, "only requests with penalties count"
        return self._counts.with_tokens(drafts) if drafts else self._counts

    def accept(self, tokens: Sequence[int]) -> None:
        """Tokens became part of the answer: exactly those that the context was given."""
        held_back = self.may_not_end()
        self.position += len(tokens)
        if self._counts is not None:
            self._counts.add(tokens)
        if held_back and not self.may_not_end():
            self._epoch += 1
