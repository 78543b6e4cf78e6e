"""Request identity: what names a piece of work from the client through the coordinator to a worker and back.

The envelopes (`wire.py`) carry the id as a plain string; the request types of each task (`embeddings.py`, `pixels.py`,
`audio.py`) carry a `RequestID`.

Source: `max.interfaces.request.base` (26.3), `max.pipelines.request.base` (26.7).
"""

from __future__ import annotations

import os
import random
from dataclasses import FrozenInstanceError
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

from ..errors import InvalidRequest

#: Seeded by the system and nobody else, in each process; a tenth of the price of asking the system each time.
_random = random.Random()  # noqa: S311 - a name, not a secret
os.register_at_fork(after_in_child=_random.seed)

#: Longest accepted id, in characters: ids are map keys, log fields and metric exemplars, so they stay short.
MAX_REQUEST_ID_CHARS = 128


class RequestID:
    """The name of one request: a short printable string, 32 lowercase hex digits when not given.

    Immutable, hashable, compared by value, never equal to a bare string. On the wire it is its string, also as a map
    key. A hand-written class, because msgspec always writes a dataclass as a map (docs/decisions/0003-request-id.md).

    Raises InvalidRequest (a ValueError) for a value that is not a str, is empty, longer than 128 characters or not
    printable.
    """

    __match_args__ = ("value",)
    __slots__ = ("value",)
    value: str

    def __init__(self, value: str | None = None) -> None:
        if value is None:
            value = _random.randbytes(16).hex()
        elif not isinstance(value, str) or not 0 < len(value) <= MAX_REQUEST_ID_CHARS or not value.isprintable():
            raise InvalidRequest(
                f"a RequestID is 1 to {MAX_REQUEST_ID_CHARS} printable characters, not {_short(value)}; "
                "leave it out to get a fresh one",
            )
        object.__setattr__(self, "value", value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def to_wire(self) -> str:
        """The string that travels."""
        return self.value

    @classmethod
    def from_wire(cls, value: object) -> RequestID:
        """The id a received value stands for; InvalidRequest for what is no id, None included, and for the dummy's."""
        if not isinstance(value, str):
            raise InvalidRequest(f"a RequestID travels as a text, not as a {type(value).__name__}")
        return received_id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestID) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"RequestID(value={self.value!r})"

    def __reduce__(self) -> tuple[type[RequestID], tuple[str]]:
        return (RequestID, (self.value,))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@lru_cache(maxsize=4096)
def received_id(value: str) -> RequestID:
    """`RequestID.from_wire` of a text. Each output of a stream brings its id again."""
    if value == DUMMY_REQUEST_ID.value:
        raise InvalidRequest(f"the RequestID {value!r} is kept for work that a worker gives itself")
    return RequestID(value)


#: Marks synthetic work (warm-up, graph capture) inside a worker; refused from the wire, so no client's id meets it.
DUMMY_REQUEST_ID = RequestID("cuda_graph_dummy")


@runtime_checkable
class Request(Protocol):
    """Anything that carries a `request_id` and prints as it."""

    @property
    def request_id(self) -> RequestID:
        """The id of this request."""
        ...

    def __str__(self) -> str: ...


RequestType = TypeVar("RequestType", bound=Request, contravariant=True)
