"""Images before any model sees them: what is taken, what stands for their content, where they come to lie."""

import numpy as np
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.workers.text.images import PreparedImage, content_words, hash_overrides, pixels_of, placed


def image(tokens, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return PreparedImage(tokens, np.zeros(1, np.float32), {}, content_words(pixels))


def test_an_rgb_array_is_taken_as_it_is():
    """Pixels that lie in shared memory are read where they lie."""
    array = np.zeros((4, 5, 3), np.uint8)
    array.flags.writeable = False
    assert np.shares_memory(pixels_of(array, number=0, most=20), array)
    assert pixels_of(array[:, :, 0], number=0, most=20).shape == (4, 5, 3)
    with pytest.raises(InvalidRequest, match=r"images\[3\] has 4 x 5 pixels: at most 19"):
        pixels_of(array, number=3, most=19)


def test_words_tell_contents_apart():
    """One pixel, or another shape of the same bytes, changes all words; none is a token's id."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    other = pixels.copy()
    other[3, 5, 2] = 1
    words = [content_words(item) for item in (pixels, other, pixels.reshape(6, 4, 3), pixels[::1])]
    assert (words[0] == words[3]).all()
    assert len(set(np.concatenate(words).tolist())) == 24
    assert all(word >= 1 << 62 for word in words[0].tolist())


def test_each_placeholder_becomes_its_images_tokens():
    """In order, of any length, first and last included; hashes cover them and nothing else."""
    images = [image([9, 9, 9]), image([7, 9], seed=1)]
    tokens, spans = placed([9, 1, 9, 2], 9, images)
    assert tokens == [9, 9, 9, 1, 7, 9, 2]
    assert spans == [(0, 3), (4, 6)]
    overrides = hash_overrides(spans, images)
    assert [override.token_idx for override in overrides] == [0, 1, 2, 4, 5]
    assert overrides[0].token_hash != overrides[1].token_hash != overrides[3].token_hash
    assert placed([1, 2], 9, []) == ([1, 2], [])


@pytest.mark.parametrize("ids", [[1], [9], [9, 9, 9]])
def test_places_and_images_are_as_many(ids):
    """A text may spell a placeholder."""
    with pytest.raises(InvalidRequest, match="places for images, the request 2 images"):
        placed(ids, 9, [image([9]), image([9])])
