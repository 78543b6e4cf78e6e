"""The batch that a text pipeline runs in one step, and the figures about it that are counted once.

Contexts are in `text_context.py`; schedulers make batches of them.
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
        contexts = self.flat_batch
        self.input_tokens = sum(context.tokens.active_length for context in contexts)
        self.context_tokens = sum(context.tokens.processed_length for context in contexts)
        prefill = any(context.tokens.generated_length == 0 for context in contexts)
        self.batch_type = BatchType.CE if prefill else BatchType.TG
        real = [[context for context in batch if not _is_padding(context)] for batch in self.batches]
        self.per_replica_input_tokens = [sum(context.tokens.active_length for context in batch) for batch in real]
        self.per_replica_context_tokens = [sum(context.tokens.processed_length for context in batch) for batch in real]

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


def _is_padding(context: TextGenerationContext) -> bool:
    return context.request_id == DUMMY_REQUEST_ID
