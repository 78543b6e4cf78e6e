"""Text requests from what people write: a prompt or messages, and sampling beside other fields.

`client.py` and `aio.py` build the requests of `generate` and `stream` with it; nothing here sends anything.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import InvalidRequest
from ..proto.sampling import SamplingParams
from ..proto.text_messages import TextGenerationRequestMessage
from ..proto.text_request import TextGenerationRequest

_SAMPLING = frozenset(spec.name for spec in fields(SamplingParams))
_REQUEST = frozenset(spec.name for spec in fields(TextGenerationRequest)) - {"model_name", "prompt", "messages"}


def text_request(source: Any, model: str, given: dict[str, Any]) -> TextGenerationRequest:
    """The request for a prompt (a text or token ids) or a list of messages.

    `given`: fields of SamplingParams and of TextGenerationRequest together. InvalidRequest for one that is neither, or
    both sampling fields and `sampling_params`.
    """
    sampling = {name: value for name, value in given.items() if name in _SAMPLING}
    rest = {name: value for name, value in given.items() if name not in _SAMPLING}
    unknown = sorted(rest.keys() - _REQUEST)
    if unknown:
        raise InvalidRequest(f"`{unknown[0]}` is unknown; known are {', '.join(sorted(_SAMPLING | _REQUEST))}")
    if sampling and "sampling_params" in rest:
        raise InvalidRequest(f"`sampling_params` holds `{min(sampling)}` and its like already: give one or the other")
    rest.setdefault("sampling_params", SamplingParams(**sampling))
    name = "messages" if _are_messages(source) else "prompt"
    return TextGenerationRequest(model_name=model, **{name: source}, **rest)


def _are_messages(source: Any) -> bool:
    kinds = (dict, TextGenerationRequestMessage)
    return isinstance(source, list | tuple) and bool(source) and isinstance(source[0], kinds)
