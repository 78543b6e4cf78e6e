"""One worker, whole: loads its pipeline, then works until it is told to leave.

`run_worker` is what a plain process (`__main__.py`) and a Ray actor (`ray_runtime.py`) both call.
"""

from __future__ import annotations

import logging
import secrets
import signal
import threading
import traceback
from typing import Any

from ..proto import wire
from ..proto.deployment import Deployment
from ..proto.pipeline import Pipeline
from ..settings import Settings, from_environment
from ..shm import Pool
from .batcher import Batcher
from .engine import Engine
from .factory import build_pipeline
from .inbox import Inbox
from .link import EXIT_DRAINED, EXIT_ORPHANED, EXIT_REFUSED, EXIT_START_FAILED, WorkerLink

log = logging.getLogger(__name__)


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

    SIGTERM and SIGINT drain it, with `signals` and in the main thread. With `life_fd`, the process ends when that pipe
    does.
    Returns 0 when drained, 3 when the pipeline's factory failed, 4 when the coordinator was lost, 5 when it refused.
    """
    settings = settings or from_environment()
    name = name or f"{deployment.name}-{secrets.token_hex(4)}"
    batcher = Batcher(max_batch_size=1, max_wait_s=deployment.max_wait_ms / 1000)
    inbox = Inbox(batcher)
    if signals and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=inbox.drain).start())
    with Pool(
        budget_bytes=deployment.pool_budget_bytes or settings.pool_budget_bytes,
        idle_s=settings.pool_idle_s,
        claim_timeout_s=settings.claim_timeout_s,
    ) as pool:
        link = WorkerLink(address=address, name=name, inbox=inbox, pool=pool, settings=settings, life_fd=life_fd)
        link.start()
        try:
            return _serve(link, deployment, batcher, inbox, pool, settings)
        finally:
            link.close()


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
    except Exception:
        log.exception("the pipeline of deployment %s cannot start", deployment.name)
        link.start_failed(deployment.name, traceback.format_exc())
        return EXIT_START_FAILED
    engine = Engine(
        pipeline=pipeline,
        task=deployment.task,
        inbox=inbox,
        pool=pool,
        send=link.send,
        settings=settings,
        worker=link.name,
    )
    link.ready(pipeline, _ready(deployment, batcher.max_batch_size), lambda: engine.progress)
    engine.run()
    if link.refusal is not None:
        log.error("worker %s was refused: %s", link.name, link.refusal)
        return EXIT_REFUSED
    return EXIT_ORPHANED if link.orphaned else EXIT_DRAINED


def _batch_size(pipeline: Pipeline[Any, Any], deployment: Deployment) -> int:
    """The pipeline's own limit, or the deployment's where that is lower."""
    own = int(pipeline.max_batch_size)
    return min(own, deployment.max_batch_size or own)


def _ready(deployment: Deployment, max_batch_size: int) -> wire.Ready:
    return wire.Ready(
        model=deployment.model,
        task=deployment.task.value,
        deployment=deployment.name,
        credits=deployment.max_ongoing_requests or 2 * max_batch_size,
        hang_limit_s=deployment.hang_limit_s,
        max_queued=deployment.max_queued,
        max_queued_bytes=deployment.max_queued_bytes,
    )
