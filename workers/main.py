"""One worker, whole: loads its pipeline, then works until it is told to leave.

`run_worker` is what a plain process (`__main__.py`) and a Ray actor (`ray_runtime.py`) both call.
"""

from __future__ import annotations

import contextlib
import gc
import operator
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from ..errors import ConfigError
from ..links.calibration import thresholds_of
from ..logs import logger
from ..proto import wire
from ..proto.deployment import Deployment
from ..proto.pipeline import Pipeline
from ..settings import Settings, from_environment
from ..shm import Pool
from .batcher import Batcher
from .conversation import EXIT_DRAINED, EXIT_START_FAILED
from .engine import Engine
from .factory import build_pipeline
from .inbox import Inbox
from .link import WorkerLink

log = logger(__name__)

#: What READY can say.
_MAX_CREDITS = 65536
#: A drained worker waits at most so long for its last results to be claimed, and looks this often.
_CLAIM_GRACE_S = 5.0
_CLAIM_POLL_S = 0.01


def run_worker(
    address: str,
    deployment: Deployment,
    *,
    name: str | None = None,
    life_fd: int | None = None,
    settings: Settings | None = None,
    signals: bool = True,
) -> int:
    """Serve one deployment at a coordinator, in this thread, until drained.

    SIGTERM and SIGINT drain it, with `signals` and in the main thread; a second one ends the process at once. With
    `life_fd`, the process ends when that pipe does.
    Returns 0 when drained, 3 when the pipeline's factory failed, 4 when the coordinator was lost, 5 when it refused.
    """
    settings = settings or from_environment()
    name = name or f"{deployment.name}-{secrets.token_hex(4)}"
    batcher = Batcher(max_batch_size=1, max_wait_s=deployment.max_wait_ms / 1000, unread_s=settings.unread_s)
    inbox = Inbox(batcher)
    with Pool(
        budget_bytes=deployment.pool_budget_bytes or settings.pool_budget_bytes,
        idle_s=settings.pool_idle_s,
        claim_timeout_s=settings.claim_timeout_s,
        owner=f"worker {name}",
    ) as pool:
        link = WorkerLink(address=address, name=name, inbox=inbox, pool=pool, settings=settings, life_fd=life_fd)
        with _signals_drain(link, wanted=signals):
            link.start()
            try:
                return _serve(link, deployment, batcher, inbox, pool, settings)
            finally:
                link.close()


@contextlib.contextmanager
def _signals_drain(link: WorkerLink, *, wanted: bool) -> Iterator[None]:
    """While inside, the first SIGTERM or SIGINT drains the worker; each acts as it usually does after that."""
    possible = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGTERM, signal.SIGINT] if wanted and possible else []

    def drain(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        link.drain_soon()

    before = [(number, signal.signal(number, drain)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _serve(
    link: WorkerLink,
    deployment: Deployment,
    batcher: Batcher,
    inbox: Inbox,
    pool: Pool,
    settings: Settings,
) -> int:
    try:
        pipeline = build_pipeline(deployment)
        batcher.max_batch_size = _batch_size(pipeline, deployment)
        link.begin(pipeline, deployment.task)
    except (Exception, SystemExit):
        log.exception("the pipeline of deployment %s cannot start", deployment.name)
        link.start_failed(deployment.name, traceback.format_exc())
        return EXIT_START_FAILED
    engine = Engine(
        pipeline=pipeline,
        task=deployment.task,
        inbox=inbox,
        pool=pool,
        send=link.send,
        limits=link,
        settings=settings,
        threshold_bytes=thresholds_of(settings).handle_bytes,
        worker=link.name,
    )
    if threading.current_thread() is threading.main_thread():  # elsewhere the process is not ours
        _collect_seldom()
    link.ready(_ready(deployment, batcher.max_batch_size, pipeline), lambda: engine.progress)
    engine.run()
    if link.refusal is not None:
        log.error("worker %s was refused: %s", link.name, link.refusal)
    if link.exit_code == EXIT_DRAINED:
        _wait_claimed(pool)
    return link.exit_code


def _collect_seldom() -> None:
    """What the pipeline has loaded stays, and what requests leave is given back by counting references.

    So the collector, which looks at every 700th new object, and now and then at all there is, finds nothing. It still
    looks, for what an error or a pipeline may have left.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def _wait_claimed(pool: Pool) -> None:
    """The last results lie in this process's memory, which their readers have to ask it for."""
    give_up = time.monotonic() + _CLAIM_GRACE_S
    while pool.statistics().published_blocks and time.monotonic() < give_up:
        time.sleep(_CLAIM_POLL_S)


def _batch_size(pipeline: Pipeline[Any, Any], deployment: Deployment) -> int:
    """The pipeline's own limit, or the deployment's where that is lower."""
    own = operator.index(pipeline.max_batch_size)
    if own < 1:
        raise ConfigError(f"the pipeline's max_batch_size must be at least 1, not {own}")
    return min(own, deployment.max_batch_size or own)


def _ready(deployment: Deployment, max_batch_size: int, pipeline: Pipeline[Any, Any]) -> wire.Ready:
    features = [feature for feature in wire.FEATURES if feature != "lora" or pipeline.lora is not None]
    return wire.Ready(
        model=deployment.model,
        task=deployment.task.value,
        deployment=deployment.name,
        credits=min(deployment.max_ongoing_requests or 2 * max_batch_size, _MAX_CREDITS),
        hang_limit_s=deployment.hang_limit_s,
        max_queued=deployment.max_queued,
        max_queued_bytes=deployment.max_queued_bytes,
        features=features,
    )
