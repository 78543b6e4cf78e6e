"""Between two languages: messages of peers become the router's events, its effects become messages to peers.

Used by `broker.py`; holds no state, and looks into no body.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..errors import TensoryardError
from ..proto import wire
from ..proto.lora import LoRAResponse, LoRAStatus
from . import events as ev

#: Outputs in one ANSWERS: with the longest names, all of them stay below the limit of an envelope.
MAX_ANSWERS = 1024
_STATUSES = {status.value for status in LoRAStatus}

#: An output for a client, and its frames.
Answer = tuple[wire.Partial | wire.Final, wire.Frames]


# -- messages to events -----------------------------------------------------------------------------------------------


def request_arrived(client: str, message: wire.Submit, body: wire.Frames, at: float) -> ev.RequestArrived:
    """SUBMIT."""
    return ev.RequestArrived(
        at=at,
        client=client,
        request_id=message.request_id,
        task=message.task,
        model=message.model,
        priority=message.priority,
        deadline_s=message.deadline_s,
        host=message.host,
        shared_bytes=message.shared_bytes,
        body_bytes=wire.size_of(body),
        window_parts=message.window_parts,
        window_bytes=message.window_bytes,
        consumed=message.consumed,
        submission=message.submission,
        porter=message.porter,
        uses=message.uses,
    )


def worker_readied(worker: str, message: wire.Ready, at: float) -> ev.WorkerReadied:
    """READY."""
    return ev.WorkerReadied(
        at=at,
        worker=worker,
        model=message.model,
        task=message.task,
        deployment=message.deployment,
        credits=message.credits,
        hang_limit_s=message.hang_limit_s,
        max_queued=message.max_queued,
        max_queued_bytes=message.max_queued_bytes,
        running=tuple((entry.request_id, entry.attempt) for entry in message.running),
        submissions=tuple(entry.submission for entry in message.running),
        sent=tuple(entry.sent for entry in message.running),
        cancelled=tuple(entry.cancelled for entry in message.running),
        takes_adapters="lora" in message.features,
        adapters=tuple((entry.lora_name, entry.lora_path) for entry in message.adapters),
    )


def output_arrived(worker: str, output: wire.Output, at: float) -> ev.OutputArrived:
    """One output of OUTPUTS."""
    return ev.OutputArrived(
        at=at,
        worker=worker,
        request_id=output.request_id,
        attempt=output.attempt,
        seq=output.seq,
        done=output.done,
        code=output.code,
        text=output.text,
    )


def adapter_asked(client: str, message: wire.Lora, at: float) -> ev.AdapterAsked:
    """LORA."""
    return ev.AdapterAsked(
        at=at,
        client=client,
        query=message.query,
        operation=message.operation,
        name=message.lora_name,
        path=message.lora_path,
        model=message.model,
        timeout_s=message.timeout_s,
    )


def adapter_done(worker: str, message: wire.LoraDone, at: float) -> ev.AdapterDone:
    """LORA_DONE; a status that nobody knows is none in particular."""
    known = message.status in _STATUSES
    status = message.status if known else LoRAStatus.UNSPECIFIED_ERROR.value
    return ev.AdapterDone(
        at=at, worker=worker, number=message.number, name=message.lora_name, status=status, text=message.text
    )


def deployments_changed(message: wire.Deployments, at: float) -> ev.DeploymentsChanged:
    """DEPLOYMENTS."""
    expected = tuple(
        ev.DeploymentExpected(**{name: getattr(entry, name) for name in entry.__struct_fields__})
        for entry in message.deployments
    )
    return ev.DeploymentsChanged(at=at, deployments=expected)


# -- effects to messages ----------------------------------------------------------------------------------------------


def request_message(
    effect: ev.SendRequest, *, reader_host: str = "", porter: bool = False, uses: list[wire.Use] | None = None
) -> wire.Dispatch:
    """REQUEST. The rest is said to a worker on another host than the client's: see `wire.Dispatch`."""
    return wire.Dispatch(
        request_id=effect.request_id,
        attempt=effect.attempt,
        deadline_s=effect.deadline_s,
        window_parts=effect.window_parts,
        window_bytes=effect.window_bytes,
        consumed=effect.consumed,
        submission=effect.submission,
        adapter=effect.adapter,
        reader_host=reader_host,
        porter=porter,
        uses=uses or [],
    )


def adapter_work(effect: ev.SendAdapter) -> wire.LoraWork:
    """LORA_WORK."""
    return wire.LoraWork(number=effect.number, operation=effect.operation, lora_name=effect.name, lora_path=effect.path)


def adapter_answer(effect: ev.AnswerAdapter) -> LoRAResponse:
    """The body of the REPORT that answers LORA."""
    one = len(effect.texts) == 1
    return LoRAResponse(LoRAStatus(effect.status), effect.texts[0] if one else list(effect.texts))


def word_to_worker(effect: ev.SendCancel | ev.SendConsumed | ev.SendDiscard | ev.SendDrain) -> wire.Message:
    """CANCEL_WORK, CONSUMED, DISCARD or DRAIN."""
    match effect:
        case ev.SendConsumed():
            return wire.Consumed(request_id=effect.request_id, attempt=effect.attempt, parts=effect.parts)
        case ev.SendCancel():
            return wire.CancelWork(request_id=effect.request_id, attempt=effect.attempt)
        case ev.SendDiscard():
            return wire.Discard(request_id=effect.request_id, attempt=effect.attempt, seq=effect.seq)
        case ev.SendDrain():
            return wire.Drain()


def output_message(effect: ev.SendOutput, ledger: wire.Ledger | None) -> wire.Partial | wire.Final:
    """PARTIAL or FINAL."""
    kind = wire.Final if effect.done else wire.Partial
    return kind(request_id=effect.request_id, seq=effect.seq, ledger=ledger, submission=effect.submission)


def in_messages(gathered: list[Answer], most_bytes: int = 1 << 20) -> Iterator[tuple[wire.Answers, wire.Frames]]:
    """Outputs for one client as few messages: of at most MAX_FRAMES frames, and small, so that the first comes soon."""
    frames = [frame for _, body in gathered for frame in body]
    if len(gathered) <= MAX_ANSWERS and len(frames) < wire.MAX_FRAMES and wire.size_of(frames) <= most_bytes:
        yield _answers(gathered), frames  # nearly always
        return
    part: list[Answer] = []
    count = size = 0
    for entry in gathered:
        body = entry[1]
        weight = wire.size_of(body)
        full = len(part) >= MAX_ANSWERS or count + len(body) >= wire.MAX_FRAMES or size + weight > most_bytes
        if part and full:
            yield _answers(part), [frame for _, body in part for frame in body]
            part, count, size = [], 0, 0
        part.append(entry)
        count, size = count + len(body), size + weight
    yield _answers(part), [frame for _, body in part for frame in body]


def _answers(part: list[Answer]) -> wire.Answers:
    return wire.Answers(outputs=[output for output, _ in part], frames=[len(body) for _, body in part])


def error_message(effect: ev.SendError) -> wire.Error:
    """ERROR, as the router says."""
    return wire.Error(
        request_id=effect.request_id,
        code=effect.code,
        text=effect.text,
        retry_after_s=effect.retry_after_s,
        story=list(effect.story),
        outcome=effect.outcome,
        submission=effect.submission,
    )


def error_of(error: TensoryardError, request_id: str, submission: int) -> wire.Error:
    """ERROR for a request that got no further than its message."""
    return wire.Error(
        request_id=request_id,
        code=error.code,
        text=error.text,
        retry_after_s=getattr(error, "retry_after_s", 0.0),
        outcome=error.outcome,
        submission=submission,
    )


def notice(effect: ev.NotifyFleet) -> wire.WorkerNotice:
    """WORKER_NOTICE."""
    return wire.WorkerNotice(worker=effect.worker, deployment=effect.deployment, what=effect.what, text=effect.text)


def as_errors(outputs: list[wire.Output], error: TensoryardError) -> list[wire.Output]:
    """Outputs that cannot be passed on, each as the error that says why."""
    failed = {"done": False, "frames": 0, "code": error.code, "text": error.text}
    return [msgspec.structs.replace(output, **failed) for output in outputs]
