"""The step loop of text generation: plans a step, computes it, chooses tokens, and says what each request got.

Joins `scheduler.py`, a model of `models`, the sampler of `sampling`, `speculation.py` and `turn.py`; the pipeline
(`..pipelines.llama`) makes contexts and hands them in. Knows no tokenizer's files, sockets or clocks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import PipelineError, TensoryardError
from ...proto.context import GenerationStatus
from ...proto.logits import BatchLogitsProcessor
from ...proto.request import RequestID
from ...proto.text_context import TextContext
from ...proto.text_output import TextGenerationOutput
from ...proto.tokens import LogProbabilities
from .answer import AnswerDelta, AnswerStream
from .lora import Adapter, adapter_of, cache_root
from .models.base import Model, ModelCache
from .models.step import Decoding, Span, Step
from .processors import Setting, request_processors
from .reading import ReadContext
from .sampling import Sampler, SamplingState, prompt_log_probabilities
from .sampling.log_probabilities import join_log_probabilities
from .scheduler import Plan, Scheduler, Work
from .scheduler import Sequence as Scheduled
from .speculation import Acceptance, Speculation
from .turn import commit
from .vocabulary import Vocabulary

#: What a request got, by token: one output, or a list where drafts were accepted.
Outputs = dict[RequestID, "TextGenerationOutput | list[TextGenerationOutput] | TensoryardError"]
#: Drafts behind the newest token of some works of a plan, by the work's place in it.
_Drafts = Mapping[int, list[int]]


@dataclass(slots=True, eq=False)
class _Request:
    """What the loop knows of one request."""

    context: TextContext
    state: SamplingState
    #: Makes its text; None where nobody wants any and nothing ends by it.
    answer: AnswerStream | None
    #: Its block numbers, as far as `known`.
    table: npt.NDArray[np.int64]
    sequence: Scheduled = field(init=False)
    known: int = 0
    #: Its last token, once it has got one here.
    newest: int = -1
    adapter: Adapter | None = None
    #: What the model thought of the prompt, where that is to be told: parts, and how many tokens they cover.
    echo: list[LogProbabilities] = field(default_factory=list)
    echoed: int = 1


class TextEngine:
    """One model at work: `step` computes tokens for the requests handed in, `release` lets go of one.

    `speculation`: guesses tokens ahead; None: nobody does. Guesses are made as long as a step has, with them, no more
    than `guessing_tokens` tokens. `batch_processors`: see `Sampler`. One thread uses it.
    """

    def __init__(
        self,
        decoder: Model[Any],
        cache: ModelCache,
        scheduler: Scheduler,
        vocabulary: Vocabulary | None,
        *,
        speculation: Speculation | None = None,
        guessing_tokens: int = 1 << 20,
        batch_processors: Sequence[BatchLogitsProcessor] = (),
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._scheduler = scheduler
        self._vocabulary = vocabulary
        self._setting = Setting(decoder.device, decoder.config.vocabulary)
        self._sampler = Sampler(decoder.device, vocabulary=decoder.config.vocabulary, batch_processors=batch_processors)
        self._speculation = speculation
        self._guessing_tokens = guessing_tokens
        #: What became of all drafts so far.
        self.acceptance = Acceptance()
        #: By id. To the scheduler a request is its own key, which costs less to look up than an id.
        self._requests: dict[RequestID, _Request] = {}
        #: The requests of the last step, where it only decoded, and their layout.
        self._decoding: tuple[list[_Request], Decoding] | None = None

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
            _request(sequence).context.reset()
        for sequence in plan.admitted:
            self._admit(_request(sequence))
        if plan.preempted or plan.admitted:
            self._decoding = None
        if plan.works:
            self._compute(plan, outputs)
        return outputs

    def release(self, request_id: RequestID) -> None:
        """A request has ended: its blocks are free. Unknown ones are passed by."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._scheduler.remove(request)
            if self._speculation is not None:
                self._speculation.release(request.context)

    # Coming and going

    def _begin(self, context: TextContext, outputs: Outputs) -> None:
        try:
            # Every position of a prompt to be reported on has to be computed, so nothing of it may be found.
            salt = f"echo {context.request_id}" if context.log_probabilities_echo else cache_root(context)
            processors = request_processors(context, self._setting)
            state = SamplingState(context, vocab_size=self._setting.vocabulary, processors=processors)
            table = np.zeros(self._scheduler.blocks.needed(context.max_length), np.int64)
            request = _Request(context, state, self._answer(context), table, adapter=adapter_of(context))
            request.sequence = self._scheduler.add(
                request,
                context.hashed_tokens,
                most=context.max_length,
                salt=salt,
                prompt=context.first_generated,
            )
        except TensoryardError as error:
            outputs[context.request_id] = error
            return
        self._requests[context.request_id] = request

    def _answer(self, context: TextContext) -> AnswerStream | None:
        if isinstance(context, ReadContext):
            return context.answer
        params = context.sampling_params
        if self._vocabulary is None or not (params.detokenize or params.stop):
            return None
        return AnswerStream(self._vocabulary, tracker=context.eos_tracker)

    def _standing_still(self, contexts: Sequence[TextContext]) -> Collection[_Request]:
        if len(contexts) == len(self._requests):
            return ()
        active = {context.request_id for context in contexts}
        return {request for key, request in self._requests.items() if key not in active}

    def _admit(self, request: _Request) -> None:
        context = request.context
        request.known = 0
        context.tokens.skip_processing(request.sequence.computed)
        if context.cached_prefix_length is None:
            context.cached_prefix_length = request.sequence.cached

    # A step

    def _compute(self, plan: Plan, outputs: Outputs) -> None:
        requests: list[_Request] = [work.sequence.key for work in plan.works]  # type: ignore[misc]
        drafts = self._draft(plan, requests) if self._speculation is not None else {}
        ready = [request for request, work in zip(requests, plan.works, strict=True) if work.last]
        spans: list[Span] = []
        only_decodes = self._decoder.takes_steps and not drafts and plan.tokens == len(plan.works) == len(ready)
        # A kept layout knows no adapters.
        only_decodes = only_decodes and all(request.adapter is None for request in requests)
        step = self._decode(requests) if only_decodes else None
        if step is None:
            self._decoding = None
            spans = [
                self._span(request, work, drafts.get(place, ()))
                for place, (request, work) in enumerate(zip(requests, plan.works, strict=True))
            ]
            logits = self._decoder.compute(spans, self._cache)
        else:
            logits = self._decoder.forward(step, self._cache)
        self._scheduler.computed(plan)
        if len(logits) != len(ready) + sum(map(len, drafts.values())):
            logits = self._take_echoes(requests, plan.works, spans, drafts, logits)
        if len(ready) < len(requests):
            for request, work in zip(requests, plan.works, strict=True):
                if not work.last:
                    request.context.tokens.chunk(work.size)
                    request.context.tokens.advance_chunk()
        if ready:
            ahead = [drafts.get(place, []) for place, work in enumerate(plan.works) if work.last] if drafts else None
            self._choose(ready, ahead, logits, outputs)

    def _draft(self, plan: Plan, requests: list[_Request]) -> _Drafts:
        """Guess behind those that go on with their answer, as far as the plan has room."""
        assert self._speculation is not None
        places = [place for place, work in enumerate(plan.works) if work.last and _is_answering(requests[place], work)]
        places = places[: max(self._guessing_tokens - plan.tokens, 0)]
        if not places:
            return {}
        drafts = self._speculation.draft([requests[place].state for place in places])
        for place, guessed in zip(places, drafts, strict=True):
            if guessed:
                # The same list is in the request's `SpecDecodingState`.
                wanted = min(len(guessed), self._guessing_tokens - plan.tokens)
                del guessed[self._scheduler.reserve(plan, plan.works[place], wanted) :]
        return {place: guessed for place, guessed in zip(places, drafts, strict=True) if guessed}

    def _decode(self, requests: list[_Request]) -> Step | None:
        """The layout of a step in which each of these has its newest token computed and no more, the usual one.

        Kept as long as the same requests come; None where it does not pay.
        """
        if self._decoding is None or self._decoding[0] != requests:
            tables = [self._table(request) for request in requests]
            starts = [request.sequence.computed for request in requests]
            for request in requests:
                request.newest = int(request.context.tokens.all[-1])
            self._decoding = requests, Decoding(tables, starts, self._cache.block_size)
        decoding = self._decoding[1]
        for row, number in decoding.entering():
            decoding.enter(row, number, self._scheduler.blocks.table(requests[row])[number])
        return decoding.step(np.array([request.newest for request in requests], np.int64))

    def _table(self, request: _Request) -> npt.NDArray[np.int64]:
        blocks = self._scheduler.blocks.table(request)
        if request.known != len(blocks):
            request.table[: len(blocks)] = blocks
            request.known = len(blocks)
        return request.table

    def _span(self, request: _Request, work: Work, drafts: Sequence[int]) -> Span:
        _, start, size, last = work
        wanted = 1 if last else 0
        context = request.context
        if context.log_probabilities_echo and request.echoed < min(start + size + 1, context.first_generated):
            wanted = size
        tokens = context.tokens.all[start : start + size]
        if drafts:
            tokens = np.concatenate([tokens, np.array(drafts, np.int64)])
        return Span(tokens, start, self._table(request), wanted + len(drafts), request.adapter, context)

    def _choose(self, ready: list[_Request], drafts: list[list[int]] | None, logits: Any, outputs: Outputs) -> None:
        states = [request.state for request in ready]
        sampled = self._sampler.sample(logits, states, drafts)
        if drafts is None and sampled.log_probabilities is None and not sampled.problems:
            for request, token in zip(ready, sampled.tokens, strict=True):
                outputs[request.context.request_id] = self._commit(request, (token,), None, 0)
            return
        gained = [[token] for token in sampled.tokens]
        if drafts is not None and self._speculation is not None:
            gained = self._speculation.settle(states, sampled.tokens, self.acceptance)
        row = 0
        for index, request in enumerate(ready):
            key, tokens = request.context.request_id, gained[index]
            guessed = len(drafts[index]) if drafts is not None else 0
            if sampled.problems and index in sampled.problems:
                outputs[key] = self._fail(request, sampled.problems[index])
            else:
                reported = sampled.log_probabilities
                told = None if reported is None else reported[row : row + len(tokens)]
                outputs[key] = self._commit(request, tokens, told, guessed)
            row += guessed + 1

    def _commit(
        self, request: _Request, tokens: Sequence[int], told: list[LogProbabilities | None] | None, guessed: int
    ) -> TextGenerationOutput | list[TextGenerationOutput]:
        """Give a request its tokens; each is a part of its stream, however many a step brings (docs/decisions/0040)."""
        context = request.context
        if request.echo:
            own = [each for each in (told or ())[:1] if each is not None]
            told = [join_log_probabilities([*request.echo, *own]), *(told or ())[1:]]
            request.echo = []
        deltas = commit(request.state, tokens, told, answer=request.answer)
        request.newest = tokens[-1]
        if context.is_done:
            self._scheduler.remove(request)
        else:
            self._scheduler.append(request.sequence, context.hashed_tokens)
        output = context.to_generation_output()
        if not guessed:
            return _with_answer(output, deltas[0]) if deltas and context.sampling_params.detokenize else output
        output.draft_tokens_generated, output.draft_tokens_accepted = guessed, len(output.tokens) - 1
        parts = _by_token(output) if len(output.tokens) > 1 else [output]
        if context.sampling_params.detokenize:
            for part, delta in zip(parts, deltas, strict=False):
                _with_answer(part, delta)
        return parts

    def _fail(self, request: _Request, problem: TensoryardError) -> TensoryardError:
        if isinstance(problem, PipelineError):
            # Numbers that are none must not lie where another request's padding will read.
            own = self._scheduler.blocks.forget(request)
            self._cache.scrub(self._decoder.device.xp.asarray(np.array(own, np.int64)))
        self._scheduler.remove(request)
        return problem

    # What the model thought of prompts

    def _take_echoes(
        self, requests: list[_Request], works: list[Work], spans: list[Span], drafts: _Drafts, logits: Any
    ) -> Any:
        """Note what was asked about prompts; the logits that are left are the rows behind which tokens are chosen."""
        kept: list[int] = []
        row = 0
        for place, (request, work, span) in enumerate(zip(requests, works, spans, strict=True)):
            chosen = 1 + len(drafts.get(place, ())) if work.last else 0
            if span.logits > chosen:
                self._note_echo(request, work, logits[row : row + span.logits])
            row += span.logits
            kept.extend(range(row - chosen, row))
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


def _request(sequence: Scheduled) -> _Request:
    request: Any = sequence.key
    return request  # type: ignore[no-any-return]


def _is_answering(request: _Request, work: Work) -> bool:
    """Whether nothing of the prompt is in the work: some is reported on, and who preempts it reads it again in one."""
    return work.size == 1 and len(work.sequence.tokens) > request.context.first_generated


def _with_answer(output: TextGenerationOutput, delta: AnswerDelta) -> TextGenerationOutput:
    """The output, with what its token adds to the answer as its reader sees it."""
    output.text = delta.content
    if delta.reasoning:
        output.reasoning = delta.reasoning
    if delta.tool_calls:
        output.tool_calls = list(delta.tool_calls)
    return output


def _by_token(output: TextGenerationOutput) -> list[TextGenerationOutput]:
    """An output of several tokens as one for each; the last has the ending, the first the figures of the step."""
    last = len(output.tokens) - 1
    told = output.log_probabilities
    return [
        TextGenerationOutput(
            request_id=output.request_id,
            tokens=[token],
            final_status=output.final_status if place == last else GenerationStatus.ACTIVE,
            log_probabilities=None if told is None else [told[place]],
            num_cached_tokens=output.num_cached_tokens,
            draft_tokens_generated=0 if place else output.draft_tokens_generated,
            draft_tokens_accepted=0 if place else output.draft_tokens_accepted,
        )
        for place, token in enumerate(output.tokens)
    ]
