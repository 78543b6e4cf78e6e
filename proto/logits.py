"""Logit processors: functions that change a step's logits in place before a token is sampled.

They are in `SamplingParams.logits_processors` or belong to a pipeline, run inside the worker, and never travel. What
travels is a `NamedProcessor`: the worker looks its name up (`workers/text/processors.py`).

Source: `max.interfaces.logit_processors_type` (26.3), `max.pipelines.context.logit_processors_type` (26.7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

if TYPE_CHECKING:
    from .text_protocol import TextGenerationContext


@dataclass
class ProcessorInputs:
    """One sequence's part of a step.

    `logits`: float32 `(n, vocab_size)` on the pipeline's device (numpy or CuPy), to be changed in place; `n` is 1
    unless the step scores several positions. `context`: the sequence's context.
    """

    logits: Any
    context: TextGenerationContext


@dataclass
class BatchProcessorInputs:
    """A whole step.

    `logits`: float32 `(rows, vocab_size)` on the pipeline's device, to be changed in place. `logit_offsets`: row
    offsets, `batch + 1` of them, so that sequence `i` has the rows `[offsets[i], offsets[i + 1])`; None when each
    sequence has one row. `context_batch`: the contexts, in batch order.
    """

    logits: Any
    logit_offsets: Any | None
    context_batch: Sequence[TextGenerationContext]


#: Changes one sequence's logits in place; what it returns is ignored. One with state is made once per request.
LogitsProcessor: TypeAlias = Callable[[ProcessorInputs], None]

#: Changes a whole step's logits in place, after the processors of every sequence.
BatchLogitsProcessor: TypeAlias = Callable[[BatchProcessorInputs], None]


class NamedProcessor(msgspec.Struct, frozen=True):
    """A logits processor that the worker knows by name, and its options; the worker checks them by their types."""

    name: str
    options: dict[str, Any] = {}
