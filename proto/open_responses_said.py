"""How the ways back from our requests say what cannot be said in an Open Responses request: by the field's name.

`open_responses_from_text.py` and `open_responses_from_native.py` build bodies with it; it knows no request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import msgspec
import numpy as np

from ..errors import InvalidRequest
from .open_responses_body import OpenResponsesRequestBody
from .sampling import SamplingParams

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

#: Fields of a body: each with its name in ours, which errors name, and its value.
Fields = dict[str, tuple[str, Any]]

#: What of `SamplingParams` no body has, and the value that asks for nothing.
_NO_SAMPLING: Mapping[str, Any] = {
    "min_p": 0,
    "thinking_temperature": None,
    "repetition_penalty": 1,
    "min_new_tokens": 0,
    "ignore_eos": False,
    "stop_token_ids": None,
    "detokenize": True,
    "logits_processors": None,
    "named_processors": None,
}
#: What a body has, under its name, and the value that it need not say.
_SAMPLING: Mapping[str, tuple[str, Any]] = {
    "temperature": ("temperature", 1),
    "top_p": ("top_p", 1),
    "frequency_penalty": ("frequency_penalty", 0),
    "presence_penalty": ("presence_penalty", 0),
    "max_new_tokens": ("max_output_tokens", None),
    "stop": ("stop", None),
    "seed": ("seed", None),
}


def unsayable(path: str, why: str) -> NoReturn:
    """Refuse the field at `path`."""
    raise InvalidRequest(f"`{path}` cannot be said in an Open Responses request: {why}")


def require_unset(holder: object, unset: Mapping[str, Any], *, path: str = "") -> None:
    """Each of these fields of `holder` has the value that asks for nothing; else it is refused by name."""
    for name, nothing in unset.items():
        value = getattr(holder, name)
        value = list(value) if isinstance(value, tuple) else value
        if value is not nothing and (nothing is None or value != nothing):
            unsayable(f"{path}{name}", f"there it is always {nothing!r}")


def said(path: str, kind: type[_Struct], fields: Mapping[str, Any]) -> _Struct:
    """The part of a body with these fields; one that cannot be is refused by the name of ours, `path`."""
    try:
        return msgspec.convert({name: plain(value) for name, value in fields.items()}, kind)
    except msgspec.ValidationError as error:
        unsayable(path, str(error))


def body_of(fields: Fields) -> OpenResponsesRequestBody:
    """The body with these fields; one that cannot be is refused by its name in ours."""
    try:
        return OpenResponsesRequestBody(**{name: plain(value) for name, (_, value) in fields.items()})
    except InvalidRequest:
        for name, (path, value) in fields.items():
            said(path, OpenResponsesRequestBody, {"model": "", "input": "", name: value})
        raise


def sampling_fields(params: SamplingParams) -> Fields:
    """How tokens are chosen, as fields of the body; what is the default on both sides is left out."""
    require_unset(params, _NO_SAMPLING, path="sampling_params.")
    # Greedy decoding sets it.
    if params.top_k != (1 if params.temperature == 0 else -1):
        unsayable("sampling_params.top_k", "it has `top_p` alone")
    return {
        theirs: (f"sampling_params.{ours}", getattr(params, ours))
        for ours, (theirs, default) in _SAMPLING.items()
        if getattr(params, ours) != default
    }


def plain(value: Any) -> Any:
    """A number of numpy as Python's."""
    return value.item() if isinstance(value, np.generic) else value
