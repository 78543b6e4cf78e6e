"""A machine of its own to run Ray on by ssh: mounts, processes and network apart from this one's.

`ray down` ends every Ray process that it can see, and Ray listens on fixed ports: so the cluster that `ray up` starts
gets process ids, ports, a home, a /tmp/ray and a /dev/shm of its own. It ends with the first of its processes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SSHD = shutil.which("sshd") or next((str(p) for p in [Path("/usr/sbin/sshd")] if p.exists()), None)
PATIENCE_S = 200.0

#: The first process: prepares the machine, says so, and buries what ends, until it is killed.
INIT = """
mount -t proc proc /proc
mount -t tmpfs -o size=1g,mode=1777 shm /dev/shm
mkdir -p /tmp/ray {folder}/ray {folder}/upper {folder}/work /run/sshd
mount --bind {folder}/ray /tmp/ray
mount -t overlay overlay -o lowerdir={home},upperdir={folder}/upper,workdir={folder}/work {home} || exit 1
: > {folder}/empty && mount --bind {folder}/empty /etc/resolv.conf
ip link set lo up || exit 1
: > {folder}/up
while :; do sleep 86400 & wait $!; done
"""

SSHD_CONFIG = """
HostKey {folder}/hostkey
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
MaxSessions 100
MaxStartups 100
"""


def missing() -> str:
    """What keeps this machine from having another one inside; "" for nothing."""
    if os.geteuid() != 0:
        return "needs root, for a machine of its own: `ray down` ends every Ray process of this one"
    for tool, package in [(SSHD, "openssh-server"), *((shutil.which(t), t) for t in ("ssh-keygen", "rsync", "ip"))]:
        if tool is None:
            return f"{package} is not installed (apt-get install openssh-server openssh-client rsync iproute2)"
    probe = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "this container may not make namespaces (unshare fails), as `ray up` beside other Rays needs"
    return ""


class Machine:
    """The machine, and its folder, which it shares with this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = Path.home()
        init = INIT.format(folder=folder, home=home)
        self._outer = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child=SIGKILL",
             "--propagation", "private", "bash", "-c", init],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while not (folder / "up").exists():
            assert self._outer.poll() is None, "the machine does not come up"
        self.init = int(Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()[0])
        for key in ("id", "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))

    @property
    def inside(self) -> list[str]:
        """What a command begins with to run on that machine."""
        return ["nsenter", "-t", str(self.init), "-m", "-p", "-n", "-i", "--"]

    @property
    def ssh_proxy_command(self) -> str:
        """For ssh, in the place of a connection: a daemon on that machine that speaks over its standard streams."""
        return " ".join([*self.inside, str(SSHD), "-i", "-f", f"{self.folder}/sshd_config"])

    def close(self) -> None:
        """Everything on it ends with its first process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self._outer.wait(60)


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """A machine in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ty-up-"))
    made = None
    try:
        made = Machine(folder)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)


def run(*command: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str]:
    """Exit code and output of a command that may leave others behind."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        output.seek(0)
        return code, output.read()


PYTHON_FOLDER = Path(sys.executable).parent
