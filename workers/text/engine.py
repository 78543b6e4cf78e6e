"""The step loop of text generation: plans a step, computes it, chooses tokens, and says what each request got.

Joins `scheduler.py`, a model of `models`, the sampler of `sampling` and `turn.py`; the pipeline
(`..pipelines.llama`) makes contexts and hands them in. Knows no tokenizer's files, sockets or clocks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import PipelineError, TensoryardError
from ...proto.request import RequestID
from ...proto.text_context import TextContext
from ...proto.text_output import TextGenerationOutput
from ...proto.tokens import LogProbabilities
from .answer import AnswerStream
from .models.base import Model, ModelCache
from .models.step import Span
from .processors import Setting, request_processors
from .sampling import Sampler, SamplingState, prompt_log_probabilities
from .sampling.log_probabilities import join_log_probabilities
from .scheduler import Plan, Scheduler, Work
from .scheduler import Sequence as Scheduled
from .turn import commit
from .vocabulary import Vocabulary

Outputs = dict[RequestID, "TextGenerationOutput | TensoryardError"]


@dataclass(slots=True, eq=False)
class _Request:
    """What the loop knows of one request."""

    context: TextContext
    sequence: Scheduled
    state: SamplingState
    #: Makes its text; None where nobody wants any and nothing ends by it.
    answer: AnswerStream | None
    #: Its block numbers, as far as `known`.
    table: npt.NDArray[np.int64]
    known: int = 0
    #: What the model thought of the prompt, where that is to be told: parts, and how many tokens they cover.
    echo: list[LogProbabilities] = field(default_factory=list)
    echoed: int = 1


class TextEngine:
    """One model at work: `step` computes tokens for the requests handed in, `release` lets go of one.

    One thread uses it.
    """

    def __init__(
        self, decoder: Model[Any], cache: ModelCache, scheduler: Scheduler, vocabulary: Vocabulary | None
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._scheduler = scheduler
        self._vocabulary = vocabulary
        self._setting = Setting(decoder.device, decoder.config.vocabulary)
        self._sampler = Sampler(decoder.device, vocabulary=decoder.config.vocabulary)
        self._requests: dict[RequestID, _Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def step(self, contexts: Sequence[TextContext]) -> Outputs:
        """Compute what one step has room for; what each request got that got a token, or why it fails.

        Requests not seen before are taken up. Those that were and are not handed in stand still: they keep their
        place, and their blocks as long as nobody needs them.
        """
        outputs: Outputs = {}
        for context in contexts:
            if context.request_id not in self._requests:
                self._begin(context, outputs)
        plan = self._scheduler.plan(self._standing_still(contexts))
        for sequence in plan.preempted:
            self._request(sequence).context.reset()
        for sequence in plan.admitted:
            self._admit(self._request(sequence))
        if plan.works:
            self._compute(plan, outputs)
        return outputs

    def release(self, request_id: RequestID) -> None:
        """A request has ended: its blocks are free. Unknown ones are passed by."""
        if self._requests.pop(request_id, None) is not None:
            self._scheduler.remove(request_id)

    # Coming and going

    def _begin(self, context: TextContext, outputs: Outputs) -> None:
        try:
            # Every position of a prompt to be reported on has to be computed, so nothing of it may be found.
            salt = f"echo {context.request_id}" if context.log_probabilities_echo else context.cache_salt or ""
            processors = request_processors(context, self._setting)
            state = SamplingState(context, vocab_size=self._setting.vocabulary, processors=processors)
            sequence = self._scheduler.add(
                context.request_id,
                context.hashed_tokens,
                most=context.max_length,
                salt=salt,
                prompt=context.first_generated,
            )
        except TensoryardError as error:
            outputs[context.request_id] = error
            return
        table = np.zeros(self._scheduler.blocks.needed(context.max_length), np.int64)
        self._requests[context.request_id] = _Request(context, sequence, state, self._answer(context), table)

    def _answer(self, context: TextContext) -> AnswerStream | None:
        params = context.sampling_params
        if self._vocabulary is None or not (params.detokenize or params.stop):
            return None
        return AnswerStream(self._vocabulary, tracker=context.eos_tracker)

    def _standing_still(self, contexts: Sequence[TextContext]) -> Collection[RequestID]:
        if len(contexts) == len(self._requests):
            return ()
        return self._requests.keys() - {context.request_id for context in contexts}

    def _request(self, sequence: Scheduled) -> _Request:
        key: Any = sequence.key
        return self._requests[key]

    def _admit(self, request: _Request) -> None:
        context = request.context
        request.known = 0
        context.tokens.skip_processing(request.sequence.computed)
        if context.cached_prefix_length is None:
            context.cached_prefix_length = request.sequence.cached

    # A step

    def _compute(self, plan: Plan, outputs: Outputs) -> None:
        requests = [self._request(work.sequence) for work in plan.works]
        spans = [self._span(request, work) for request, work in zip(requests, plan.works, strict=True)]
        logits = self._decoder.compute(spans, self._cache)
        self._scheduler.computed(plan)
        ready = [request for request, work in zip(requests, plan.works, strict=True) if work.last]
        if len(logits) != len(ready):
            logits = self._take_echoes(requests, plan.works, spans, logits)
        for request, work in zip(requests, plan.works, strict=True):
            if not work.last:
                request.context.tokens.chunk(work.size)
                request.context.tokens.advance_chunk()
        if ready:
            self._choose(ready, logits, outputs)

    def _span(self, request: _Request, work: Work) -> Span:
        sequence, start, size, last = work
        blocks = self._scheduler.blocks.table(sequence.key)
        if request.known != len(blocks):
            request.table[: len(blocks)] = blocks
            request.known = len(blocks)
        wanted = 1 if last else 0
        context = request.context
        if context.log_probabilities_echo and request.echoed < min(start + size + 1, context.first_generated):
            wanted = size
        return Span(context.tokens.all[start : start + size], start, request.table, wanted, context=context)

    def _choose(self, ready: list[_Request], logits: Any, outputs: Outputs) -> None:
        sampled = self._sampler.sample(logits, [request.state for request in ready])
        reported = sampled.log_probabilities
        for index, request in enumerate(ready):
            context = request.context
            if sampled.problems and index in sampled.problems:
                outputs[context.request_id] = self._fail(request, sampled.problems[index])
                continue
            outputs[context.request_id] = self._commit(
                request, sampled.tokens[index], None if reported is None else reported[index]
            )

    def _commit(self, request: _Request, token: int, told: LogProbabilities | None) -> TextGenerationOutput:
        context = request.context
        if request.echo:
            told = join_log_probabilities([*request.echo, *([told] if told is not None else [])])
            request.echo = []
        deltas = commit(request.state, (token,), (told,), answer=request.answer)
        if context.is_done:
            self._scheduler.remove(context.request_id)
        else:
            self._scheduler.append(request.sequence, context.hashed_tokens)
        output = context.to_generation_output()
        if deltas and context.sampling_params.detokenize:
            output.text = deltas[0].content
        return output

    def _fail(self, request: _Request, problem: TensoryardError) -> TensoryardError:
        key = request.context.request_id
        if isinstance(problem, PipelineError):
            # Numbers that are none must not lie where another request's padding will read.
            own = self._scheduler.blocks.forget(key)
            self._cache.scrub(self._decoder.device.xp.asarray(np.array(own, np.int64)))
        self._scheduler.remove(key)
        return problem

    # What the model thought of prompts

    def _take_echoes(self, requests: list[_Request], works: list[Work], spans: list[Span], logits: Any) -> Any:
        """Note what was asked about prompts; the logits that are left are one row for each that chooses a token."""
        kept, row = [], 0
        for request, work, span in zip(requests, works, spans, strict=True):
            if span.logits > int(work.last):
                self._note_echo(request, work, logits[row : row + span.logits])
            row += span.logits
            if work.last:
                kept.append(row - 1)
        return logits[self._decoder.device.xp.asarray(np.array(kept, np.int64))]

    def _note_echo(self, request: _Request, work: Work, rows: Any) -> None:
        # The row of position p tells of the token at p + 1.
        context = request.context
        first = max(work.start + 1, request.echoed)
        end = min(work.start + work.size + 1, context.first_generated)
        if first < end:
            part = rows[first - 1 - work.start : end - 1 - work.start]
            tokens = context.tokens.all[first:end].tolist()
            told = prompt_log_probabilities(self._decoder.device, part, tokens, context.log_probabilities)
            request.echo.append(told)
            request.echoed = end
