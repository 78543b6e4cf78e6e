"""A pipeline of your own, whole: the mean of each colour channel of an image, as its embedding.

Serve it:  tensoryard up --model mean --task embeddings_generation --pipeline examples/channel_mean.py:create
Ask it:    tensoryard submit mean --array photo.png
"""

import numpy as np

import tensoryard as ty


class ChannelMean(ty.Pipeline):
    max_batch_size = 8

    def execute(self, inputs):  # inputs.batch: RequestID -> context; context.arrays: the caller's memory, read-only
        means = {rid: ctx.arrays[0].mean(axis=(0, 1)) for rid, ctx in inputs.batch.items()}
        return {rid: ty.EmbeddingsGenerationOutput(np.float32(mean)[None]) for rid, mean in means.items()}

    def release(self, request_id):
        """Nothing is kept between requests."""


def create(**options):
    return ChannelMean()
