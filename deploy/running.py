"""`tensoryard up`, `down` and `status`: a cluster of this machine, from its start to the end of its last process.

`local.py` makes the cluster; this module keeps it in the foreground or in a session of its own, finds it again by name,
and tells people about it. Called by `cli.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from ..client import Client, connect
from ..coordinator.connection import check_name, connections, read_connection
from ..errors import ConfigError, Failed, NotConnected, ReplyTimeout, TensoryardError
from ..proto.deployment import Deployment
from ..proto.status import ClusterStatus, ModelStatus
from ..shm import runtime_dir
from .lora import adapter_table
from .text import duration, say, several, size, table

if TYPE_CHECKING:  # `status` and `down` do without what `local` imports
    from .local import Yard

#: How often a condition that gives no event is looked at.
_POLL_S = 0.05
#: A reader holds the lock for microseconds while it looks; a starting `up` tries again for this long.
_LOCK_PATIENCE_S = 0.5
#: How long `down` waits for a coordinator's welcome before it turns to the process that keeps the cluster.
_ANSWER_S = 5.0
#: What a process that was started with `--detach` writes once its cluster is ready.
_READY = b"ready\n"
#: Lines of the log shown when a detached cluster does not come up.
_LOG_TAIL = 30


def serve(
    deployments: Sequence[Deployment],
    *,
    runtime: Literal["ray", "process"],
    name: str,
    ready_timeout_s: float,
    ready_fd: int | None = None,
) -> int:
    """Run a cluster until it is shut down, or this process gets SIGINT or SIGTERM; then drain and end it."""
    from .local import local

    with _claimed(name), terminations_as_interrupts():
        say(f"starting cluster {name!r} ({runtime} runtime): {wanted(deployments)}")
        with local(deployments, runtime=runtime, name=name) as yard, terminations_as_interrupts():
            _wait_ready(yard, deployments, ready_timeout_s)
            say(f"ready at {yard.address}; stop with Ctrl-C or `{_down_command(name)}`")
            _tell_ready(ready_fd)
            try:
                yard.wait_ended()
                say("shut down by a client; ending")
            except KeyboardInterrupt:
                say("finishing what runs, then ending (Ctrl-C again to hurry)")
    say("ended")
    return 0


def _wait_ready(yard: Yard, deployments: Sequence[Deployment], timeout_s: float) -> None:
    try:
        yard.wait_ready(timeout_s=timeout_s)
    except TimeoutError as error:
        gpus = sum(deployment.num_gpus * deployment.least_replicas for deployment in deployments)
        needs = f"; they ask for {gpus:g} GPUs in all, are there so many?" if gpus else ""
        raise Failed(f"{error}{needs} (--ready-timeout waits longer)") from error


def detach(arguments: Sequence[str], *, name: str) -> int:
    """Start `tensoryard up` with `arguments` in a session of its own; return when its cluster is ready."""
    _require_free(name)
    log = log_path(name)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    command = [sys.executable, "-P", "-m", "tensoryard.deploy.cli", *arguments, "--ready-fd", str(ready_write)]
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[ready_write],
            start_new_session=True,
        )
    os.close(ready_write)
    try:
        with os.fdopen(ready_read, "rb") as told:
            ready = told.readline() == _READY
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    if ready:
        say(f"cluster {name!r} is ready (pid {child.pid}); log: {log}; stop it with `{_down_command(name)}`")
        return 0
    code = child.wait()
    lines = log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
    say("\n".join(lines), error=True)
    say(f"tensoryard: error: the cluster did not come up (exit code {code}); log: {log}", error=True)
    return code or 1


def down(name: str, *, timeout_s: float) -> int:
    """Shut the cluster of that name down; return when its last process of ours has ended."""
    give_up = (started := time.monotonic()) + timeout_s
    with _keeper(name) as keeper:
        address = _address(name)
        if keeper is None and address is None:
            say(f"no cluster named {name!r} runs on this host{_others(name)}", error=True)
            return 0
        _ask_to_end(address, keeper, timeout_s)
        if not _wait_gone(name, keeper, give_up):
            raise ReplyTimeout(
                f"cluster {name!r} still runs after {timeout_s:g} s ({_whose(name)}); wait on, or kill that"
            )
    say(f"cluster {name!r} has ended ({duration(time.monotonic() - started)})")
    return 0


def status(client: Client, *, as_json: bool) -> int:
    """Print what a cluster looks like now; 1 when a model of it cannot be served."""
    found = client.status()
    if as_json:
        say(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        say(describe(found))
    return 1 if any(model.unhealthy for model in found.models) else 0


_MODEL_HEAD = ("MODEL", "TASK", "STATE", ">READY", ">WANTED", ">QUEUED", ">QUEUED BYTES")
_WORKER_HEAD = ("WORKER", "MODEL", "HOST", ">PID", "STATE", ">IN FLIGHT", ">CREDITS", ">SEEN")


def describe(found: ClusterStatus) -> str:
    """A cluster's status as text: itself, its models, its workers, and why a model is unhealthy."""
    heading = [
        f"cluster {found.name} at {found.address}",
        f"version {found.version}",
        f"up {duration(found.uptime_s)}",
        several(found.clients, "client"),
        several(found.live_requests, "live request"),
    ]
    parts = [", ".join(heading) + ("" if found.accepting else " (shutting down: takes no requests)")]
    if found.outcomes:
        parts.append(
            "requests so far: " + ", ".join(f"{count} {name}" for name, count in sorted(found.outcomes.items()))
        )
    if not found.models:
        return "\n".join([*parts, "\nno model is deployed"])
    parts.append("\n" + table(_MODEL_HEAD, [_model_row(model) for model in found.models]))
    workers = [(m.model, worker) for m in found.models for worker in sorted(m.workers, key=lambda w: w.name)]
    if workers:
        rows = [
            (w.name, model, w.host, w.pid, w.state, w.in_flight, w.credits, duration(w.seen_s)) for model, w in workers
        ]
        parts.append("\n" + table(_WORKER_HEAD, rows))
    parts += adapter_table(found.models)
    parts += [f"\n{model.model}: {model.pending}" for model in found.models if model.pending]
    parts += [f"\n{model.model}: {model.unhealthy.rstrip()}" for model in found.models if model.unhealthy]
    return "\n".join(parts)


def _model_row(model: ModelStatus) -> Sequence[object]:
    ready = sum(worker.state == "ready" for worker in model.workers)
    state = "unhealthy" if model.unhealthy else "ready" if model.is_ready else "starting"
    return (model.model, model.task, state, ready, model.replicas, model.queued, size(model.queued_bytes))


def open_client(*, address: str | None, name: str | None, timeout_s: float) -> Client:
    """A client of the cluster at `address`, or of the one named `name`; of neither: the one that is found."""
    if address and name:
        raise ConfigError("give --address or --name, not both")
    return connect(read_connection(name).address if name else address, timeout_s=timeout_s)


def log_path(name: str) -> Path:
    """Where a detached cluster of that name writes its log."""
    return runtime_dir() / f"{check_name(name)}.log"


@contextlib.contextmanager
def terminations_as_interrupts() -> Iterator[None]:
    """SIGTERM ends what runs inside as Ctrl-C does: through every `with` block and `finally`.

    Ray sets a handler of its own when it starts: enter this once more behind it.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- who keeps a cluster ----------------------------------------------------------------------------------------------
#
# `up` holds a lock on a file that tells its process id for as long as it lives. So `down` knows what to wait for, and
# signals no stranger that was given the same id. The file stays, empty: removing it would let two hold the lock.


@dataclass(frozen=True)
class Keeper:
    """The process that runs `up`: its id, and a descriptor that becomes readable when it ends."""

    pid: int
    pidfd: int


def is_kept(name: str) -> bool:
    """Whether a process of this host runs `up` for the cluster of that name, and so replaces what dies."""
    return _keeper_pid(name) is not None


@contextlib.contextmanager
def _claimed(name: str) -> Iterator[None]:
    """This process keeps the cluster of that name; ConfigError when one runs already."""
    with _keeper_path(name).open("a+") as file:
        if not _lock(file.fileno(), fcntl.LOCK_EX, _LOCK_PATIENCE_S):
            raise _taken(name)
        _require_free(name)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _require_free(name: str) -> None:
    # Our own lock, where we hold it, does not count: a process may lock again what it has locked.
    if _keeper_pid(name) not in (None, os.getpid()) or _address(name) is not None:
        raise _taken(name)


def _taken(name: str) -> ConfigError:
    return ConfigError(
        f"a cluster named {name!r} already runs on this host ({_whose(name)}); "
        f"stop it with `{_down_command(name)}`, or start another under --name",
    )


@contextlib.contextmanager
def _keeper(name: str) -> Iterator[Keeper | None]:
    """The process that keeps the cluster of that name; None when none does."""
    pid = _keeper_pid(name)
    fd = _pidfd(pid) if pid is not None else None
    try:
        # Looked at again: only then was the descriptor opened while that very process lived.
        yield Keeper(pid, fd) if pid is not None and fd is not None and _keeper_pid(name) == pid else None
    finally:
        if fd is not None:
            os.close(fd)


def _keeper_path(name: str) -> Path:
    return runtime_dir() / f"{check_name(name)}.up"


def _keeper_pid(name: str) -> int | None:
    try:
        with _keeper_path(name).open() as file:
            return None if _lock(file.fileno(), fcntl.LOCK_SH) else int(file.read() or 0) or None
    except FileNotFoundError:
        return None


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _lock(fd: int, kind: int, patience_s: float = 0.0) -> bool:
    give_up = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _address(name: str) -> str | None:
    """Where the coordinator of that name listens; None when none runs."""
    try:
        return read_connection(name).address
    except NotConnected:
        return None


def _whose(name: str) -> str:
    pid = _keeper_pid(name)
    if pid is not None:
        return f"process {pid}"
    try:
        return f"its coordinator is process {read_connection(name).pid}"
    except NotConnected:
        return "it is just starting or ending"


def _others(name: str) -> str:
    names = [f"{found.name!r}" for found in connections() if found.name != name]
    return f"; running: {', '.join(names)}" if names else ""


def _ask_to_end(address: str | None, keeper: Keeper | None, timeout_s: float) -> None:
    """Through the coordinator where it answers: everything else follows it. Else by a signal to who keeps it."""
    if address is not None:
        try:
            with connect(address, timeout_s=min(timeout_s, _ANSWER_S)) as client:
                client.shutdown()
                return
        except TensoryardError as error:
            say(f"the coordinator does not answer: {error.text}", error=True)
    if keeper is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(keeper.pidfd, signal.SIGTERM)


def _wait_gone(name: str, keeper: Keeper | None, give_up: float) -> bool:
    if keeper is not None:
        poll = select.poll()
        poll.register(keeper.pidfd, select.POLLIN)
        if not poll.poll(max(give_up - time.monotonic(), 0) * 1000):
            return False
    while _address(name) is not None:
        if time.monotonic() > give_up:
            return False
        time.sleep(_POLL_S)
    return True


def _tell_ready(fd: int | None) -> None:
    if fd is not None:
        with contextlib.suppress(BrokenPipeError):  # whoever started us has gone; the cluster stays
            os.write(fd, _READY)
        os.close(fd)


def wanted(deployments: Sequence[Deployment]) -> str:
    """What a list of deployments asks for, in words."""
    return ", ".join(f"{deployment.model} x {_how_many(deployment)}" for deployment in deployments)


def _how_many(deployment: Deployment) -> str:
    least, most = deployment.least_replicas, deployment.most_replicas
    return f"{least}" if least == most else f"{least} to {most}"


def _down_command(name: str) -> str:
    return "tensoryard down" if name == "default" else f"tensoryard down --name {name}"
