"""The batch that a text pipeline runs in one step, and the figures about it that are counted once.

Contexts are in `text_context.py`; schedulers make batches of them.

Source: `max.interfaces.pipeline_variants.text_generation` (26.3), its like under `max.pipelines.modeling.types` (26.7).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Generic

from .pipeline import PipelineInputs
from .request import DUMMY_REQUEST_ID
from .text_protocol import TextGenerationContext, TextGenerationContextType


class BatchType(Enum):
    """What a text batch does: context encoding (prefill) or token generation (decode)."""

    CE = "CE"
    TG = "TG"


@dataclass(eq=True)
class TextGenerationInputs(PipelineInputs, Generic[TextGenerationContextType]):
    """A batch: one list of contexts per data-parallel replica. Everything but `batches` is counted at construction.

    `input_tokens`: active tokens of all contexts; `context_tokens`: processed ones. The per-replica lists count the
    same, without padding contexts (those with `DUMMY_REQUEST_ID`). `batch_type` is CE if any context has generated
    nothing yet (a preempted one counts), else TG. `num_steps`: tokens to generate for each.
    """

    batches: list[list[TextGenerationContextType]]
    num_steps: int = 1
    input_tokens: int = -1
    batch_type: BatchType = BatchType.TG
    per_replica_input_tokens: list[int] = field(default_factory=list)
    per_replica_context_tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.input_tokens = self.context_tokens = 0
        self.batch_type = BatchType.TG
        self.per_replica_input_tokens, self.per_replica_context_tokens = [], []
        for batch in self.batches:
            self._count(batch)

    def _count(self, batch: list[TextGenerationContextType]) -> None:
        # Once over each context: this is done for every step.
        active = processed = padding_active = padding_processed = 0
        for context in batch:
            tokens = context.tokens
            active += tokens.active_length
            processed += tokens.processed_length
            if not tokens.generated_length:
                self.batch_type = BatchType.CE
            if _is_padding(context):
                padding_active += tokens.active_length
                padding_processed += tokens.processed_length
        self.input_tokens += active
        self.context_tokens += processed
        self.per_replica_input_tokens.append(active - padding_active)
        self.per_replica_context_tokens.append(processed - padding_processed)

    @property
    def flat_batch(self) -> list[TextGenerationContextType]:
        """All replicas' contexts in order, a fresh list."""
        return [context for batch in self.batches for context in batch]

    @property
    def batch_size(self) -> int:
        """Contexts, padding not counted."""
        return sum(not _is_padding(context) for context in self.flat_batch)

    def __bool__(self) -> bool:
        return any(self.batches)

    @property
    def enable_echo(self) -> bool:
        """Whether any context wants log probabilities of its prompt."""
        return any(self.batch_echo)

    @property
    def enable_log_probs(self) -> bool:
        """Whether any context wants log probabilities."""
        return any(self.batch_top_log_probs)

    @cached_property
    def batch_top_log_probs(self) -> list[int]:
        """For each context how many of the most likely tokens to report on."""
        return [context.log_probabilities for context in self.flat_batch]

    @cached_property
    def batch_echo(self) -> list[bool]:
        """For each context whether to report on its prompt."""
        return [context.log_probabilities_echo for context in self.flat_batch]


@dataclass
class CompletedBatchStats:
    """What one batch did, told when its last output is there; for logs and metrics.

    `batch_size`: contexts, padding not counted. `num_input_tokens`: active tokens that it worked on;
    `num_context_tokens`: those processed before. `execution_time_s`: seconds from its start to its outputs.
    `num_output_tokens`: tokens committed, None when not known. Of speculative decoding: drafts made and accepted, how
    many were accepted in a row on average and at most, and the share accepted at each position.
    `early_sync_duration_s`: seconds of waiting for the device before the end.
    """

    batch_type: BatchType
    batch_size: int
    num_input_tokens: int
    num_context_tokens: int
    execution_time_s: float
    num_output_tokens: int | None = None
    draft_tokens_generated: int = 0
    draft_tokens_accepted: int = 0
    avg_acceptance_length: float = 0.0
    max_acceptance_length: int = 0
    acceptance_rate_per_position: list[float] = field(default_factory=list)
    early_sync_duration_s: float | None = None

    @property
    def prompt_throughput(self) -> float:
        """Input tokens per second; 0.0 when the time is not positive."""
        return self._per_second(self.num_input_tokens)

    @property
    def generation_throughput(self) -> float:
        """Output tokens per second; 0.0 when the time is not positive.

        Of a prefill, and where the number is not known, one token per request.
        """
        known = self.num_output_tokens if self.batch_type is BatchType.TG else None
        return self._per_second(self.batch_size if known is None else known)

    def _per_second(self, tokens: int) -> float:
        return tokens / self.execution_time_s if self.execution_time_s > 0 else 0.0


def _is_padding(context: TextGenerationContext) -> bool:
    # By their texts: comparing the ids themselves costs a call, for each request of each step.
    return context.request_id.value == DUMMY_REQUEST_ID.value
