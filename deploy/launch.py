"""Launch Tensoryard on a Ray cluster: a file that needs nothing beside it but the installed package.

    ray submit cluster.yaml deploy/launch.py -- yard.toml              # the file lies on the head node: see file_mounts
    ray job submit --working-dir deploy -- python launch.py yard.toml  # the file lies in that folder
    python launch.py [up] FILE [--name NAME] [--address-file PATH] [--stay] ...
    python launch.py down [--name NAME]
    python launch.py status | address [--name NAME]

Launching again with a changed file applies the difference, worker by worker. `ray submit` copies this file alone to
the head node and runs it with whatever `python` is there; where that one has no tensoryard, the one that runs `ray` or
`tensoryard` takes over. All the rest is `tensoryard up --ray-address`: see `launching.py`.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

#: Set for the interpreter that takes over, so that none does twice.
TAKEN_OVER = "LAUNCH_TAKEN_OVER"
COMMANDS = ("up", "down", "status", "address")


def main(arguments: list[str]) -> int:
    """Find the package, and let its command line do it."""
    here = Path(__file__).resolve().parent
    # Beside this file lies whatever: a home folder, or the modules of `deploy`, none of which are to be imported.
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != here]
    if importlib.util.find_spec("tensoryard") is None:
        take_over()
    os.environ.pop(TAKEN_OVER, None)
    from tensoryard.deploy.cli import main as command_line

    command, rest = (arguments[0], arguments[1:]) if arguments[:1] and arguments[0] in COMMANDS else ("up", arguments)
    if not any(argument.split("=")[0] == "--ray-address" for argument in rest):
        rest = ["--ray-address", os.environ.get("RAY_ADDRESS") or "auto", *rest]
    return command_line([command, *rest])


def take_over() -> None:
    """Go on in an interpreter that may have the package; end with an error where there is none."""
    if TAKEN_OVER not in os.environ:
        for tool in ("tensoryard", "ray"):
            interpreter = interpreter_of(shutil.which(tool))
            if interpreter is not None and not same_file(interpreter, sys.executable):
                os.environ[TAKEN_OVER] = "1"
                os.execv(interpreter, [interpreter, *sys.argv])  # noqa: S606 - ends here, goes on there
    sys.exit(
        f"tensoryard is not installed for {sys.executable}, nor for the Python of `ray`: install it on every node, "
        "by `setup_commands` of the cluster file or in its image"
    )


def interpreter_of(tool: "str | None") -> "str | None":
    """The Python that runs a script, from its first line; None when it is no such script."""
    if tool is None:
        return None
    with open(tool, "rb") as file:  # noqa: PTH123 - reads on any Python 3
        line = file.readline(4096).decode("utf-8", "replace")
    interpreter = line[2:].strip()
    return interpreter if line.startswith("#!") and os.access(interpreter, os.X_OK) else None


def same_file(one: str, other: str) -> bool:
    """Whether two interpreters are one: by their path, since a virtual environment's is a link to another's."""
    return os.path.abspath(one) == os.path.abspath(other)  # noqa: PTH100 - links are not to be followed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
