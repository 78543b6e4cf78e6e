"""The errors of Tensoryard, in one tree; on the wire each is a code and a text, and the class owns its code.

Every layer raises from here; this module imports nothing of ours.

TensoryardError
├── InvalidRequest              the caller's input; sending it again changes nothing
│   ├── UnknownModel
│   ├── WrongTask
│   ├── UnsupportedArray        object or structured dtype, too many dimensions
│   ├── MessageTooLarge
│   └── ConfigError             a deployment file, a setting or an option
├── Rejected                    never accepted
│   ├── Overloaded              carries retry_after_s
│   ├── DuplicateRequest
│   └── ShuttingDown
├── Failed                      accepted, then lost
│   ├── PipelineError           the pipeline raised, or answered nothing or the wrong type
│   ├── DeploymentUnhealthy     the pipeline's factory fails at start
│   ├── WorkerLost
│   ├── PoisonRequest           killed each worker that ran it
│   └── CoordinatorLost
├── RequestCancelled
├── DeadlineExpired             also a TimeoutError
├── ReplyTimeout                the caller stopped waiting; the request still runs. Also a TimeoutError
├── MemoryProblem
│   ├── PoolExhausted           also a MemoryError
│   ├── StaleHandle
│   ├── ForgedHandle
│   └── SegmentGone             the process that owned the memory has ended
│       └── OutOfReach          it lies on another host, and no porter brings it
└── ProtocolError
    ├── DecodeError             also a ValueError
    ├── VersionMismatch
    └── NotConnected            no coordinator there
"""

from __future__ import annotations

from typing import ClassVar

#: How a request can end, in words: what `Reply.outcome` says and the coordinator counts. Told apart by who can do
#: something about it: "rejected" was never accepted, "failed" was and its pipeline could not do it, the last three were
#: lost on the way.
OUTCOMES = (
    "finished",
    "rejected",
    "cancelled",
    "expired",
    "failed",
    "worker_lost",
    "poison_request",
    "coordinator_lost",
)


class TensoryardError(Exception):
    """Base of all errors of ours.

    `code` is its name on the wire; `retryable` says whether the same request, sent again, may succeed; `request_id`
    names the request (None when no request is concerned); `story` holds what coordinator and client saw of it, oldest
    first; `outcome` is one of OUTCOMES: the one that goes with the class, if the coordinator did not say otherwise.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    outcome: str = "failed"

    def __init__(self, text: str = "", *, request_id: str | None = None, story: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.text = text
        self.request_id = request_id
        self.story = story

    def __str__(self) -> str:
        return f"request {self.request_id}: {self.text}" if self.request_id else self.text

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross Ray, which pickles them; keyword-only fields travel as state.
        return (type(self), (self.text,), self.__dict__)


class InvalidRequest(TensoryardError, ValueError):
    """The request itself is wrong."""

    code = "invalid_request"
    outcome = "rejected"


class UnknownModel(InvalidRequest):
    """No deployment serves this model."""

    code = "unknown_model"


class WrongTask(InvalidRequest):
    """The model is served, but for another PipelineTask."""

    code = "wrong_task"


class UnsupportedArray(InvalidRequest, TypeError):
    """An array that cannot travel: object or structured dtype, or over the limits."""

    code = "unsupported_array"


class MessageTooLarge(InvalidRequest):
    """The message is over the limit that the coordinator announced."""

    code = "message_too_large"


class ConfigError(InvalidRequest):
    """A key or value of a deployment file, a setting or an option is wrong."""

    code = "config"


class Rejected(TensoryardError):
    """The coordinator did not accept the request; nothing ran."""

    code = "rejected"
    outcome = "rejected"
    retryable = True


class Overloaded(Rejected):
    """A queue is at its bound. `retry_after_s` (seconds) is when a place is expected."""

    code = "overloaded"

    def __init__(
        self,
        text: str = "",
        *,
        request_id: str | None = None,
        story: tuple[str, ...] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(text, request_id=request_id, story=story)
        self.retry_after_s = retry_after_s


class DuplicateRequest(Rejected):
    """A request with this RequestID is already live, from another client."""

    code = "duplicate_request"
    retryable = False


class ShuttingDown(Rejected):
    """The cluster is going down and accepts nothing new."""

    code = "shutting_down"


class Failed(TensoryardError):
    """The request was accepted and could not be finished."""

    code = "failed"


class PipelineError(Failed):
    """The pipeline raised for this request, or gave no usable answer."""

    code = "pipeline_error"


class DeploymentUnhealthy(Failed):
    """The pipeline's factory fails at start; the text carries its traceback."""

    code = "deployment_unhealthy"


class WorkerLost(Failed):
    """The worker died or hung and the request could not be run again."""

    code = "worker_lost"
    outcome = "worker_lost"
    retryable = True


class PoisonRequest(Failed):
    """Each worker that ran this request died."""

    code = "poison_request"
    outcome = "poison_request"


class CoordinatorLost(Failed):
    """The coordinator went away and did not come back in time."""

    code = "coordinator_lost"
    outcome = "coordinator_lost"
    retryable = True


class RequestCancelled(TensoryardError):
    """The caller cancelled the request, or the client that sent it went away."""

    code = "cancelled"
    outcome = "cancelled"


class DeadlineExpired(TensoryardError, TimeoutError):
    """The request's deadline passed before its answer."""

    code = "expired"
    outcome = "expired"


class ReplyTimeout(TensoryardError, TimeoutError):
    """The caller's wait ended first; the request still runs and may be waited for again."""

    code = "reply_timeout"
    retryable = True


class MemoryProblem(TensoryardError):
    """Shared memory could not be had, or a handle could not be honoured."""

    code = "memory"


class PoolExhausted(MemoryProblem, MemoryError):
    """The tensor pool is at its budget, or the machine has no memory left."""

    code = "pool_exhausted"
    retryable = True


class StaleHandle(MemoryProblem):
    """The block behind a handle has been reused since the handle was made."""

    code = "stale_handle"
    retryable = True


class ForgedHandle(MemoryProblem, ValueError):
    """A handle that no pool can have made: bad name, bounds, alignment or dtype."""

    code = "forged_handle"


class SegmentGone(MemoryProblem):
    """The process that owned the memory has ended, or has given the segment back."""

    code = "segment_gone"
    retryable = True


class OutOfReach(SegmentGone):
    """The memory lies on another host, and nobody can bring it here: its arrays have to travel in messages."""

    code = "out_of_reach"


class ProtocolError(TensoryardError):
    """A message that this side cannot read or did not expect."""

    code = "protocol"


class DecodeError(ProtocolError, ValueError):
    """A body that is not what its type says."""

    code = "undecodable"


class VersionMismatch(ProtocolError):
    """The two sides speak different versions of the wire."""

    code = "version_mismatch"


class NotConnected(ProtocolError, ConnectionError):
    """No coordinator answers at the address."""

    code = "not_connected"
    outcome = "rejected"
    retryable = True


def _classes(base: type[TensoryardError]) -> list[type[TensoryardError]]:
    return [base, *(found for sub in base.__subclasses__() for found in _classes(sub))]


BY_CODE: dict[str, type[TensoryardError]] = {cls.code: cls for cls in _classes(TensoryardError)}


def from_wire(
    code: str,
    text: str,
    *,
    request_id: str | None = None,
    story: tuple[str, ...] = (),
    retry_after_s: float = 0.0,
    outcome: str = "",
) -> TensoryardError:
    """The error that a code and a text stand for; an unknown code (a newer peer's) becomes `Failed`."""
    cls = BY_CODE.get(code, Failed)
    extra = {"retry_after_s": retry_after_s} if issubclass(cls, Overloaded) else {}
    error = cls(text, request_id=request_id, story=story, **extra)
    if outcome in OUTCOMES:
        error.outcome = outcome
    return error


def outcome_of(code: str) -> str:
    """How an accepted request ends with an error of this code: as "failed" where its class says that it never was."""
    outcome = BY_CODE.get(code, Failed).outcome
    return "failed" if outcome == "rejected" else outcome


def to_wire(error: BaseException) -> tuple[str, str]:
    """Code and text of any exception; foreign ones are named by their type under `failed`."""
    if isinstance(error, TensoryardError):
        return error.code, error.text
    return Failed.code, f"{type(error).__name__}: {error}"
