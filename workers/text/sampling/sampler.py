"""The step from logits to tokens, for a batch of requests that each want something else.

The engine gives the decoder's logits and the requests' states and gets one token per row; nothing here changes a
context. Draws, penalties and the like are in the modules beside this one; grammars come through `context.matcher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import InvalidRequest, PipelineError, TensoryardError
from ....proto.logits import BatchLogitsProcessor, BatchProcessorInputs, ProcessorInputs
from ....proto.text_context import TextContext
from ....proto.tokens import LogProbabilities
from ...device import Device
from ..processors import Setting, request_processors
from .choice import draw, greedy
from .log_probabilities import RowLogProbabilities
from .masks import apply_masks
from .penalties import apply_penalties
from .plan import Drafts, Draw, Plan
from .state import SamplingState
from .uniforms import numbers_at


@dataclass(frozen=True)
class Sampled:
    """The tokens of one step.

    `tokens`: one per row of logits. `log_probabilities`: of each row that asked, else None; None when no row did.
    `problems`: index of a request to why it has no token; its rows hold 0, and the others are not concerned.
    """

    tokens: list[int]
    log_probabilities: list[LogProbabilities | None] | None = None
    problems: dict[int, TensoryardError] = field(default_factory=dict)


class Sampler:
    """Chooses tokens for batches of one model.

    `vocabulary`: columns of the logits. `batch_processors`: run on every step's logits, behind those of the requests.
    One thread uses it; it remembers the plan of the last batch and nothing else.
    """

    def __init__(
        self, device: Device, *, vocabulary: int, batch_processors: Sequence[BatchLogitsProcessor] = ()
    ) -> None:
        self._device = device
        self._vocabulary = vocabulary
        self._batch_processors = tuple(batch_processors)
        self._plan: Plan | None = None

    def admit(self, context: TextContext) -> SamplingState:
        """The state of a request that is taken up here, also from the middle, with the processors that it names.

        Raises InvalidRequest for what it asks for and cannot have.
        """
        named = request_processors(context, Setting(self._device, self._vocabulary))
        return SamplingState(context, vocab_size=self._vocabulary, processors=named)

    def sample(self, logits: Any, states: Sequence[SamplingState], drafts: Drafts | None = None) -> Sampled:
        """A token for each row of `logits`, float32 `(rows, vocabulary)` on the device, which may be changed.

        `drafts`: for each request the tokens guessed ahead; it then has one row more than drafts, and the row behind
        `n` drafts is sampled as if those had been accepted. Without, each request has one row.
        """
        plan = self._plan
        if plan is None or not plan.fits(states, drafts):
            plan = self._plan = Plan(self._device, states, self._vocabulary, drafts=drafts)
        return self._sample(logits, plan)

    def guess(self, logits: Any, states: Sequence[SamplingState], drafts: Drafts) -> Sampled:
        """The same for one row per request, behind all of its drafts: what a draft model would choose next."""
        return self._sample(logits, Plan(self._device, states, self._vocabulary, drafts=drafts, only_last=True))

    def _sample(self, logits: Any, plan: Plan) -> Sampled:
        if logits.shape != (len(plan.rows), self._vocabulary):
            raise ValueError(f"logits of {logits.shape} are not of {len(plan.rows)} rows and {self._vocabulary} tokens")
        report = self._report(logits, plan)
        problems = self._shape(logits, plan)
        tokens = self._choose(logits, plan, problems)
        reported = None if report is None else self._reported(report, tokens, plan)
        return Sampled(tokens.tolist(), reported, problems)

    def _report(self, logits: Any, plan: Plan) -> RowLogProbabilities | None:
        if not plan.reported:
            return None
        tops = [plan.rows[at].state.top_log_probabilities for at in plan.reported]
        return RowLogProbabilities(self._device, logits[self._device.xp.asarray(plan.reported)], tops)

    def _reported(self, report: RowLogProbabilities, tokens: Any, plan: Plan) -> list[LogProbabilities | None]:
        found: list[LogProbabilities | None] = [None] * len(plan.rows)
        chosen = tokens[plan.reported]
        for at, token, (value, top) in zip(plan.reported, chosen.tolist(), report.of(chosen), strict=True):
            found[at] = LogProbabilities([value], [top], [token])
        return found

    # What requests want of the logits

    def _shape(self, logits: Any, plan: Plan) -> dict[int, TensoryardError]:
        """Penalties, processors, then what is forbidden altogether: nothing behind can allow it again."""
        if plan.penalized:
            rows = [(at, plan.rows[at].state, plan.rows[at].drafts) for at in plan.penalized]
            wanted = [(at, state.counts(drafts), state.penalties) for at, state, drafts in rows]
            apply_penalties(self._device.xp, logits, wanted)  # type: ignore[arg-type]
        problems = self._process(logits, plan)
        masked = apply_masks(self._device, logits, plan.rows)
        problems.update(masked.problems)
        # A grammar that is at its end outweighs a minimum of tokens.
        if held_back := masked.unfinished.union(plan.held_back) - masked.over:
            self._hold_back(logits, plan, sorted(held_back))
        return problems

    def _process(self, logits: Any, plan: Plan) -> dict[int, TensoryardError]:
        problems: dict[int, TensoryardError] = {}
        for index in plan.processed:
            start = index if plan.offsets is None else plan.offsets[index]
            end = start + 1 if plan.offsets is None else plan.offsets[index + 1]
            state = plan.states[index]
            inputs = ProcessorInputs(logits[start:end], state.context)
            try:
                for process in state.processors:
                    process(inputs)
            except Exception as error:
                problems[index] = _failed(error)
        if self._batch_processors and not plan.is_guess:
            offsets = None if plan.offsets is None else self._device.xp.asarray(np.array(plan.offsets))
            batch = BatchProcessorInputs(logits, offsets, [state.context for state in plan.states])
            for process_batch in self._batch_processors:
                process_batch(batch)
        return problems

    def _hold_back(self, logits: Any, plan: Plan, rows: Sequence[int]) -> None:
        pairs = [(at, token) for at in rows for token in plan.rows[at].state.end_ids]
        if pairs:
            at, ids = self._device.xp.asarray(np.array(pairs).T)
            logits[at, ids] = -np.inf

    # The choice

    def _choose(self, logits: Any, plan: Plan, problems: dict[int, TensoryardError]) -> npt.NDArray[np.int64]:
        """The token of each row, on the host."""
        chosen = greedy(logits)
        # The likeliest token tells whether a row has any.
        alive = self._device.xp.isfinite(logits[plan.every, chosen])
        for way in plan.draws:
            chosen[way.index] = self._draw(logits, plan, way)
        tokens, alive = self._device.to_host(chosen), self._device.to_host(alive)
        if not alive.all():
            dead = [at for at in np.flatnonzero(~alive).tolist() if plan.is_reached(at, tokens)]
            for at in dead:
                problems.setdefault(plan.rows[at].request, _no_token(float(logits[at].max())))
            tokens[~alive] = 0
        return tokens

    def _draw(self, logits: Any, plan: Plan, way: Draw) -> Any:
        xp = self._device.xp
        numbers = numbers_at(way.streams, [row.state.position + len(row.drafts) for row in way.rows])
        uniform = xp.asarray(np.array(numbers)[:, None])
        part = logits if len(way.rows) == len(plan.rows) else logits[way.index]
        return draw(xp, part, way.temperature, way.filters, uniform)


def _failed(error: Exception) -> TensoryardError:
    if isinstance(error, TensoryardError):
        return error
    return PipelineError(f"a logits processor failed: {type(error).__name__}: {error}")


def _no_token(highest: float) -> TensoryardError:
    if highest == -np.inf:
        return InvalidRequest("no token is left to choose: the request's processors and grammar forbid all of them")
    return PipelineError(f"the model's logits are no numbers: their maximum is {highest}")
