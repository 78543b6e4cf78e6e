"""The pipeline of simulated workers: it answers with its input's number, fails, kills or hangs, as the request says.

Answers are filled when a step is over, from what the input is then: a block that was given away meanwhile shows.
"""

from __future__ import annotations

import numpy as np

import tensoryard as ty
from tensoryard.errors import PoolExhausted
from tensoryard.proto.pipeline import Pipeline

from .plan import SPEAK
from .requests import Options, number_in, sample_of
from .world import Violation


class Echo(Pipeline):
    """One worker's. `losses` counts, over all workers, how often a request was lost on purpose."""

    options_type = Options
    max_batch_size = 1

    def __init__(self, task, max_batch_size, losses):
        self.max_batch_size = max_batch_size
        self._task = task
        self._losses = losses
        #: Requests begun and not released, with the parts that were made of each.
        self.live = {}
        #: Of the step under way: answers to be filled, by request; how long it takes; what it does to its worker.
        self._unfilled = []
        self.takes_s = 0.0
        self.dies = False
        self.hangs = False
        #: RequestIDs whose batch failed.
        self.failed_together = set()

    def execute(self, inputs):
        self._unfilled, self.dies, self.hangs = [], False, False
        self.takes_s = max(context.options.run_s for context in inputs.batch.values())
        results = {request_id: self._begin(request_id, context) for request_id, context in inputs.batch.items()}
        if any(context.options.kind == "explode" for context in inputs.batch.values()):
            self.failed_together.update(str(request_id) for request_id in inputs.batch)
            results.clear()  # or errors among them would keep themselves, by this frame
            raise ArithmeticError("the whole batch fails")
        return results

    def _begin(self, request_id, context):
        options, key = context.options, str(request_id)
        part = self.live[key] = self.live.get(key, -1) + 1
        if options.kind == "poison":
            self.dies = True
        elif options.kind == "hang" or (options.kind == "hang_once" and key not in self._losses):
            self._losses.add(key)
            self.hangs = True
        elif options.kind == "fail":
            return ValueError("this one fails")
        elif options.kind == "unsendable":
            return ty.EmbeddingsGenerationOutput(embeddings=np.array([object()]))
        return self._output(context, part)

    def _output(self, context, part):
        options = context.options
        dtype = np.float32 if self._task is SPEAK else np.float64
        count = options.answer_size // np.dtype(dtype).itemsize
        try:
            array = context.allocate(count, dtype) if options.answer_in_place else np.empty(count, dtype)
        except PoolExhausted as error:
            return error
        self._unfilled.append((context, part, array))
        if self._task is not SPEAK:
            return ty.EmbeddingsGenerationOutput(embeddings=array)
        done = part + 1 >= options.parts
        status = ty.GenerationStatus.END_OF_SEQUENCE if done else ty.GenerationStatus.ACTIVE
        return ty.AudioGenerationOutput(final_status=status, steps_executed=1, audio_data=array)

    def finish(self):
        """The step is over."""
        for context, part, array in self._unfilled:
            array[...] = sample_of(number_in(context), part)
        self._unfilled = []

    def release(self, request_id):
        if self.live.pop(str(request_id), None) is None:
            raise Violation("a pipeline was asked to release what it does not hold", str(request_id))
