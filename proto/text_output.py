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
from .tool_parsing import ParsedToolCall, ParsedToolCallDelta, collect_deltas


class TextGenerationOutput(msgspec.Struct, kw_only=True, array_like=True, gc=False):
    """The tokens that one step, or several, brought for one request; `final_status` is the status after them.

    `tokens` may be empty. `log_probabilities`: one entry per commit that has them. `num_cached_tokens`: prompt tokens
    found in the prefix cache. `ttft_join_hops_ms`: diagnostics of the first chunk, in ms. `label_log_probabilities`:
    the result of label scoring. `text`: what these tokens add to the answer as its reader sees it, where the request
    wants it (`detokenize`); pieces joined are the whole text. `reasoning`, `tool_calls`: what they add to the model's
    thinking and to its calls, which are no part of `text`; None where nothing is. `draft_tokens_generated`,
    `draft_tokens_accepted`: of speculative decoding. Travels as an array, without field names.
    """

    request_id: RequestID
    tokens: list[int]
    final_status: GenerationStatus
    log_probabilities: list[LogProbabilities] | None = None
    num_cached_tokens: int | None = None
    ttft_join_hops_ms: dict[str, float] | None = None
    label_log_probabilities: list[float] | None = None
    text: str | None = None
    reasoning: str | None = None
    tool_calls: list[ParsedToolCallDelta] | None = None
    draft_tokens_generated: int = 0
    draft_tokens_accepted: int = 0

    @property
    def calls(self) -> list[ParsedToolCall]:
        """The calls of a whole answer, in order; ValueError for a piece that goes on with a call begun before it."""
        return collect_deltas(self.tool_calls or ()).tool_calls

    @property
    def is_done(self) -> bool:
        """Whether this ends its request."""
        return self.final_status.is_done

    @classmethod
    def merge(cls, outputs: list[TextGenerationOutput]) -> Self:
        """One output for several chunks of one request, in order; always a new object.

        Tokens, texts and log probabilities are joined, each call becomes one delta, drafts are added up, the status is
        the last one's, label scores are the first there are, the rest is the first one's. A chunk without tokens needs
        no log probabilities. ValueError for no chunk, chunks of different requests, or tokens of which only some have
        log probabilities.
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
            text=_joined([output.text for output in outputs]),
            reasoning=_joined([output.reasoning for output in outputs]),
            tool_calls=_join_calls(outputs),
            draft_tokens_generated=sum(output.draft_tokens_generated for output in outputs),
            draft_tokens_accepted=sum(output.draft_tokens_accepted for output in outputs),
        )


def _joined(texts: Sequence[str | None]) -> str | None:
    pieces = [text for text in texts if text is not None]
    return "".join(pieces) if pieces else None


def _join_calls(outputs: Sequence[TextGenerationOutput]) -> list[ParsedToolCallDelta] | None:
    """One delta per call; the arguments are joined at the end, since adding to a string each time is quadratic."""
    calls: dict[int, list[ParsedToolCallDelta]] = {}
    for delta in (delta for output in outputs for delta in output.tool_calls or ()):
        calls.setdefault(delta.index, []).append(delta)
    return [_join_call(index, calls[index]) for index in sorted(calls)] or None


def _join_call(index: int, deltas: Sequence[ParsedToolCallDelta]) -> ParsedToolCallDelta:
    return ParsedToolCallDelta(
        index,
        next((delta.id for delta in deltas if delta.id is not None), None),
        next((delta.name for delta in deltas if delta.name is not None), None),
        _joined([delta.arguments for delta in deltas]),
    )


def _join_log_probabilities(outputs: Sequence[TextGenerationOutput]) -> list[LogProbabilities] | None:
    with_tokens = [output for output in outputs if output.tokens or output.log_probabilities is not None]
    lists = [output.log_probabilities for output in with_tokens]
    given = [entries for entries in lists if entries is not None]
    if not given:
        return None
    if len(given) != len(lists):
        raise ValueError("only some of the chunks to merge have log probabilities")
    return [entry for entries in given for entry in entries]
