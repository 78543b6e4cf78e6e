"""The state of one request inside a worker: its status and the protocol that every context satisfies.

The contexts that the one-shot pipelines receive are in `one_shot.py`; token state is in `tokens.py`.

Source: `max.interfaces.context` and `.status` (26.3), `max.pipelines.context` (26.7).
"""

from __future__ import annotations

from enum import Enum
from inspect import get_annotations
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

from .request import RequestID

if TYPE_CHECKING:
    from abc import ABCMeta as _ProtocolMeta
else:
    _ProtocolMeta = type(Protocol)


class GenerationStatus(str, Enum):
    """How far a request is; equal to its string value."""

    ACTIVE = "active"
    END_OF_SEQUENCE = "end_of_sequence"
    MAXIMUM_LENGTH = "maximum_length"
    CANCELLED = "cancelled"

    @property
    def is_done(self) -> bool:
        """True for every status but ACTIVE."""
        return self is not ACTIVE


#: These are looked at for each request of each step, and asking the class for them takes three times as long.
ACTIVE = GenerationStatus.ACTIVE
CANCELLED = GenerationStatus.CANCELLED


#: Protocol -> class -> the members that the class itself does not have and an instance must.
_missing_members: WeakKeyDictionary[type, WeakKeyDictionary[type, frozenset[str]]] = WeakKeyDictionary()


class _ContextMeta(_ProtocolMeta):
    """Makes `isinstance` look members up by name, once per class, and run none of them.

    The standard check of a protocol runs every property of the object: 61 us for a text context, and side effects.
    """

    def __instancecheck__(cls, instance: object) -> bool:  # noqa: N805 - the base is a metaclass
        if not getattr(cls, "_is_protocol", False):
            return super().__instancecheck__(instance)
        known = _missing_members.setdefault(cls, WeakKeyDictionary())
        kind = type(instance)
        missing = known.get(kind)
        if missing is None:
            # A class that inherits the protocol says by that that it has all.
            missing = known[kind] = frozenset() if cls in kind.__mro__ else _members(cls) - set(dir(kind))
        return not missing or missing <= getattr(instance, "__dict__", {}).keys()


def _members(protocol: type) -> frozenset[str]:
    names = (name for base in protocol.__mro__ for name in (*vars(base), *get_annotations(base)))
    return frozenset(name for name in names if not name.startswith("_"))


@runtime_checkable
class BaseContext(Protocol, metaclass=_ContextMeta):
    """What every scheduler may rely on. `isinstance` with it, and with the protocols that extend it, runs no member."""

    status: GenerationStatus

    @property
    def request_id(self) -> RequestID:
        """The request this context belongs to."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether the request has ended: `status.is_done`."""
        return self.status.is_done


BaseContextType = TypeVar("BaseContextType", bound=BaseContext)
