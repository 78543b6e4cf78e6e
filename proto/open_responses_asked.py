"""What an Open Responses body asks for, and that none of it is dropped in silence.

The conversions of each task (`open_responses_text.py`, `open_responses_convert.py`) say which fields they read; here
all others are refused, save for those that change no answer.
"""

from __future__ import annotations

from ..errors import InvalidRequest
from .open_responses_body import OpenResponsesRequestBody
from .open_responses_enums import ReasoningSummaryEnum, ToolChoiceValueEnum, TruncationEnum

#: Fields that change no answer: a caller's own notes, and how the service treats them.
LEFT_ASIDE = frozenset({"metadata", "service_tier", "store", "stream", "stream_options", "user"})

#: What chooses tokens, whatever they stand for.
SAMPLING_FIELDS = frozenset(
    {"temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "max_output_tokens"},
)

#: Words that ask for what happens anyhow.
_NOTHING_ASKED = (ToolChoiceValueEnum.NONE, ToolChoiceValueEnum.AUTO, TruncationEnum.DISABLED)

#: Read by every task; how tools are called asks for nothing without `tools`.
_ALWAYS_READ = frozenset({"model", "input", "modalities", "n", "parallel_tool_calls", "provider_options"})


def refuse_others(body: OpenResponsesRequestBody, reads: frozenset[str]) -> None:
    """Refuse every field that asks for something and is not among `reads`; InvalidRequest names them all."""
    known = LEFT_ASIDE | _ALWAYS_READ | reads
    given = [name for name in body.__struct_fields__ if name not in known and _asks(getattr(body, name))]
    if given:
        raise InvalidRequest(f"the model {body.model!r} takes no {', '.join(given)}")


def _asks(value: object) -> bool:
    """Whether a field asks for something: a number does even when it is 0."""
    # By identity: a stop string "auto" equals the word.
    return (
        value is not None
        and value is not False
        and value not in ([], {})
        and not any(value is word for word in _NOTHING_ASKED)
    )


def refuse_blocks(body: OpenResponsesRequestBody, *reads: str) -> None:
    """Refuse every block of `provider_options` that says something and is not among `reads`."""
    options = body.provider_options
    blocks = {name: getattr(options, name) for name in options.__struct_fields__ if name not in reads}
    given = [name for name, block in blocks.items() if block is not None and block != type(block)()]
    if given:
        raise InvalidRequest(f"the model {body.model!r} takes no `provider_options` of {', '.join(given)}")


def require_modality(body: OpenResponsesRequestBody, modality: str) -> None:
    """A body that names modalities names this one, and beside it no other than text; InvalidRequest otherwise."""
    wanted = body.modalities
    if wanted and (modality not in wanted or set(wanted) - {modality, "text"}):
        raise InvalidRequest(f"the model {body.model!r} makes {modality}, not {', '.join(wanted)[:80]}")


def require_plain_thinking(body: OpenResponsesRequestBody) -> None:
    """Thinking is given as it is; InvalidRequest for a body that wants it summed up in some way."""
    summary = None if body.reasoning is None else body.reasoning.summary
    if summary not in (None, ReasoningSummaryEnum.AUTO):
        raise InvalidRequest(f"`reasoning.summary` is auto here, not {summary}: thinking is given as it is")
