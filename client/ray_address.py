"""`connect("ray://HOST:10001")`: where Ray's client reaches a cluster, Ray is asked where our coordinator listens.

`connection.py` comes here. Requests go to the coordinator itself; Ray is asked in a process of its own, since a process
can be connected to one Ray only, and this one may be, and since a client needs no Ray installed but for this.
"""

from __future__ import annotations

import os
import subprocess
import sys
from urllib.parse import parse_qs

from ..coordinator.connection import check_name
from ..errors import NotConnected
from ..links.address import read

RAY_SCHEME = "ray://"
#: Ray's client tries for half a minute by itself.
_PATIENCE_S = 90.0
#: Ray starts a server for each of its clients, by a fork beside running threads, which at times does not come about.
_HICCUP, _TRIES = "Starting Ray client server failed", 2
_ASK = "from tensoryard.deploy.cli import main; raise SystemExit(main())"


def address_from_ray(url: str) -> str:
    """The coordinator's address, for this host. NotConnected, with what Ray says, when it cannot be had."""
    where, _, query = url.partition("?")
    name = check_name(parse_qs(query).get("name", ["default"])[0])
    asker = [sys.executable, "-c", _ASK, "address", "--ray-address", where, "--name", name]
    for _ in range(_TRIES):
        try:
            done = subprocess.run(
                asker,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        except subprocess.TimeoutExpired:
            raise NotConnected(f"Ray did not answer at {where} within {_PATIENCE_S:.0f} s") from None
        if not done.returncode and done.stdout.strip():
            return done.stdout.strip().splitlines()[-1]
        last = (done.stderr.strip().splitlines() or ["no word"])[-1].removeprefix("tensoryard: error: ")
        if _HICCUP not in last:
            break
    raise NotConnected(f"Ray at {where} could not be asked for the coordinator's address: {last}")


def unreached(url: str | None, address: str) -> str:
    """What to do where Ray answers and the coordinator does not; "" where Ray was not asked."""
    if not isinstance(url, str) or not url.startswith(RAY_SCHEME) or not address.startswith("tcp://"):
        return ""
    where = read(address).endpoint.removeprefix("tcp://")
    port = where.rpartition(":")[2]
    return (
        f"Ray answers at {url}, but this port is not reached from here. Open it, or bring it here: "
        f"`ssh -N -L {port}:{where} HEAD`, then connect to tcp://127.0.0.1:{port}?key=… , with the keys that "
        f"`tensoryard address --ray-address {url.partition('?')[0]}` prints"
    )
