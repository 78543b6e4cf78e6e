"""A pipeline for the tests of the data plane: takes its time, as a GPU does, and looks at what it was given."""

import time

import numpy as np

import tensoryard as ty


class Shown(ty.Pipeline):
    """Adds one to each image after `work_s` seconds for a batch, into memory lent by the worker or of its own."""

    max_batch_size = 2

    def __init__(self, work_s):
        self.work_s = work_s

    def execute(self, inputs):
        time.sleep(self.work_s)
        return {rid: self._one(rid, ctx) for rid, ctx in inputs.batch.items()}

    def _one(self, rid, ctx):
        (source,) = ctx.arrays
        out = ctx.allocate(source.shape, source.dtype)
        np.add(source, 1, out=out, casting="unsafe")
        return ty.GenerationOutput.of_images(rid, [out])

    def release(self, request_id):
        pass


def shown(work_s=0.05):
    return Shown(work_s)
