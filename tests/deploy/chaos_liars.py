"""Pipelines of chaos with a planted bug each: what they do wrong must be found."""

import time

import numpy as np

from tensoryard.deploy.chaos_pipelines import Audio, Embeddings, Pixels


class WrongPixels(Pixels):
    """Every twentieth image has one wrong value."""

    count = 0

    def _one(self, request_id, context):
        self.count += 1
        output = super()._one(request_id, context)
        if self.count % 20 == 0:
            output.images[0].reshape(-1)[-1] ^= 1
        return output


class HoardingPixels(Pixels):
    """Keeps the memory of one image for ever."""

    def _one(self, request_id, context):
        if not hasattr(self, "hoard") and np.prod(context.arrays[0].shape) >= 64 << 10:
            self.hoard = context.allocate(context.arrays[0].shape, context.arrays[0].dtype)
        return super()._one(request_id, context)


class MuteEmbeddings(Embeddings):
    """Falls silent in the middle of its tenth batch."""

    batches = 0

    def execute(self, inputs):
        self.batches += 1
        if self.batches == 10:
            time.sleep(1e6)
        return super().execute(inputs)


class ForgetfulEmbeddings(Embeddings):
    """Has no answer for every thirtieth request."""

    count = 0

    def _one(self, context):
        self.count += 1
        return None if self.count % 30 == 0 else super()._one(context)


class ShortAudio(Audio):
    """Leaves out the second chunk of long streams."""

    def _one(self, context):
        if context.chunks_sent == 1:
            context.chunks_sent = 2
            try:
                return super()._one(context)
            except IndexError:
                context.chunks_sent = 1
        return super()._one(context)


wrong_pixels, hoarding_pixels, short_audio = WrongPixels, HoardingPixels, ShortAudio
mute_embeddings, forgetful_embeddings = MuteEmbeddings, ForgetfulEmbeddings
