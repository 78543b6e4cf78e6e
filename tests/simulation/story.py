"""A schedule in words: what was planned, what went wrong, and what happened to one request.

The trace keeps envelopes as they were; they are read here, when somebody asks.
"""

from __future__ import annotations

from dataclasses import fields

import msgspec

#: Lines of a story; the middle of a longer one is left out.
MAX_LINES = 120
_QUIET = {"HEARTBEAT"}
#: Lines that belong to every story.
_ALWAYS = {"fault", "killed", "ended", "frozen", "thawed", "leap", "calm", "lost", "shutdown"}


def tell(result):
    """The story of a result, as lines."""
    site, violation = result.site, result.violation
    request_id = getattr(violation, "request_id", None)
    lines = [f"seed {result.seed}: {violation or 'nothing is wrong'}", *_plan_lines(site.plan), ""]
    happened = [line for entry in site.world.trace if (line := _line(entry, request_id))]
    if len(happened) > MAX_LINES:
        half = MAX_LINES // 2
        happened = [*happened[:half], f"… {len(happened) - MAX_LINES} lines …", *happened[-half:]]
    return [*lines, *happened]


def _plan_lines(plan):
    yield f"{plan.clients} clients, {'a fleet' if plan.fleet else 'no fleet'}, {_brief(plan.settings)}"
    for serves in plan.serves:
        deployment = serves.deployment
        yield (
            f"{deployment.name}: {deployment.task.value} x{deployment.replicas}, batches of {serves.max_batch_size}, "
            f"hang limit {deployment.hang_limit_s} s, {serves.fails_to_start} starts fail"
        )
    for fault in plan.faults:
        yield f"fault: {_brief(fault)}"


def _brief(struct):
    """What differs from the defaults."""
    shown = (
        f"{entry.name}={getattr(struct, entry.name)}"
        for entry in fields(struct)
        if getattr(struct, entry.name) not in (entry.default, None)
    )
    return ", ".join(shown)


def _line(entry, request_id):
    at, what, *rest = entry
    if what in ("read", "dropped"):
        text = _message_line(what, rest, request_id)
    elif what in _ALWAYS or (what == "outcome" and request_id in (None, rest[1])):
        text = " ".join([what, *map(str, rest)])
    else:
        text = ""
    return f"{at:9.4f} {text}" if text else ""


def _message_line(what, rest, request_id):
    """A message, if it concerns the request; without one, every message but heartbeats."""
    who, envelope, sender = (None, *rest, None)[:3] if what == "dropped" else (*rest, None)[:3]
    name, *values = msgspec.msgpack.decode(envelope)
    if name in _QUIET or (request_id is not None and not _mentions(values, request_id)):
        return ""
    whence = f" from {sender.decode()}" if sender else ""
    return f"{who or 'somebody'} {what} {name}{whence} {_short(values)}"


def _mentions(values, request_id):
    return any(value == request_id or (isinstance(value, list) and _mentions(value, request_id)) for value in values)


def _short(values):
    text = repr(values)
    return text if len(text) <= 160 else f"{text[:157]}..."
