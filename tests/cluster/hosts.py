"""Hosts inside this one: namespaces of network, mounts, processes, names and IPC, joined by a switch in its own.

Each has its own /dev/shm, /tmp/ray, /run, host name, /etc/hosts and no name server; other files are this machine's. All
of it lives in processes of this one and in their memory: it ends with the `with` block, or, after a `kill -9` of the
test, when their standard input does. `ray_hosts.py` has Ray on them, `ray_machine.py` one for `ray up`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PATIENCE_S = 120.0
#: Where a host keeps what is its own alone, in memory.
OWN = Path("/run")

#: The first process of a host: prepares it, says so, buries what ends, and ends with its standard input.
_INIT = """
set -e
mount -t proc proc /proc
mount -t tmpfs -o size={shm_bytes},mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 own /run
mkdir -p -m 1777 /run/tmp /run/tmp/ray /run/home /tmp/ray
mount --bind /run/tmp/ray /tmp/ray
printf '%s\\n' '127.0.0.1 localhost' {names} > /run/hosts
mount --bind /run/hosts /etc/hosts
: > /run/resolv.conf
[ ! -e /etc/resolv.conf ] || mount --bind /run/resolv.conf /etc/resolv.conf
ip link set lo up
{more}
exec {python} -ISc '{wait}' {name}
"""
_WAIT = """
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if sys.argv[1:]: socket.sethostname(sys.argv[1])
os.write(1, b"up\\n")
os.read(0, 1)
"""
_NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--net")


def missing() -> str:
    """What keeps this machine from having others inside; "" for nothing."""
    if os.geteuid() != 0:
        return "needs root, for hosts of its own in namespaces"
    for tool, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install {package})"
    probe = ["unshare", *_NAMESPACES, "--fork", "mount", "-t", "tmpfs", "probe", "/run"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "this container may not make namespaces (unshare or mount fails)"
    return ""


class Init:
    """The first process of some namespaces. Everything in them ends with it, and it with us."""

    def __init__(self, namespaces: Sequence[str], *command: str) -> None:
        stdin, self._life = os.pipe2(os.O_CLOEXEC)
        self._outer = subprocess.Popen(
            ["unshare", *namespaces, "--fork", "--kill-child=SIGKILL", *command],
            stdin=stdin, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        os.close(stdin)
        assert self._outer.stdout is not None
        with self._outer.stdout as said:
            if said.readline() != b"up\n":
                self.close()
                raise AssertionError("a host does not come up")
        self.pid = int(Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()[0])

    def close(self) -> None:
        """End it, and wait until nothing of it is left. Again is harmless."""
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        self._outer.wait(PATIENCE_S)


class Host:
    """One host. Commands run inside; its files are seen from outside under `root`."""

    def __init__(
        self, name: str, *, names: Mapping[str, str] | None = None, shm_bytes: int = 1 << 30, more: str = ""
    ) -> None:
        """`names`: who is found under which address; `more`: further lines of shell that prepare it."""
        self.name = name
        self.address = (names or {}).get(name, "127.0.0.1")
        told = [f"'{address} {other}'" for other, address in (names or {name: "127.0.0.1"}).items()]
        script = _INIT.format(
            shm_bytes=shm_bytes, names=" ".join(told), more=more, python=sys.executable, wait=_WAIT, name=name
        )
        self._init = Init([*_NAMESPACES, "--propagation=private"], "bash", "-c", script)
        self.init = self._init.pid
        self.root = Path(f"/proc/{self.init}/root")
        #: What commands find in their environment.
        self.environment = {
            **os.environ,
            "HOME": f"{OWN}/home",
            "TMPDIR": f"{OWN}/tmp",
            "TENSORYARD_RUNTIME_DIR": f"{OWN}/tensoryard",
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._pid_namespace = os.readlink(f"/proc/{self.init}/ns/pid")

    @property
    def inside(self) -> list[str]:
        """What a command begins with to run on this host."""
        return ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "--"]

    def start(self, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A process there, with pipes as standard input and output; `ends` of it is the caller's care."""
        return subprocess.Popen(
            [*self.inside, *command],
            env={**self.environment, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run_code(self, *command: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Exit code and output of a command, which may leave others behind: those would hold a pipe open."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [*self.inside, *command],
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                code = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            output.seek(0)
            return code, output.read()

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """What a command prints; an assertion when it fails."""
        code, output = self.run_code(*command, environment=environment)
        assert code == 0, output
        return output

    def write(self, path: str | Path, text: str) -> str:
        """A file there; returns its path."""
        seen = self.root / str(path).lstrip("/")
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(text)
        return str(path)

    def read(self, path: str | Path) -> str:
        """What a file there says."""
        return (self.root / str(path).lstrip("/")).read_text()

    def processes(self, words: Sequence[str] = ()) -> dict[int, str]:
        """Every living process there by its number out here, with one of `words` in its command."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != str(self.init):
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns/pid") == self._pid_namespace:
                        command = (entry / "cmdline").read_text().replace("\0", " ")
                        if command and (not words or any(word in command for word in words)):
                            found[int(entry.name)] = command
        return found

    def kill(self, *words: str) -> list[int]:
        """SIGKILL for every process there with one of these words in its command; returns their numbers."""
        killed = []
        for pid in self.processes(words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        return killed

    def close(self) -> None:
        """Everything on it ends."""
        self._init.close()


class Switch:
    """What hosts are plugged into: a bridge in a network namespace of its own."""

    def __init__(self) -> None:
        self._init = Init(["--net", "--pid"], sys.executable, "-ISc", _WAIT)
        self._ip("link", "add", "br0", "type", "bridge")
        self._ip("link", "set", "br0", "up")

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["nsenter", "-t", str(self._init.pid), "-n", "ip", *arguments], check=True)

    def plug(self, host: Host) -> None:
        """A cable from here to the host's `eth0`, with its address."""
        port = f"to-{host.name}"
        self._ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.init))
        self._ip("link", "set", port, "master", "br0", "up")
        inside = ["nsenter", "-t", str(host.init), "-n", "ip"]
        for arguments in (
            ["addr", "add", f"{host.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["route", "add", "default", "dev", "eth0"],
        ):
            subprocess.run([*inside, *arguments], check=True)

    def cut(self, host: Host) -> None:
        """Pull the host's cable: what is sent to it or by it gets lost, and nobody is told."""
        self._ip("link", "set", f"to-{host.name}", "down")

    def mend(self, host: Host) -> None:
        """Plug it in again."""
        self._ip("link", "set", f"to-{host.name}", "up")

    def close(self) -> None:
        """Gone, with its cables."""
        self._init.close()


class Network:
    """Some hosts on one switch, by their names."""

    def __init__(self, names: Sequence[str], *, shm_bytes: int) -> None:
        addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 11)}
        with contextlib.ExitStack() as undo:
            self.switch = Switch()
            undo.callback(self.switch.close)
            self.hosts: dict[str, Host] = {}
            for name in names:
                host = self.hosts[name] = Host(name, names=addresses, shm_bytes=shm_bytes)
                undo.callback(host.close)
                self.switch.plug(host)
            self.close = undo.pop_all().close

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def cut(self, name: str) -> None:
        """Nothing gets from or to that host any more."""
        self.switch.cut(self[name])

    def mend(self, name: str) -> None:
        """Its link is back."""
        self.switch.mend(self[name])

    def hide(self, name: str, *, of: str) -> None:
        """One way only: that host's words no longer reach the other one, which fails at once where it notices."""
        self[name].run("ip", "route", "add", "blackhole", f"{self[of].address}/32")

    def show(self, name: str, *, of: str) -> None:
        """They do again."""
        self[name].run("ip", "route", "del", "blackhole", f"{self[of].address}/32")


@contextlib.contextmanager
def network(*names: str, shm_bytes: int = 1 << 30) -> Iterator[Network]:
    """Hosts of these names, at 10.77.0.11 and the following addresses."""
    made = Network(names, shm_bytes=shm_bytes)
    try:
        yield made
    finally:
        made.close()
