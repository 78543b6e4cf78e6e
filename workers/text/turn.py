"""What a step's tokens do to a request: its context, its counts and its answer move on together.

The engine calls `commit` for each request of a step, with one token or, behind drafts, several. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...proto.tokens import LogProbabilities
from .answer import AnswerDelta, AnswerStream, follow
from .sampling import SamplingState


def commit(
    state: SamplingState,
    tokens: Sequence[int],
    log_probabilities: Sequence[LogProbabilities | None] | None = None,
    *,
    answer: AnswerStream | None = None,
) -> list[AnswerDelta]:
    """Give a request the tokens that it gained, one after the other, until it ends; what they added to its answer.

    `log_probabilities`: of each token. `answer`: None where nobody in this process needs the text. Tokens behind the
    end are dropped, and so are those behind a change of phase where thinking has a temperature of its own: they were
    chosen by the other one.
    """
    context = state.context
    if log_probabilities is None and len(tokens) == 1:  # as it mostly is
        context.update(tokens[0])
        state.accept(tokens)
        return [] if answer is None else [follow(context, answer, tokens[0])]
    watches_phase = context.sampling_params.thinking_temperature is not None
    phase = context.in_reasoning_phase
    deltas: list[AnswerDelta] = []
    for place, token in enumerate(tokens):
        told = log_probabilities[place] if log_probabilities is not None else None
        thinking = context.in_reasoning_phase
        context.update(token, told)
        state.accept((token,))
        if answer is not None:
            deltas.append(follow(context, answer, token))
            if told is not None and not (thinking or context.in_reasoning_phase):
                answer.spell(told)
        if context.is_done or (watches_phase and context.in_reasoning_phase != phase):
            break
    return deltas
