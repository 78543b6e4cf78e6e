"""Where a worker's adapters are loaded and unloaded: in the order asked for, beside its session and its steps.

`conversation.py` hands in what the coordinator asks for, in the session's thread, which may wait for nothing; to read
an adapter takes seconds. What a coordinator asked for that is not ours any more is not done, or is undone: the next one
knows only what READY told it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ..errors import TensoryardError
from ..proto import wire
from ..proto.lora import LoRAOperation, LoRARequest, LoRAResponse, LoRAStatus
from ..proto.pipeline import LoRAAdapters
from .answers import clean_text

#: Longest text of an answer, in characters.
_MAX_TEXT = 8000


def _in_a_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="tensoryard-adapters", daemon=True).start()


class AdapterDesk:
    """`post` sends an answer, from any thread; `spawn` runs what may take long."""

    def __init__(
        self, post: Callable[[wire.LoraDone], None], spawn: Callable[[Callable[[], None]], None] = _in_a_thread
    ) -> None:
        self._post = post
        self._spawn = spawn
        self._adapters: LoRAAdapters | None = None
        self._lock = threading.Lock()
        #: What is to be done, in order; the coordinator asks for one thing of an adapter at a time.
        self._queue: deque[wire.LoraWork] = deque()
        self._busy = False
        #: Counts the coordinators that were told what is loaded.
        self._life = 0

    def begin(self, adapters: LoRAAdapters | None) -> None:
        """The pipeline's adapters; None where it takes none."""
        self._adapters = adapters

    def announce(self) -> list[wire.LoadedAdapter]:
        """What is loaded, for a coordinator that knows nothing of us; what an earlier one asked for is dropped."""
        with self._lock:
            self._life += 1
            self._queue.clear()
            loaded = self._adapters.loaded if self._adapters is not None else {}
        return [wire.LoadedAdapter(lora_name=name, lora_path=path) for name, path in loaded.items()]

    def take(self, message: wire.LoraWork) -> None:
        """The coordinator asks for something."""
        with self._lock:
            self._queue.append(message)
            if self._busy:
                return
            self._busy = True
        self._spawn(self._work_off)

    def _work_off(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._busy = False
                    return
                message, life = self._queue.popleft(), self._life
                # At once: a READY in its midst would tell of what is gone.
                done = self._do(message) if message.operation == LoRAOperation.UNLOAD.value else None
            if done is None:
                done = self._load(message, life)
            self._answer(message, done, life)

    def _load(self, message: wire.LoraWork, life: int) -> LoRAResponse:
        there_before = self._adapters is not None and message.lora_name in self._adapters.loaded
        done = self._do(message)
        with self._lock:
            if self._life != life and not there_before:  # READY has not told of it
                self._do(wire.LoraWork(number=0, operation=LoRAOperation.UNLOAD.value, lora_name=message.lora_name))
        return done

    def _do(self, message: wire.LoraWork) -> LoRAResponse:
        if self._adapters is None:
            return LoRAResponse(LoRAStatus.LOAD_ERROR, "this worker's pipeline takes no adapters")
        try:
            operation = LoRAOperation(message.operation)
            return self._adapters.handle(LoRARequest(operation, message.lora_name, message.lora_path or None))
        except (ValueError, TensoryardError) as error:
            return LoRAResponse(LoRAStatus.UNSPECIFIED_ERROR, str(error))

    def _answer(self, message: wire.LoraWork, done: LoRAResponse, life: int) -> None:
        text = done.message if isinstance(done.message, str) else "; ".join(done.message)
        answer = wire.LoraDone(
            number=message.number,
            lora_name=message.lora_name,
            status=done.status.value,
            text=clean_text(text[:_MAX_TEXT], _MAX_TEXT),
        )
        with self._lock:
            wanted = self._life == life
        if wanted:
            self._post(answer)
