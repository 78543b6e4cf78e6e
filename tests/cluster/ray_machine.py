"""A machine of its own to run Ray on by ssh: mounts, processes and network apart from this one's.

`ray down` ends every Ray process that it can see, and Ray listens on fixed ports: so the cluster that `ray up` starts
gets process ids, ports, a home, a /tmp/ray and a /dev/shm of its own: it is a host of `hosts.py`, without a network.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import hosts
from .hosts import Host

SSHD = shutil.which("sshd") or next((str(p) for p in [Path("/usr/sbin/sshd")] if p.exists()), None)
PATIENCE_S = 200.0

#: What it has beside what every host has: sshd, and a home that may be changed.
_HOME = """
mkdir -p {folder}/upper {folder}/work /run/sshd
mount -t overlay overlay -o lowerdir={home},upperdir={folder}/upper,workdir={folder}/work {home}
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
    for tool, package in [(SSHD, "openssh-server"), *((shutil.which(t), t) for t in ("ssh-keygen", "rsync"))]:
        if tool is None:
            return f"{package} is not installed (apt-get install openssh-server openssh-client rsync)"
    return hosts.missing()


class Machine:
    """The machine, and its folder, which it shares with this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._host = Host(socket.gethostname(), more=_HOME.format(folder=folder, home=Path.home()))
        for key in ("id", "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))

    @property
    def inside(self) -> list[str]:
        """What a command begins with to run on that machine."""
        return self._host.inside

    @property
    def ssh_proxy_command(self) -> str:
        """For ssh, in the place of a connection: a daemon on that machine that speaks over its standard streams."""
        return " ".join([*self.inside, str(SSHD), "-i", "-f", f"{self.folder}/sshd_config"])

    def close(self) -> None:
        """Everything on it ends."""
        self._host.close()


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
