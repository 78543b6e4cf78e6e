"""What schedulers and pipelines may rely on in the state of a text request, whoever implements it.

`TextContext` (`text_context.py`) is ours; `vision.py` adds images to both.

Source: `max.interfaces.pipeline_variants.text_generation` (26.3), `max.pipelines.context.context` (26.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from .context import BaseContext
from .eos import EOSTracker
from .sampling import SamplingParams
from .text_output import TextGenerationOutput
from .tokens import LogProbabilities, TokenBuffer


@dataclass
class SpecDecodingState:
    """Drafts of speculative decoding: those to verify in the next batch, and those in flight.

    `maybe_accepted_draft_tokens` only serves to reserve cache for the case that all are accepted.
    """

    draft_tokens_to_verify: list[int] = field(default_factory=list)
    maybe_accepted_draft_tokens: list[int] = field(default_factory=list)


class GrammarMatcher(Protocol):
    """The automaton of a grammar, as structured output's backends have it."""

    def try_consume_tokens(self, tokens: Sequence[int]) -> int:
        """Consume tokens as far as the grammar allows; how many were consumed."""
        ...


@runtime_checkable
class TextGenerationContext(BaseContext, Protocol):
    """The state of one text request, as schedulers and pipelines may rely on it; `TextContext` is ours."""

    eos_tracker: EOSTracker
    sampling_params: SamplingParams
    cached_prefix_length: int | None
    in_reasoning_phase: bool

    @property
    def tokens(self) -> TokenBuffer:
        """All token state."""
        ...

    @property
    def max_length(self) -> int | None:
        """Most tokens in all, prompt and generated."""
        ...

    @property
    def min_tokens(self) -> int:
        """Fewest tokens to generate."""
        ...

    @property
    def log_probabilities(self) -> int:
        """How many of the most likely tokens to report on; 0 is off."""
        ...

    @property
    def log_probabilities_echo(self) -> bool:
        """Whether to report on prompt tokens too."""
        ...

    @property
    def matcher(self) -> Any | None:
        """The grammar's automaton, None without one."""
        ...

    def set_matcher(self, matcher: Any) -> None:
        """Hold the answer to a grammar from here on."""
        ...

    @property
    def json_schema(self) -> str | None:
        """The schema that the answer is held to."""
        ...

    @property
    def is_initial_prompt(self) -> bool:
        """True until a token has been appended since creation or `reset`."""
        ...

    @property
    def spec_decoding_state(self) -> SpecDecodingState:
        """Drafts of speculative decoding."""
        ...

    def reset(self) -> None:
        """Fold everything into a new prompt, as preemption does."""
        ...

    def compute_num_available_steps(self, max_seq_len: int) -> int:
        """How many tokens still fit into `max_seq_len`; may be 0 or less."""
        ...

    def get_min_token_logit_mask(self, num_steps: int) -> list[npt.NDArray[np.int32]]:
        """For each step, which logits to suppress."""
        ...

    def advance_token_buffer(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Append a token, without the grammar."""
        ...

    def advance_fsm(self, token: int) -> bool:
        """Advance the grammar alone; False when there is none."""
        ...

    def update(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Append a token and advance the grammar."""
        ...

    def update_with_future_token(self) -> None:
        """Append a placeholder for a token that is still being computed."""
        ...

    def realize_future_token(self, new_token: int, log_probabilities: LogProbabilities | None = None) -> None:
        """Replace the placeholder."""
        ...

    def to_generation_output(self) -> TextGenerationOutput:
        """Drain the tokens not yet streamed."""
        ...


TextGenerationContextType = TypeVar("TextGenerationContextType", bound=TextGenerationContext)
