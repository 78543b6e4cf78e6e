"""A Ray of a test's own: a head node that is started as an administrator would, and ended by its processes' ids.

Its ports and its folder are its own, so that several may run on one machine; `ray stop` would end all of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "deploy" / "launch.py"
RAY = Path(sys.executable).with_name("ray")
PATIENCE_S = 60.0


class RayHead:
    """One Ray head node, and the processes that came of it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.runtime_folder = folder / "run"
        self.runtime_folder.mkdir(mode=0o700)
        port, client_port, *_ = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            **os.environ,
            "TENSORYARD_RUNTIME_DIR": str(self.runtime_folder),
            "PYTHONSAFEPATH": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": self.address,
            "OMP_NUM_THREADS": "1",
        }
        # The port of a part that only some installs of Ray have.
        client = [f"--ray-client-server-port={client_port}"] if importlib.util.find_spec("grpc") else []
        self.run(
            str(RAY), "start", "--head", f"--port={port}", *client, "--num-cpus=4",
            "--object-store-memory=100000000", "--include-dashboard=false", f"--temp-dir={folder}/ray",
            "--disable-usage-stats", *options, environment={**self.environment, "RAY_ADDRESS": ""},
        )  # fmt: skip

    def run(self, *command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
        """What a command prints; an assertion when it fails."""
        code, output = self.run_code(*command, cwd=cwd, environment=environment)
        assert code == 0, output
        return output

    def run_code(
        self, *command: str, cwd: Path | None = None, environment: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Exit code and output of a command. To a file: what it leaves running would hold a pipe open."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                command, env=environment or self.environment, cwd=cwd or self.folder,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                code = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            output.seek(0)
            return code, output.read()

    def add_node(self, *options: str) -> None:
        """One more raylet on this machine, a node of its own to Ray."""
        self.run(
            str(RAY), "start", f"--address={self.address}", "--num-cpus=4", "--object-store-memory=100000000",
            "--disable-usage-stats", *options, environment={**self.environment, "RAY_ADDRESS": ""},
        )  # fmt: skip

    def places(self, name: str = "default") -> dict[str, str]:
        """The node of each worker of a cluster, as its fleet knows them."""
        script = (
            "import json, ray; ray.init(log_to_driver=False); "
            f"fleet = ray.get_actor('fleet', namespace='tensoryard-{name}'); "
            "print('places', json.dumps(ray.get(fleet.places.remote())))"
        )
        found: dict[str, str] = json.loads(
            self.run(sys.executable, "-c", script).partition("places ")[2].splitlines()[0]
        )
        return found

    def launch(self, *arguments: str) -> str:
        """What `launch.py` prints."""
        return self.run(sys.executable, str(LAUNCH), *arguments)

    def processes(self, words: Sequence[str] = ()) -> dict[int, str]:
        """Every living process whose environment names this runtime folder, with one of `words` in its command."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != str(os.getpid()):
                with contextlib.suppress(OSError):
                    if f"TENSORYARD_RUNTIME_DIR={self.runtime_folder}\0".encode() in (entry / "environ").read_bytes():
                        command = (entry / "cmdline").read_text().replace("\0", " ")
                        if not words or any(word in command for word in words):
                            found[int(entry.name)] = command
        return found

    def close(self) -> None:
        """SIGKILL for all of it."""
        for _ in range(20):  # what was just being started is seen the next time
            if not (pids := self.processes()):
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def ray_head(*options: str) -> Iterator[RayHead]:
    """A head node in a short folder, since paths of sockets are bounded."""
    folder = Path(tempfile.mkdtemp(prefix="ty-ray-"))
    head = None
    try:
        head = RayHead(folder, *options)
        yield head
    finally:
        if head is not None:
            head.close()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, and that Ray does not use for its workers."""
    with contextlib.ExitStack() as sockets:
        found: list[int] = []
        while len(found) < count:
            one = sockets.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            if not 10002 <= one.getsockname()[1] <= 19999:
                found.append(one.getsockname()[1])
        return found
