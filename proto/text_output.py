"""The streamed output of `PipelineTask.TEXT_GENERATION`: the tokens that one step, or several, brought.

A context (`text_context.py`) drains into it; clients merge the pieces of one request.

Source: `max.interfaces.pipeline_variants.text_generation` (26.3), `max.pipelines.context.outputs` (26.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec

from .context import GenerationStatus
from .request import RequestID
from .tokens import LogProbabilities


class TextGenerationOutput(msgspec.Struct, kw_only=True, array_like=True):
    """The tokens that one step, or several, brought for one request; `final_status` is the status after them.

    `tokens` may be empty. `log_probabilities`: one entry per commit that has them. `num_cached_tokens`: prompt tokens
    found in the prefix cache. `ttft_join_hops_ms`: diagnostics of the first chunk, in ms. `label_log_probabilities`:
    the result of label scoring. `text`: what these tokens add to the answer as its reader sees it, where the request
    wants it (`detokenize`); pieces joined are the whole text. Travels as an array, without field names.
    """

    request_id: RequestID
    tokens: list[int]
    final_status: GenerationStatus
    log_probabilities: list[LogProbabilities] | None = None
    num_cached_tokens: int | None = None
    ttft_join_hops_ms: dict[str, float] | None = None
    label_log_probabilities: list[float] | None = None
    text: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether this ends its request."""
        return self.final_status.is_done

    @classmethod
    def merge(cls, outputs: list[TextGenerationOutput]) -> Self:
        """One output for several chunks of one request, in order; always a new object.

        Tokens, texts and log probabilities are joined, the status is the last one's, label scores are the first there
        are, the rest is the first one's. A chunk without tokens needs no log probabilities. ValueError for no chunk,
        chunks of different requests, or tokens of which only some have log probabilities.
        """
        if not outputs:
            raise ValueError("merge() needs at least one output")
        first, last = outputs[0], outputs[-1]
        if any(output.request_id != first.request_id for output in outputs):
            raise ValueError(
                f"merge() joins chunks of one request, not of {sorted({str(o.request_id) for o in outputs})}"
            )
        scores = (output.label_log_probabilities for output in outputs)
        return cls(
            request_id=first.request_id,
            tokens=[token for output in outputs for token in output.tokens],
            final_status=last.final_status,
            log_probabilities=_join_log_probabilities(outputs),
            num_cached_tokens=first.num_cached_tokens,
            ttft_join_hops_ms=first.ttft_join_hops_ms,
            label_log_probabilities=next((score for score in scores if score is not None), None),
            text=_join_text(outputs),
        )


def _join_text(outputs: Sequence[TextGenerationOutput]) -> str | None:
    pieces = [output.text for output in outputs if output.text is not None]
    return "".join(pieces) if pieces else None


def _join_log_probabilities(outputs: Sequence[TextGenerationOutput]) -> list[LogProbabilities] | None:
    with_tokens = [output for output in outputs if output.tokens or output.log_probabilities is not None]
    lists = [output.log_probabilities for output in with_tokens]
    given = [entries for entries in lists if entries is not None]
    if not given:
        return None
    if len(given) != len(lists):
        raise ValueError("only some of the chunks to merge have log probabilities")
    return [entry for entries in given for entry in entries]
