"""The simulated hosts themselves: apart from each other and from this machine, cut and mended, and gone in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import hosts
from .hosts import Network, network

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def two() -> Iterator[Network]:
    """Two hosts."""
    if reason := hosts.missing():
        pytest.skip(reason)
    with network("a", "b") as made:
        yield made


REACH = "import socket; socket.create_connection(('{}', 7000), 2).close()"
LISTEN = "import socket, sys; s = socket.create_server(('', 7000)); print('up', flush=True); sys.stdin.read()"


def test_hosts_share_nothing_but_files_and_a_network(two: Network) -> None:
    """Names, shared memory, /tmp/ray, processes and addresses are each one's own; the packages are this machine's."""
    look = "import os, socket, tensoryard; print(socket.gethostname(), os.listdir('/dev/shm'), os.listdir('/tmp/ray'), "
    look += "open('/etc/hosts').read().split(), len(open('/etc/resolv.conf').read()))"
    for name, host in two.hosts.items():
        host.run("touch", f"/dev/shm/of-{name}", f"/tmp/ray/of-{name}")
        said = host.run(sys.executable, "-c", look)
        table = ["127.0.0.1", "localhost", "10.77.0.11", "a", "10.77.0.12", "b"]
        assert said.strip() == f"{name} {[f'of-{name}']} {[f'of-{name}']} {table} 0"
        assert "of-" not in str([*os.listdir("/dev/shm"), *os.listdir("/tmp/ray")])
    assert two["a"].processes(["touch"]) == {}


def test_a_link_is_cut_and_mended(two: Network) -> None:
    """What listens on one host is reached from the other by name, not while either link is cut, and again after."""
    with two["b"].start(sys.executable, "-c", LISTEN) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"up\n"
        reach = (sys.executable, "-c", REACH.format("b"))
        two["a"].run(*reach)
        two.cut("b")
        assert two["a"].run_code(*reach)[0]
        assert two["b"].run_code(*reach)[0] == 0, "a host reaches itself without its cable"
        two.mend("b")
        two["a"].run(*reach)
        two.hide("a", of="b")
        assert two["a"].run_code(*reach)[0]
        two.show("a", of="b")
        two["a"].run(*reach)


def test_nothing_is_left_of_hosts_whose_test_was_killed(two: Network, eventually: Callable[..., None]) -> None:
    """SIGKILL for the process that made them: their processes, and so their namespaces and mounts, are gone."""
    code = (
        f"import runpy, sys; kept = runpy.run_path({str(hosts.__file__)!r})['network']('x'); made = kept.__enter__(); "
    )
    code += (
        "made['x'].start('sleep', '1000'); print(made['x'].init, made.switch._init.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        pids = [int(word) for word in maker.stdout.readline().split()]
        namespace = os.readlink(f"/proc/{pids[0]}/ns/pid")
        maker.send_signal(signal.SIGKILL)
    left = lambda: [pid for pid in Path("/proc").glob("[0-9]*") if _namespace(pid) == namespace]
    eventually(lambda: not left(), "everything on the host has ended")
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the first processes have ended")
    assert two["a"].run("echo", "ok") == "ok\n"


def _namespace(entry: Path) -> str:
    try:
        return os.readlink(entry / "ns/pid")
    except OSError:
        return ""
