"""Photo editing on real photographs, against computations of our own, of Pillow, and by properties."""

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tensoryard.errors import ConfigError, InvalidRequest, PoolExhausted, RequestCancelled
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.one_shot import new_context
from tensoryard.proto.pixels import PixelGenerationInputs, PixelGenerationRequest
from tensoryard.workers.device import gpu_problem
from tensoryard.workers.pipelines.photo_edit import (
    Blur,
    Colour,
    Crop,
    Denoise,
    Flip,
    PhotoEdit,
    PhotoEditor,
    Resize,
    Rotate,
    Sharpen,
    create,
    edit,
)


@pytest.fixture(scope="module")
def photos():
    """Two photographs, uint8 (427, 640, 3): a Chinese temple and a flower."""
    pytest.importorskip("PIL")
    return pytest.importorskip("sklearn.datasets").load_sample_images().images


@pytest.fixture(scope="module")
def photo(photos):
    return photos[0]


@pytest.fixture(scope="module")
def pipeline():
    return create(device="cpu")


def context(images, operations=(), *, allocate=np.empty, **fields):
    request = PixelGenerationRequest(model="photo-edit", images=images, **fields)
    options = msgspec.convert({"operations": list(operations)}, PhotoEdit)
    return new_context(request, options=options, allocate=allocate)


def run(pipeline, *contexts):
    outputs = pipeline.execute(PixelGenerationInputs(batch={each.request_id: each for each in contexts}))
    for each in contexts:
        pipeline.release(each.request_id)
    assert list(outputs) == [each.request_id for each in contexts]
    return list(outputs.values())


def levels_apart(left, right):
    return abs(left.astype(float) - right.astype(float)).max()


def blurred(image, sigma):
    """A Gaussian blur in float64, by convolution of mirrored lines with the bell curve itself."""
    reach = int(4 * sigma + 0.5)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    bell /= bell.sum()
    for axis in (0, 1):
        pads = [(reach, reach) if each == axis else (0, 0) for each in range(3)]
        padded = np.pad(image.astype(float), pads, mode="symmetric")
        image = np.apply_along_axis(np.convolve, axis, padded, bell, mode="valid")
    return image


def test_an_edit_of_nothing_changes_nothing(photo):
    """No operation, no difference to the bit, in every dtype and shape."""
    for image in (photo, photo[:, :, :1], photo[:, :, 1], photo[::-2, ::3]):
        assert (edit(image) == image).all()
        assert edit(image).shape == image.shape
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (edit(deep) == deep).all()
    real = photo.astype(np.float32) / 255
    assert (edit(real) == real).all()


def test_blur_is_a_convolution_with_the_bell_curve(photo):
    """Every pixel within half a level of the float64 computation, rounding included."""
    assert levels_apart(edit(photo, [Blur(sigma=2)]), blurred(photo, 2)) <= 0.51
    assert (edit(photo, [Denoise(method="gaussian", sigma=2)]) == edit(photo, [Blur(sigma=2)])).all()


def test_median_takes_the_middle_of_each_square(photo):
    """Exactly the median of 25 neighbours, borders mirrored; it removes single wrong pixels."""
    part = photo[:80, :90]
    padded = np.pad(part, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    squares = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(0, 1))
    assert (edit(part, [Denoise(size=5)]) == np.median(squares, axis=(3, 4))).all()


def test_denoising_brings_a_noisy_photograph_nearer_to_the_clean_one(photo):
    """Salt and pepper on 5 % of the pixels: after the median the error is less than a third."""
    spots = np.random.default_rng(3).random(photo.shape[:2])
    noisy = np.where((spots < 0.05)[:, :, None], np.uint8(255), photo)
    noisy[spots > 0.95] = 0
    errors = [np.square(image.astype(float) - photo).mean() for image in (edit(noisy, [Denoise()]), noisy)]
    assert errors[0] < errors[1] / 3


def test_sharpening_adds_the_difference_to_a_blurred_copy(photo):
    """The unsharp mask's formula in float64, cut at black and white, within half a level."""
    expected = np.clip(photo + 1.5 * (photo - blurred(photo, 2.0)), 0, 255)
    assert levels_apart(edit(photo, [Sharpen(radius=2.0, amount=1.5)]), expected) <= 0.51


def test_halving_by_lines_is_the_mean_of_four_pixels(photo):
    """Linear, not antialiased, half the size: each pixel is the mean of a square, since edges meet edges."""
    half = edit(photo[:426], [Resize(scale=0.5, order=1, antialias=False)])
    means = photo[:426].reshape(213, 2, 320, 2, 3).mean(axis=(1, 3))
    assert levels_apart(half, means) <= 0.51


def test_doubling_without_interpolation_repeats_pixels(photo):
    """Order 0 copies: twice the size is each pixel four times."""
    expected = photo.repeat(2, axis=0).repeat(2, axis=1)
    assert (edit(photo, [Resize(scale=2, order=0)]) == expected).all()


def test_resizing_is_close_to_pillows(photo):
    """Down to a third with Pillow's own antialiased filter: on average less than 3 levels apart."""
    from PIL import Image

    ours = edit(photo, [Resize(height=142, width=213)])
    theirs = np.asarray(Image.fromarray(photo).resize((213, 142), Image.Resampling.BICUBIC))
    assert abs(ours.astype(float) - theirs).mean() < 3


def test_fine_patterns_do_not_turn_into_coarse_ones():
    """Shrunk by 3, a fine chessboard becomes grey with antialiasing and stripes without."""
    board = (np.indices((120, 120)).sum(axis=0) % 2 * 255).astype(np.uint8)
    shown = {antialias: edit(board, [Resize(scale=1 / 3, antialias=antialias)]) for antialias in (True, False)}
    assert np.ptp(shown[True][2:-2, 2:-2]) <= 8
    assert np.ptp(shown[False]) == 255


def test_strong_shrinking_gives_the_mean(photo):
    """A strip shrunk 100 times along, and an image to a single pixel: about the mean of what each pixel covers."""
    strip = photo[:100, :600]
    means = strip.reshape(1, 100, 6, 100, 3).mean(axis=(1, 3))
    assert levels_apart(edit(strip, [Resize(height=1, width=6, order=1)]), means) <= 2


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        ({"height": 100}, (100, 150)),
        ({"width": 64}, (43, 64)),
        ({"height": 10, "width": 20}, (10, 20)),
        ({"scale": 1.5}, (640, 960)),
        ({"scale": 0.0001}, (1, 1)),
        ({"scale": 1.0}, (427, 640)),
        ({"width": 1}, (1, 1)),
    ],
)
def test_sizes_are_as_asked_for(photo, resize, size):
    """A side left out keeps the proportions; nothing becomes smaller than a pixel."""
    assert edit(photo, [{"op": "resize", **resize}]).shape == (*size, 3)


def test_the_size_of_the_request_comes_last(photo):
    """`height` and `width` of the request itself resize what the operations give."""
    crop = Crop(top=10, left=20, height=200, width=100)
    assert edit(photo, [crop], height=50).shape == (50, 25, 3)
    expected = edit(edit(photo, [crop]), [Resize(height=50, width=60)])
    assert (edit(photo, [crop], height=50, width=60) == expected).all()


def test_crops_and_flips_move_pixels_and_change_none(photo):
    """They are slices."""
    assert (edit(photo, [Crop(top=5, left=7, height=30, width=40)]) == photo[5:35, 7:47]).all()
    assert (edit(photo, [Crop(top=400)]) == photo[400:]).all()
    assert (edit(photo, [Crop(left=639)]) == photo[:, 639:]).all()
    assert (edit(photo, [Flip()]) == photo[:, ::-1]).all()
    assert (edit(photo, [Flip(direction="vertical")]) == photo[::-1]).all()


def test_right_angles_are_exact(photo):
    """Quarter turns move pixels; where the size may not change, only half turns can."""
    for quarters in range(-4, 5):
        turned = edit(photo, [Rotate(degrees=90 * quarters)])
        assert (turned == np.rot90(photo, quarters)).all()
    assert (edit(photo, [Rotate(degrees=180, expand=False)]) == photo[::-1, ::-1]).all()
    assert edit(photo, [Rotate(degrees=90, expand=False)]).shape == photo.shape


def test_other_angles_turn_the_same_way(photo):
    """Just beside a right angle the picture is nearly the exact one: anticlockwise for both."""
    nearly = edit(photo, [Rotate(degrees=89.99, order=1)])[5:640, 5:427]
    assert abs(nearly.astype(float) - np.rot90(photo)[5:640, 5:427]).mean() < 4


def test_corners_are_filled(photo):
    """Outside of the photograph is `fill`; `expand` makes room for the corners."""
    white = edit(photo, [Rotate(degrees=30, fill=1.0)])
    assert white.shape == (690, 768, 3)
    assert (white[0, 0] == 255).all()
    assert (edit(photo, [Rotate(degrees=30)])[0, 0] == 0).all()
    assert edit(photo, [Rotate(degrees=30, expand=False)]).shape == photo.shape


def test_colours_follow_their_formulas(photo):
    """Saturation, brightness, contrast and gamma in float64, in that order, within half a level."""
    image = photo / 255
    grey = (image @ [0.299, 0.587, 0.114])[:, :, None]
    image = (grey + 1.4 * (image - grey)) * 0.9
    expected = np.clip(0.5 + 1.2 * (image - 0.5), 0, 1) ** (1 / 1.3) * 255
    ours = edit(photo, [Colour(saturation=1.4, brightness=0.9, contrast=1.2, gamma=1.3)])
    assert levels_apart(ours, expected) <= 0.51


def test_grayscale_is_pillows(photo):
    """Three equal channels, each what Pillow calls luminance."""
    from PIL import Image

    grey = edit(photo, [Colour(grayscale=True)])
    assert (grey == grey[:, :, :1]).all()
    assert levels_apart(grey[:, :, 0], np.asarray(Image.fromarray(photo).convert("L"))) <= 1
    assert (edit(photo[:, :, 0], [Colour(grayscale=True, saturation=3)]) == photo[:, :, 0]).all()


def test_gamma_lightens_the_dark_and_keeps_the_ends(photo):
    """Above 1 every level but black and white rises."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    lighter = edit(ramp, [Colour(gamma=2.2)])[0].astype(int)
    assert (lighter[0], lighter[255]) == (0, 255)
    assert (lighter[1:255] > ramp[0, 1:255]).all()


OPERATIONS = st.one_of(
    st.builds(Resize, scale=st.floats(0.2, 3), order=st.integers(0, 5), antialias=st.booleans()),
    st.builds(Resize, height=st.integers(1, 30), width=st.none() | st.integers(1, 30)),
    st.builds(Blur, sigma=st.floats(0, 3)),
    st.builds(Denoise, method=st.sampled_from(["median", "gaussian"]), size=st.sampled_from([1, 3, 5])),
    st.builds(Sharpen, radius=st.floats(0, 3), amount=st.floats(0, 20)),
    st.builds(Colour, saturation=st.floats(0, 20), contrast=st.floats(0, 20), gamma=st.floats(0.05, 20)),
    st.builds(Rotate, degrees=st.floats(-360, 360), expand=st.booleans()),
    st.builds(Flip, direction=st.sampled_from(["horizontal", "vertical"])),
)
SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([(), (1,), (3,)])).map(
    lambda parts: (*parts[:2], *parts[2]),
)
IMAGES = st.one_of(
    arrays.arrays(np.uint8, SHAPES),
    arrays.arrays(np.uint16, SHAPES),
    arrays.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32)),
)


@settings(deadline=None)
@given(IMAGES, st.lists(OPERATIONS, max_size=3))
def test_an_edited_image_is_an_image_of_the_same_kind(image, operations):
    """Whatever is done: same dtype and channels, values in range, finite, and the caller's array untouched."""
    image.flags.writeable = False
    before = image.copy()
    result = edit(image, operations)
    assert (result.dtype, result.shape[2:], result.ndim) == (image.dtype, image.shape[2:], image.ndim)
    assert np.isfinite(result).all()
    assert (image == before).all()
    if image.dtype == np.float32:
        assert result.min() >= 0
        assert result.max() <= 1


@settings(deadline=None)
@example(144, [Resize(scale=0.2, order=0), Resize(scale=0.5, order=4, antialias=False)])
@given(st.integers(0, 255), st.lists(OPERATIONS.filter(lambda each: not isinstance(each, Colour | Rotate)), max_size=3))
def test_an_even_surface_stays_even(level, operations):
    """Nothing but colours (and the corners of a rotation) changes an image of a single level: no drift, no ringing."""
    assert (edit(np.full((9, 11, 3), level, np.uint8), operations) == level).all()


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ({"op": "resize"}, "resize: give either `scale`, or"),
        ({"op": "resize", "scale": 0.5, "width": 3}, "resize: give either `scale`, or"),
        ({"op": "resize", "scale": -1}, "resize: `scale` must be between 0.0001 and 100, not -1"),
        ({"op": "resize", "scale": float("nan")}, "resize: `scale` must be between"),
        ({"op": "resize", "height": 0}, "resize: `height` must be between 1"),
        ({"op": "resize", "scale": 2, "order": 6}, "resize: `order` must be between 0 and 5"),
        ({"op": "denoise", "size": 4}, "denoise: `size` must be odd, not 4"),
        ({"op": "denoise", "method": "magic"}, r"operations\[0\].method"),
        ({"op": "sharpen", "amount": "much"}, r"operations\[0\].amount"),
        ({"op": "blur", "radius": 3}, "radius"),
        ({"op": "colour", "gamma": 0}, "colour: `gamma` must be between 0.05"),
        ({"op": "rotate", "degrees": 400}, "rotate: `degrees` must be between -360 and 360"),
        ({"op": "crop", "top": -1}, "crop: `top` must be between 0"),
        ({"op": "crop", "top": 400, "height": 28}, "crop: `top` and `height` reach to pixel 428.*height is 427"),
        ({"op": "crop", "left": 640}, "crop: `left` and `width` reach to pixel 641.*width is 640"),
        ({"op": "paint"}, "Invalid value 'paint'.*op"),
        ({"op": "resize", "scale": 100}, "resize: an image of 42700 x 64000 pixels is over the limit"),
    ],
)
def test_what_is_wrong_is_named(operation, words):
    """An error says which operation and which field, and what is allowed."""
    with pytest.raises(InvalidRequest, match=words):
        edit(np.zeros((427, 640, 3), np.uint8), [operation])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((2, 2, 4), np.uint8), r"not \(2, 2, 4\)"),
        (np.zeros(5, np.uint8), r"not \(5,\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not \(0, 4, 3\)"),
        (np.zeros((2, 2), np.int32), "this one is int32"),
        (np.full((2, 2), 1.5, np.float32), r"lie in \[0, 1\]"),
        (np.full((2, 2), np.nan, np.float32), r"lie in \[0, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(image, words):
    """Shape, dtype and range are checked, and named."""
    with pytest.raises(InvalidRequest, match=words):
        edit(image)


def test_operations_of_a_request_are_bounded():
    """More than 64 operations are refused."""
    with pytest.raises(InvalidRequest, match="`operations` has 65 entries, at most 64"):
        edit(np.zeros((2, 2), np.uint8), [Flip()] * 65)


def test_a_rotation_over_the_limit_is_refused_before_it_is_made():
    """The limit holds for the box around the turned image."""
    image = np.zeros((30, 1000), np.uint8)
    editor = create(device="cpu", max_megapixels=0.1)
    [error, output] = run(editor, context([image], [Rotate(degrees=45)]), context([image], [Rotate(degrees=2)]))
    assert "rotate: an image of 729 x 729 pixels is over the limit of 100000 pixels" in str(error)
    assert output.images[0].shape == (65, 1000)


def test_the_pipeline_gives_what_a_local_call_gives(pipeline, photos):
    """Bit for bit, for each image of each request, with operations as structs or as dicts."""
    operations = [Resize(scale=0.4), {"op": "denoise"}, Sharpen(), {"op": "colour", "saturation": 1.3}]
    outputs = run(pipeline, context(list(photos), operations), context([photos[1]], operations, width=99))
    assert [len(output.images) for output in outputs] == [2, 1]
    for image, photo in zip(outputs[0].images, photos, strict=True):
        assert (image == edit(photo, operations)).all()
    assert (outputs[1].images[0] == edit(photos[1], operations, width=99)).all()
    assert outputs[0].is_done


def test_results_are_written_into_the_lent_memory(pipeline, photo):
    """One array of the final size is lent per image, and it is what comes back."""
    lent = []

    def allocate(shape, dtype):
        lent.append(np.empty(shape, dtype))
        return lent[-1]

    photo = photo.copy()
    photo.flags.writeable = False
    [output] = run(pipeline, context([photo, photo[:, :, 0]], [Resize(scale=0.5), Blur()], allocate=allocate))
    assert [each.shape for each in lent] == [(214, 320, 3), (214, 320)]
    assert all(image is memory for image, memory in zip(output.images, lent, strict=True))


def test_bad_requests_fail_alone(pipeline, photo):
    """Each gets its own error, and the good one its image."""

    def full(shape, dtype):
        raise PoolExhausted("no room")

    cancelled = context([photo])
    cancelled.status = GenerationStatus.CANCELLED
    outputs = run(
        pipeline,
        context([photo], [Crop(top=427)]),
        context([], prompt="a cat"),
        context([photo], num_images_per_prompt=2),
        context([photo], allocate=full),
        cancelled,
        context([photo]),
    )
    expected = [InvalidRequest, InvalidRequest, InvalidRequest, PoolExhausted, RequestCancelled]
    assert [type(output) for output in outputs[:5]] == expected
    assert "makes none" in str(outputs[1])
    assert "`num_images_per_prompt` must be 1" in str(outputs[2])
    assert (outputs[5].images[0] == photo).all()


def test_the_worker_reads_a_requests_options():
    """`options_type` reads dicts as they come over the wire, and names an unknown key."""
    kind = PhotoEditor.options_type
    read = msgspec.convert({"operations": [{"op": "blur", "sigma": 2}]}, kind)
    assert read == PhotoEdit(operations=[Blur(sigma=2)])
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode({"operations": [Blur(sigma=2)]}))
    assert msgspec.convert(sent, kind) == read
    with pytest.raises(msgspec.ValidationError, match="steps"):
        msgspec.convert({"steps": []}, kind)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"megapixels": 3}, "`megapixels`.*known options: max_batch_size, device, max_megapixels"),
        ({"max_batch_size": 5000}, "`max_batch_size` must be between 1 and 4096, not 5000"),
        ({"max_megapixels": 0}, "`max_megapixels` must be between"),
        ({"device": "tpu"}, "not 'tpu'"),
    ],
)
def test_wrong_deployment_options_are_named(options, words):
    """A wrong key or value is a ConfigError that says which."""
    with pytest.raises(ConfigError, match=words):
        create(**options)


def test_a_deployment_sets_the_batch_size():
    """`max_batch_size` is the pipeline's."""
    assert create(max_batch_size=7, device="cpu").max_batch_size == 7


@pytest.mark.gpu
def test_a_gpu_gives_the_same_picture(photo):
    """On a real GPU the result is within one level of the CPU's."""
    if gpu_problem():
        pytest.skip(gpu_problem())
    operations = [Resize(scale=0.4), Denoise(), Sharpen(), Colour(saturation=1.3), Rotate(degrees=5)]
    assert levels_apart(edit(photo, operations, device="gpu"), edit(photo, operations)) <= 1
