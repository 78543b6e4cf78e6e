"""A request that is wanted and not yet sent: held back, before anything is done for it, while it would be refused.

Made and waited for by `connection.py` and `aio.py`; `conversation.py` knows what would be refused. Pure.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ..errors import Overloaded
from ..proto.outputs import model_of
from ..proto.pipeline import PipelineTask
from .conversation import Conversation
from .retry import Retry


class Wish(msgspec.Struct, eq=False, kw_only=True):
    """One request and how it is wanted."""

    request: Any
    task: PipelineTask
    deadline_s: float | None
    priority: int
    retry: Retry | None
    #: Monotonic seconds.
    began: float
    #: Seconds it has been held back, and how often.
    held_back_s: float = 0.0
    refusals: int = 0
    #: Why it is not sent; None while it may be.
    refusal: Overloaded | None = None

    def wait_s(self, conversation: Conversation, at: float) -> float:
        """How long to hold it back; 0 when it can be dealt with now: sent, or answered with its `refusal`."""
        self.held_back_s = at - self.began if self.refusals else 0.0
        self.refusal = conversation.overload(model_of(self.request), at)
        if self.refusal is None or self.retry is None:
            return 0.0
        self.refusals += 1
        delay_s = self.retry.delay_s(
            self.refusal,
            losses=0,
            refusals=self.refusals,
            elapsed_s=at - self.began,
            left_s=math.inf if self.deadline_s is None else self.began + self.deadline_s - at,
            chance=conversation.chance(),
        )
        return delay_s or 0.0

    def left_s(self) -> float | None:
        """What is left of its deadline; None when it has none."""
        return None if self.deadline_s is None else max(self.deadline_s - self.held_back_s, 0.0)
