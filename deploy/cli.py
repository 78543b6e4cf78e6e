"""The command line: `tensoryard demo | up | down | status | address | submit | worker | lora | doctor | shm | chaos`.

Reads arguments and turns every error into one clear line and an exit code; the commands' work is in `running.py`,
`launching.py`, `submit.py`, `lora.py`, `demo.py`, `doctor.py`, `shm_report.py` and `chaos.py`, imported when they are
asked for.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, InvalidRequest, TensoryardError
from ..version import __version__
from .text import say

if TYPE_CHECKING:  # numpy comes with it: `--help` and a Ctrl-C at the start should not wait for that
    from ..proto.deployment import Deployment
    from .shm_report import Query

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(argv)
    except SystemExit as stop:  # argparse has said what is wrong, or printed the help or the version
        return int(stop.code or 0)
    _start_logging(args)
    try:
        command: Callable[[argparse.Namespace], int] = args.command
        return command(args)
    except KeyboardInterrupt:
        say("\ninterrupted", error=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone: nothing more can be said, also not by the interpreter at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        return _report(error, debug=args.debug)


def _parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, in any order: argparse alone takes no further positional ones once an option has come."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    args.argv = argv
    flags = [argument for argument in rest if argument.startswith("-")]
    if not flags and hasattr(args, "inputs"):
        args.inputs += rest
    elif not flags and len(rest) == 1 and args.command is _up and args.config is None:
        args.config = rest[0]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(flags or rest)}")
    return args


def _start_logging(args: argparse.Namespace) -> None:
    """What the cluster's parts log goes to stderr, from the level that suits the command."""
    level = logging.DEBUG if args.debug else args.log_level
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")


def _report(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
        for line in getattr(error, "story", ()):
            say(f"  {line}", error=True)
    known = isinstance(error, TensoryardError | OSError)
    text = str(error) if known and str(error) else f"{type(error).__name__}: {error}"
    hint = "" if known or debug else " (--debug shows where)"
    say(f"tensoryard: error: {text}{hint}", error=True)
    return EXIT_USAGE if isinstance(error, InvalidRequest) else EXIT_FAILED


# -- commands ---------------------------------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    from .demo import Plan, run

    return run(Plan(output=Path(args.output), runtime=args.runtime, clients=args.clients, requests=args.requests))


def _up(args: argparse.Namespace) -> int:
    from .running import detach, serve

    deployments = _deployments(args)
    if args.ray_address is not None:
        return _launch(args, deployments)
    _refuse_launch_flags(args)
    if args.detach:
        return detach([argument for argument in args.argv if argument != "--detach"], name=args.name)
    return serve(
        deployments,
        runtime=args.runtime,
        name=args.name,
        ready_timeout_s=args.ready_timeout,
        ready_fd=args.ready_fd,
    )


def _launch(args: argparse.Namespace, deployments: list[Deployment]) -> int:
    from .launching import Plan, up

    if args.detach:
        raise ConfigError("--detach is for a cluster of this machine; one on a running Ray stays without (see --stay)")
    plan = Plan(
        name=args.name,
        ray_address=args.ray_address,
        ready_timeout_s=args.ready_timeout,
        listen=tuple(args.listen),
        address_file=args.address_file,
        restart=args.restart,
        stay=args.stay,
        asks_for_nodes=not args.no_nodes,
    )
    return up(deployments, plan)


def _refuse_launch_flags(args: argparse.Namespace) -> None:
    given = [flag for flag in ("listen", "address_file", "restart", "stay", "no_nodes") if getattr(args, flag)]
    if given:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise ConfigError(f"{flags} goes with --ray-address, which launches on a running Ray cluster")


def _down(args: argparse.Namespace) -> int:
    if args.ray_address is not None:
        from .launching import down as down_on_ray

        return down_on_ray(args.name, args.ray_address, timeout_s=args.timeout)
    from .running import down

    return down(args.name, timeout_s=args.timeout)


def _status(args: argparse.Namespace) -> int:
    from .running import open_client, status

    address, name = args.address, args.name
    if args.ray_address is not None:
        from .launching import address as address_on_ray

        address, name = address_on_ray(name or "default", args.ray_address), None
    with open_client(address=address, name=name, timeout_s=args.timeout) as client:
        return status(client, as_json=args.json)


def _address(args: argparse.Namespace) -> int:
    if args.ray_address is not None:
        from .launching import address

        say(address(args.name, args.ray_address))
    else:
        from ..coordinator.connection import read_connection

        say(read_connection(args.name).address)
    return 0


def _submit(args: argparse.Namespace) -> int:
    from .running import open_client
    from .submit import Asked, submit

    options = _options(args.option)
    if args.operations is not None:
        options["operations"] = _json(args.operations, "--operations")
    asked = Asked(
        model=args.model,
        inputs=args.inputs,
        file=args.file,
        array=args.array,
        prompt=args.prompt,
        out=args.out,
        options=options,
        deadline_s=args.deadline,
        priority=args.priority,
        as_json=args.json,
    )
    with open_client(address=args.address, name=args.name, timeout_s=args.timeout) as client:
        return submit(client, asked)


def _worker(args: argparse.Namespace) -> int:
    from ..client.connection import resolve_address
    from ..workers.main import run_worker

    deployment = _one_deployment(args)
    return run_worker(resolve_address(args.connect), deployment, name=args.worker_name)


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import main as examine

    return examine(as_json=args.json)


def _shm_ls(args: argparse.Namespace) -> int:
    from .shm_report import ls

    return ls(_shm_query(args))


def _shm_top(args: argparse.Namespace) -> int:
    from .shm_report import top

    return top(_shm_query(args), interval_s=args.interval, count=args.count)


def _shm_query(args: argparse.Namespace) -> Query:
    from .shm_report import Query

    return Query(
        older_than_s=args.older_than,
        owner=args.owner,
        request=args.request,
        sort=args.sort,
        limit=args.limit,
        as_json=args.json,
        timeout_s=args.timeout,
    )


def _lora_load(args: argparse.Namespace) -> int:
    from .lora import load
    from .running import open_client

    with open_client(address=args.address, name=args.name, timeout_s=args.timeout) as client:
        return load(client, args.adapter, args.folder, model=args.model, within_s=args.within)


def _lora_unload(args: argparse.Namespace) -> int:
    from .lora import unload
    from .running import open_client

    with open_client(address=args.address, name=args.name, timeout_s=args.timeout) as client:
        return unload(client, args.adapter, model=args.model, within_s=args.within)


def _lora_ls(args: argparse.Namespace) -> int:
    from .lora import ls
    from .running import open_client

    with open_client(address=args.address, name=args.name, timeout_s=args.timeout) as client:
        return ls(client, model=args.model, as_json=args.json)


def _chaos(args: argparse.Namespace) -> int:
    from .chaos import Plan, run

    plan = Plan(
        address=args.address,
        name=args.name,
        embedded=args.embedded,
        runtime=args.runtime,
        models=tuple(args.model),
        inputs=args.asked_of,
        duration_s=args.duration,
        seed=args.seed,
        faults=args.faults,
        every_s=args.every,
        clients=args.clients,
        in_flight=args.in_flight,
        freeze_s=args.freeze,
        patience_s=args.patience,
        hurt_coordinator=args.hurt_coordinator,
        fail_fast=args.fail_fast,
        agreed=args.yes,
        as_json=args.json,
    )
    return run(plan)


# -- arguments into deployments and options ---------------------------------------------------------------------------

#: Flags that make up a deployment on the command line, and its keys.
_DEPLOYMENT_KEYS = ("model", "task", "pipeline", "replicas", "max_batch_size", "max_wait_ms", "num_gpus", "num_cpus")


def _deployments(args: argparse.Namespace) -> list[Deployment]:
    """From the file, or the one that the flags declare."""
    from .config import load

    if args.config is None:
        return [_declared(args)]
    _refuse_flags(args, _DEPLOYMENT_KEYS, f"the deployments come from {args.config}")
    return load(args.config)


def _one_deployment(args: argparse.Namespace) -> Deployment:
    """What a worker serves: the flags declare it, or --model chooses one of the file's."""
    from .config import load

    if args.config is None:
        return _declared(args)
    _refuse_flags(args, _DEPLOYMENT_KEYS[1:], f"the deployment comes from {args.config}")
    found = {deployment.model: deployment for deployment in load(args.config)}
    if args.model is None and len(found) == 1:
        return next(iter(found.values()))
    if args.model not in found:
        wrong = "say which with --model" if args.model is None else f"has no model {args.model!r}"
        raise ConfigError(f"{args.config}: {wrong}; its models are {', '.join(found)}")
    return found[args.model]


def _declared(args: argparse.Namespace) -> Deployment:
    from .config import parse_deployment

    given = {key: getattr(args, key) for key in _DEPLOYMENT_KEYS if getattr(args, key) is not None}
    missing = [f"--{key}" for key in ("model", "task", "pipeline") if key not in given]
    if missing:
        raise ConfigError(f"name a deployment file, or give {', '.join(missing)}")
    return parse_deployment({**given, "options": _options(args.option)}, where="command line")


def _refuse_flags(args: argparse.Namespace, keys: Sequence[str], why: str) -> None:
    given = [f"--{key.replace('_', '-')}" for key in keys if getattr(args, key) is not None]
    given += ["--option"] if args.option else []
    if given:
        raise ConfigError(f"{', '.join(given)} cannot be given here: {why}")


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value that is JSON is read as such, another is a text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option takes KEY=VALUE, not {pair!r}")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def _json(text: str, flag: str) -> Any:
    """JSON as given, or the content of the file behind "@"."""
    try:
        return json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{flag} takes JSON, or @FILE with JSON: {error}") from error


# -- the parser -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tensoryard",
        description="A multi-process shared-memory worker cluster for inference: requests move, tensors stay.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"tensoryard {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_up(commands)
    _add_down(commands)
    _add_status(commands)
    _add_address(commands)
    _add_submit(commands)
    _add_worker(commands)
    _add_doctor(commands)
    _add_lora(commands)
    _add_shm(commands)
    _add_chaos(commands)
    return parser


def _add(commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    # What a client logs as an error, the command reports anyway.
    parser.set_defaults(command=command, log_level=logging.CRITICAL)
    return parser


def _add_demo(commands: Any) -> None:
    parser = _add(commands, "demo", _demo, "run real work on an embedded cluster and show what happened")
    parser.set_defaults(log_level=logging.ERROR)
    parser.add_argument("--output", default="demo-output", metavar="FOLDER", help="pictures and sound go here")
    _add_runtime(parser)
    parser.add_argument("--clients", type=_count, default=3, metavar="N", help="client processes at once (3)")
    parser.add_argument("--requests", type=_count, default=60, metavar="N", help="requests of each client (60)")


def _add_up(commands: Any) -> None:
    parser = _add(commands, "up", _up, "start a cluster on this machine and keep it until Ctrl-C or `down`")
    parser.set_defaults(log_level=logging.INFO)
    parser.add_argument("config", nargs="?", metavar="FILE", help="deployments, in TOML or YAML")
    _add_runtime(parser)
    _add_cluster_name(parser)
    parser.add_argument("--detach", action="store_true", help="return when it is ready, and leave it running")
    parser.add_argument(
        "--ready-timeout",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="seconds until all workers must be there (300)",
    )
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    group = parser.add_argument_group("on a running Ray cluster, which it outlives (again: applies the difference)")
    _add_ray_address(group)
    group.add_argument("--stay", action="store_true", help="do not return, and end the cluster when told to stop")
    group.add_argument("--restart", action="store_true", help="replace all workers, also of what has not changed")
    group.add_argument("--no-nodes", action="store_true", help="do not ask Ray's autoscaler for nodes for all workers")
    group.add_argument("--address-file", metavar="PATH", help="write the coordinator's addresses there")
    group.add_argument(
        "--listen", action="append", default=[], metavar="ADDRESS", help="also bind this, e.g. tcp://10.0.0.5:7077"
    )
    _add_declaration(parser)


def _add_down(commands: Any) -> None:
    parser = _add(commands, "down", _down, "shut a cluster of this machine down, and wait until it is gone")
    _add_cluster_name(parser)
    _add_ray_address(parser)
    parser.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait (60)")


def _add_address(commands: Any) -> None:
    parser = _add(commands, "address", _address, "print where a cluster's coordinator listens")
    _add_cluster_name(parser)
    _add_ray_address(parser)


def _add_ray_address(parser: Any) -> None:
    parser.add_argument("--ray-address", metavar="ADDRESS", help="a running Ray cluster: as ray.init takes it, or auto")


def _add_status(commands: Any) -> None:
    parser = _add(commands, "status", _status, "show a running cluster: its models, workers and queues")
    _add_connection(parser)
    _add_ray_address(parser)
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def _add_submit(commands: Any) -> None:
    parser = _add(commands, "submit", _submit, "send one request to a running cluster and write its result")
    parser.add_argument("model", metavar="MODEL", help="what to ask; its task decides what is sent")
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="texts, image files, or the text to speak; '-': stdin"
    )
    parser.add_argument("--file", metavar="FILE", help="read the texts (one a line) or the text to speak from here")
    parser.add_argument("--array", metavar="FILE", help="embed this array (.npy) or image")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what to paint, for a model that makes images")
    parser.add_argument("--out", "-o", metavar="FILE", help="where the result goes: .npy, .png, .jpg or .wav")
    parser.add_argument(
        "--operations", metavar="JSON", help="""edits, e.g. '[{"op": "resize", "scale": 0.5}]', or @FILE"""
    )
    _add_options(parser, "an option of the request")
    parser.add_argument("--deadline", type=_seconds, metavar="S", help="give up after so many seconds")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher goes first (0)")
    parser.add_argument("--json", action="store_true", help="print whole embeddings, one JSON object a line")
    _add_connection(parser)


def _add_worker(commands: Any) -> None:
    parser = _add(commands, "worker", _worker, "run one worker in this process, without Ray, until it is drained")
    parser.set_defaults(log_level=logging.INFO)
    parser.add_argument("--connect", metavar="ADDRESS", help="the coordinator; else as `status` finds it")
    parser.add_argument("--config", metavar="FILE", help="a deployment file; --model chooses from it")
    parser.add_argument("--worker-name", metavar="NAME", help="how it calls itself")
    _add_declaration(parser)


def _add_doctor(commands: Any) -> None:
    parser = _add(commands, "doctor", _doctor, "look at this machine and tell what to fix")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_lora(commands: Any) -> None:
    text = "load, unload and list the LoRA adapters of a running cluster's models"
    parser = commands.add_parser("lora", help=text, description=f"{text[0].upper()}{text[1:]}.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    load = _add(verbs, "load", _lora_load, "load a PEFT folder on all workers of a model")
    load.add_argument("adapter", metavar="NAME", help="what requests then ask for, in the place of a model")
    load.add_argument(
        "folder", metavar="FOLDER", help="adapter_config.json and adapter_model.safetensors, on the hosts"
    )
    load.add_argument("--model", required=True, metavar="MODEL", help="whose adapter it is")
    unload = _add(verbs, "unload", _lora_unload, "unload one when the requests that run with it have ended")
    unload.add_argument("adapter", metavar="NAME", help="which")
    unload.add_argument("--model", default="", metavar="MODEL", help="only if it is that model's")
    for verb in (load, unload):
        verb.add_argument("--within", type=_seconds, default=30.0, metavar="S", help="seconds that it may take (30)")
        _add_connection(verb)
    shown = _add(verbs, "ls", _lora_ls, "list them: where from, on how many workers, requests under way")
    shown.add_argument("--model", default="", metavar="MODEL", help="only that model's")
    shown.add_argument("--json", action="store_true", help="print them as JSON")
    _add_connection(shown)


def _add_shm(commands: Any) -> None:
    text = "show the shared memory in use on this host: for which request, and who keeps it"
    parser = commands.add_parser("shm", help=text, description=f"{text[0].upper()}{text[1:]}.")
    views = parser.add_subparsers(title="views", metavar="VIEW", required=True)
    _add_shm_filters(_add(views, "ls", _shm_ls, "list pools and live blocks once"))
    top = _add(views, "top", _shm_top, "list them again and again, until Ctrl-C")
    _add_shm_filters(top)
    top.add_argument("--interval", type=_seconds, default=2.0, metavar="S", help="seconds between two looks (2)")
    top.add_argument("--count", type=_count, metavar="N", help="end after so many looks")


def _add_shm_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--older-than", type=_seconds, default=0.0, metavar="S", help="blocks in use for S seconds")
    parser.add_argument("--owner", default="", metavar="TEXT", help="pools by a part of the owner's name, or its pid")
    parser.add_argument("--request", default="", metavar="TEXT", help="blocks by a part of their RequestID")
    parser.add_argument("--sort", choices=("age", "bytes", "owner"), default="age", help="order of the blocks (age)")
    parser.add_argument("--limit", type=_count, default=100, metavar="N", help="most blocks shown (100)")
    parser.add_argument("--timeout", type=_seconds, default=1.0, metavar="S", help="seconds a pool may take (1)")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def _add_chaos(commands: Any) -> None:
    text = "kill, freeze and confuse a cluster under load, and prove that nothing is lost"
    parser = _add(commands, "chaos", _chaos, text)
    _add_runtime(parser, default="process")
    parser.add_argument("--address", metavar="ADDRESS", help="a running cluster, by its coordinator")
    parser.add_argument("--name", metavar="NAME", help="a running cluster of this machine, by its name")
    parser.add_argument("--embedded", action="store_true", help="a cluster of its own (default where none runs)")
    parser.add_argument(
        "--yes", action="store_true", help="do it to a running cluster, not only say what would be done"
    )
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="of a running cluster, only this; may be repeated"
    )
    parser.add_argument(
        "--inputs", dest="asked_of", metavar="FILE", help="what to ask it: a .txt of texts, a .npy array or an image"
    )
    parser.add_argument("--duration", type=_span, default=60.0, metavar="S", help="seconds of faults, or 30m, 2h (60)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same faults in the same order again")
    parser.add_argument("--faults", default="all", metavar="LIST", help="e.g. worker-kill,client or none (all)")
    parser.add_argument("--every", type=_seconds, default=2.0, metavar="S", help="seconds from fault to fault (2)")
    parser.add_argument("--freeze", type=_seconds, default=4.0, metavar="S", help="longest time to be stopped (4)")
    parser.add_argument("--clients", type=_count, default=3, metavar="N", help="client processes at once (3)")
    parser.add_argument("--in-flight", type=_count, default=6, metavar="N", help="requests of each under way (6)")
    parser.add_argument("--patience", type=_seconds, default=120.0, metavar="S", help="after S a request is lost (120)")
    parser.add_argument(
        "--hurt-coordinator", action="store_true", help="even where nothing is known to start a new one"
    )
    parser.add_argument("--fail-fast", action="store_true", help="end the faults at the first violation")
    parser.add_argument("--json", action="store_true", help="print the report as JSON; what happens goes to stderr")


def _add_runtime(parser: argparse.ArgumentParser, *, default: str = "ray") -> None:
    parser.add_argument(
        "--runtime",
        choices=("ray", "process"),
        default=default,
        help=f"workers as Ray actors or as plain processes ({default})",
    )


def _add_cluster_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="default", metavar="NAME", help="the cluster's name on this machine")


def _add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="ADDRESS", help="the coordinator; else $TENSORYARD_ADDRESS, else the local one"
    )
    parser.add_argument("--name", metavar="NAME", help="a cluster of this machine by its name")
    parser.add_argument("--timeout", type=_seconds, default=10.0, metavar="S", help="seconds to wait for it (10)")


def _add_declaration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a deployment without a file")
    group.add_argument("--model", metavar="NAME", help="what requests ask for")
    group.add_argument("--task", metavar="TASK", help="for example embeddings_generation")
    group.add_argument(
        "--pipeline", metavar="WHAT", help="file.py:factory, package.module:factory, or an installed name"
    )
    _add_options(group, "an option of the pipeline's factory")
    group.add_argument("--replicas", type=_replicas, metavar="N", help="workers (1), or MIN-MAX to follow the load")
    group.add_argument("--max-batch-size", type=int, metavar="N", help="most requests in one batch")
    group.add_argument("--max-wait-ms", type=float, metavar="MS", help="how long a batch waits to fill")
    group.add_argument("--num-gpus", type=float, metavar="N", help="GPUs of each worker")
    group.add_argument("--num-cpus", type=float, metavar="N", help="CPUs that Ray reserves for each worker")


def _add_options(parser: Any, text: str) -> None:
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help=f"{text}; may be repeated")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def _span(text: str) -> float:
    """Seconds, or minutes and hours with their letter."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    return _seconds(text[:-1]) * unit if unit else _seconds(text)


def _replicas(text: str) -> int | dict[str, int]:
    """A number of workers, or the bounds of one that follows the load."""
    least, dash, most = text.partition("-")
    if dash and least.isdecimal() and most.isdecimal():
        return {"min": int(least), "max": int(most)}
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers, nor MIN-MAX") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
