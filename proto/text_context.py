"""The state of one text request inside a worker: its tokens, how it ends, what is still to be streamed.

Tokens are in `tokens.py`, stop rules in `eos.py`, sampling in `sampling.py`; `vision.py` adds images. The workers'
schedulers drive a `TextContext` one committed token at a time; nothing here knows a model.

Source: `max.interfaces.pipeline_variants.text_generation` (26.3), `max.pipelines.context.context` (26.7).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .context import ACTIVE, CANCELLED, GenerationStatus
from .eos import EOSTracker
from .request import RequestID
from .sampling import SamplingParams
from .text_output import TextGenerationOutput
from .text_protocol import GrammarMatcher, SpecDecodingState, TextGenerationContext
from .tokens import LogProbabilities, TokenBuffer
from .validation import require_count, require_id, require_text

logger = logging.getLogger(__name__)

_MAX_INT32 = 2**31 - 1


class _Status:
    """The status of a context: it ends once, and the first ending stays."""

    @overload
    def __get__(self, context: None, owner: type) -> GenerationStatus: ...

    @overload
    def __get__(self, context: TextContext, owner: type) -> GenerationStatus: ...

    def __get__(self, context: TextContext | None, owner: type) -> GenerationStatus:
        status: GenerationStatus = GenerationStatus.ACTIVE if context is None else vars(context)["_status"]
        return status

    def __set__(self, context: TextContext, status: GenerationStatus) -> None:
        status = GenerationStatus(status)
        current = vars(context).get("_status", GenerationStatus.ACTIVE)
        if current is GenerationStatus.ACTIVE:
            vars(context)["_status"] = status
        elif status is GenerationStatus.ACTIVE:
            raise ValueError(f"request {context.request_id} has ended ({current.value}) and cannot become active again")


@dataclass(kw_only=True, eq=False)
class TextContext:
    """The state of one text request inside a worker; satisfies `TextGenerationContext`.

    `max_length` caps all tokens, prompt included. `status` ends once: the first ending stays whatever is set or
    appended later. Until `sampling_params.min_new_tokens` tokens are there, no end token, sequence or stop string ends
    the request, and preemption does not start that count again.

    Raises InvalidRequest (a ValueError), also when decoded, for a prompt and minimum that do not fit `max_length`, or a
    `target_endpoint` that is no `tcp://host:port` or `ipc://path`.
    """

    tokens: TokenBuffer
    max_length: int
    request_id: RequestID = field(default_factory=RequestID)
    model_name: str = ""
    eos_tracker: EOSTracker = field(default_factory=EOSTracker)
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    status: GenerationStatus = _Status()  # type: ignore[assignment]
    log_probabilities: int = 0
    log_probabilities_echo: bool = False
    json_schema: str | None = None
    target_endpoint: str | None = None
    cached_prefix_length: int | None = None
    in_reasoning_phase: bool = False
    is_initial_prompt: bool = True
    spec_decoding_state: SpecDecodingState = field(default_factory=SpecDecodingState)
    #: Ids from here on are refused; None when not known.
    vocab_size: int | None = None
    cache_salt: str | None = None
    #: Index of the first token ever generated: the prompt's length at creation, which `reset` does not move.
    first_generated: int = -1
    #: Tokens `[start, end)` that a `reset` made prompt before they were streamed.
    undelivered: tuple[int, int] | None = None
    #: Index of a commit's first token to its log probabilities, until they are streamed.
    log_probabilities_data: dict[int, LogProbabilities] = field(default_factory=dict)
    #: Tells contexts apart on the wire, so that none is decoded as its base and loses fields.
    kind: str = "text"

    if TYPE_CHECKING:
        #: Where `status` is kept.
        _status: GenerationStatus = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, TokenBuffer):
            raise InvalidRequest(f"`tokens` is a TokenBuffer, not a {type(self.tokens).__name__}")
        require_id(self.request_id)
        require_count("max_length", self.max_length, 1)
        if self.first_generated < 0:
            self.first_generated = self.tokens.prompt_length
        self._matcher: GrammarMatcher | None = None
        self._check()

    def _check(self) -> None:
        kind = type(self).__dataclass_fields__["kind"].default
        if self.kind != kind:
            raise InvalidRequest(f"a {type(self).__name__} is of kind {kind!r}, not {self.kind!r}")
        if not 1 <= self.first_generated <= self.tokens.prompt_length:
            raise InvalidRequest(f"`first_generated` {self.first_generated} lies outside the prompt")
        if self.undelivered is not None:
            start, end = self.undelivered
            if not self.first_generated <= start <= end <= self.tokens.prompt_length:
                raise InvalidRequest(f"`undelivered` {self.undelivered} lies outside the folded tokens")
        if self.first_generated + self.min_tokens > self.max_length:
            raise InvalidRequest(
                f"a prompt of {self.first_generated} tokens and at least {self.min_tokens} new ones do not fit "
                f"max_length {self.max_length}",
            )
        _check_endpoint(self.target_endpoint)

    @property
    def is_done(self) -> bool:
        """Whether the request has ended."""
        return self._status is not ACTIVE

    @property
    def cancelled(self) -> bool:
        """Whether the caller cancelled, or the deadline passed."""
        return self._status is CANCELLED

    @property
    def min_tokens(self) -> int:
        """Fewest tokens to generate: `sampling_params.min_new_tokens`."""
        return self.sampling_params.min_new_tokens

    @property
    def hashed_tokens(self) -> npt.NDArray[np.int64]:
        """All tokens as a prefix cache is to tell them apart, int64 `(n,)`, read-only."""
        return self.tokens.all

    @property
    def matcher(self) -> GrammarMatcher | None:
        """The grammar's automaton; None without one, and once the grammar is no longer enforced."""
        return self._matcher

    def set_matcher(self, matcher: GrammarMatcher | None) -> None:
        """Hold the answer to a grammar from here on; the automaton stays in this process."""
        self._matcher = matcher

    def compute_num_available_steps(self, max_seq_len: int) -> int:
        """How many tokens still fit into `max_seq_len` before the active window's end; may be 0 or less."""
        return max_seq_len - (len(self.tokens) - self.tokens.active_length)

    def get_min_token_logit_mask(self, num_steps: int) -> list[npt.NDArray[np.int32]]:
        """For each of the next steps the logits to suppress, int32 `(n, 2)`: rows `(0, end token id)`.

        Empty, `(0, 2)`, outside the first `min_tokens` tokens.
        """
        # The ids come from callers: one beyond the vocabulary must not become an index.
        limit = self.vocab_size or _MAX_INT32
        ids = sorted(token for token in self.eos_tracker.eos_token_ids if token < limit)
        position = self.tokens.current_position
        window = range(self.first_generated, self.first_generated + self.min_tokens)
        return [
            np.array([(0, token) for token in ids] if step in window else [], np.int32).reshape(-1, 2)
            for step in range(position, position + num_steps)
        ]

    # One token at a time

    def update(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Append a token and advance the grammar by it; see `advance_token_buffer`."""
        if self._commit(new_token, log_probabilities) and self._matcher is not None:
            self.advance_fsm(new_token)

    def advance_token_buffer(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Append a token without the grammar, and end the request where a rule or `max_length` says so.

        While the prompt is worked on in chunks the token means nothing: the next chunk is made active instead.
        Raises InvalidRequest (a ValueError) for an id outside the vocabulary, before anything has changed.
        """
        self._commit(new_token, log_probabilities)

    def _commit(self, token: int, log_probabilities: LogProbabilities | None) -> bool:
        """False when the token was only the end of a chunk."""
        tokens = self.tokens
        if tokens.actively_chunked:
            tokens.advance_chunk()
            return False
        self._check_id(token)
        position = len(tokens)
        tokens.advance_with_token(token)
        self.is_initial_prompt = False
        if log_probabilities is not None:
            self.log_probabilities_data[position] = log_probabilities
        if self._status is GenerationStatus.ACTIVE:
            if self._ends_with(token, position):
                self._status = GenerationStatus.END_OF_SEQUENCE
            elif position + 1 >= self.max_length:
                self._status = GenerationStatus.MAXIMUM_LENGTH
        return True

    def _check_id(self, token: int) -> None:
        if self.vocab_size is not None and token >= self.vocab_size:
            raise InvalidRequest(f"token id {token} is outside the vocabulary of {self.vocab_size}")

    def _ends_with(self, token: int, position: int) -> bool:
        """Whether the token just stored at `position` ends the request."""
        tracker = self.eos_tracker
        # In this order: almost every token is settled by the first question.
        if not tracker.may_end(token) or position < self.first_generated + self.sampling_params.min_new_tokens:
            return False
        return tracker.is_eos_from_tokens(self.tokens.all[self.first_generated :])

    def advance_fsm(self, token: int) -> bool:
        """Advance the grammar alone; whether it consumed the token. False when there is no grammar.

        An end token is not the grammar's business. A token that the grammar refuses is logged, and the grammar is not
        enforced any more: the request goes on.
        """
        if self._matcher is None or token in self.eos_tracker.eos_token_ids:
            return False
        if self._matcher.try_consume_tokens([token]) == 1:
            return True
        logger.warning("request %s: the grammar refuses token %d and is not enforced any more", self.request_id, token)
        self._matcher = None
        return False

    def update_with_text(self, piece: str) -> str | None:
        """Take the text of the tokens appended last, and end the request when a stop string is complete.

        The stop string reached, or None. For workers that decode as they go, so that nothing is computed past a stop.
        """
        tracker = self.eos_tracker
        generated = len(self.tokens) - self.tokens.has_placeholder - self.first_generated
        found = tracker.find_stop(piece)
        while found is not None:
            if generated > self.min_tokens:
                self.status = GenerationStatus.END_OF_SEQUENCE
                return found.stop
            # Too early to stop: what follows in the piece may still be the beginning of a stop that counts.
            piece = piece[max(found.start + len(found.stop), 0) :]
            found = tracker.find_stop(piece)
        return None

    # Overlapped steps: the next one is prepared while this one's token is still on the device

    def update_with_future_token(self) -> None:
        """Append a placeholder for a token still being computed; at most one, always last.

        ValueError when there is one already. While chunked, the next chunk is made active instead. The placeholder may
        reach `max_length`; it is held back from output.
        """
        if self.tokens.actively_chunked:
            self.tokens.advance_chunk()
            return
        self.tokens.advance_with_placeholder()
        self.is_initial_prompt = False
        if self._status is GenerationStatus.ACTIVE and len(self.tokens) >= self.max_length:
            self._status = GenerationStatus.MAXIMUM_LENGTH

    def realize_future_token(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Replace the placeholder by its token; an end token at `max_length` counts as the end of the sequence.

        The grammar is not advanced: it may have been when the token was sampled (`advance_fsm`). ValueError when there
        is no placeholder, or for an id outside the vocabulary, before anything has changed.
        """
        tokens = self.tokens
        if not tokens.has_placeholder:
            raise ValueError(f"request {self.request_id} has no future token to realize")
        self._check_id(new_token)
        tokens.overwrite_last_token(new_token)
        position = len(tokens) - 1
        if log_probabilities is not None:
            self.log_probabilities_data[position] = log_probabilities
        # A cap that the placeholder itself reached is no ending yet.
        capped = self._status is GenerationStatus.MAXIMUM_LENGTH and position < self.max_length
        if (capped or self._status is GenerationStatus.ACTIVE) and self._ends_with(new_token, position):
            self._status = GenerationStatus.END_OF_SEQUENCE

    # Preemption and output

    def reset(self) -> None:
        """Fold all tokens into a new prompt, as preemption does; a placeholder is dropped.

        Nothing is lost: tokens not yet streamed stay due, stop sequences still see what was generated before, and the
        minimum of new tokens is not asked for again. Drafts are dropped; status, grammar and log probabilities stay.
        """
        tokens = self.tokens
        end = len(tokens) - tokens.has_placeholder
        if tokens.has_outstanding_generated_tokens:
            start = end - len(tokens.consume_recently_generated_tokens())
            self.undelivered = (self.undelivered[0] if self.undelivered else start, end)
        tokens.reset_as_new_prompt()
        self.spec_decoding_state = SpecDecodingState()
        self.is_initial_prompt = True

    def to_generation_output(self) -> TextGenerationOutput:
        """Drain the tokens not yet streamed, with their log probabilities; the list may be empty.

        A placeholder is held back, and so is the ending by length that it may have caused.
        """
        tokens = self.tokens
        status = self._status
        if status is GenerationStatus.MAXIMUM_LENGTH and tokens.has_placeholder:
            status = GenerationStatus.ACTIVE
        fresh = tokens.consume_recently_generated_tokens().tolist() if tokens.has_outstanding_generated_tokens else []
        told = None
        # Mostly there is nothing but one fresh token, and this is done for each.
        if self.log_probabilities_data or self.undelivered is not None:
            end = len(tokens) - tokens.has_placeholder
            late, self.undelivered = self.undelivered or (0, 0), None
            told = self._drain_log_probabilities([*range(*late), *range(end - len(fresh), end)])
            fresh = tokens[late[0] : late[1]].tolist() + fresh
        return TextGenerationOutput(
            request_id=self.request_id,
            tokens=fresh,
            final_status=status,
            log_probabilities=told,
            num_cached_tokens=self.cached_prefix_length,
        )

    def _drain_log_probabilities(self, positions: Sequence[int]) -> list[LogProbabilities] | None:
        data = self.log_probabilities_data
        return [data.pop(position) for position in positions if position in data] or None


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is None:
        return
    require_text("target_endpoint", endpoint)
    scheme, _, rest = endpoint.partition("://")
    if scheme not in ("tcp", "ipc") or not rest or (scheme == "tcp" and ":" not in rest):
        raise InvalidRequest(f"`target_endpoint` is tcp://host:port or ipc://path, not {endpoint!r}")


if TYPE_CHECKING:

    def _conforms(context: TextContext) -> TextGenerationContext:
        return context
