"""Images among the words: the library's own text, whole or in chunks, found again or not; bad ones fail alone."""

import io
import json
import shutil

import numpy as np
import pytest

from tensoryard.errors import ConfigError, InvalidRequest
from tensoryard.proto import SamplingParams, TextAndVisionContext, TextGenerationRequest

from .hf_tiny import PLACEHOLDER, VISION, libraries, picture, theirs, write_qwen3_vl, write_text_model

torch, transformers = libraries()

from tensoryard.workers.pipelines import hf  # noqa: E402 - only where they are installed


@pytest.fixture(scope="module", params=VISION)
def made(request, tmp_path_factory):
    """Name, folder, and the library's model."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, VISION[request.param](folder)


def pipeline(folder, **options):
    return hf.create(model_dir=str(folder), device="cpu", threads=1, **options)


def ask(images, texts=("look: ", " and ", " what?"), new=16, ignore_eos=False, **more):
    parts = [{"type": "text", "text": texts[0]}]
    for number, _ in enumerate(images):
        parts += [{"type": "image"}, {"type": "text", "text": texts[1 + number % (len(texts) - 1)]}]
    params = SamplingParams(temperature=0, max_new_tokens=new, ignore_eos=ignore_eos)
    message = {"role": "user", "content": parts}
    return TextGenerationRequest(
        model_name="m", messages=[message], images=list(images), sampling_params=params, **more
    )


def run(served, requests):
    contexts = [served.new_context(request) for request in requests]
    live, got = list(contexts), {context.request_id: [] for context in contexts}
    while live:
        for key, output in served.engine.step(live).items():
            assert not isinstance(output, Exception), output
            got[key].extend(output.tokens)
        for context in [context for context in live if context.is_done]:
            served.release(context.request_id)
            live.remove(context)
    return [got[context.request_id] for context in contexts], contexts


def wanted(made, request, pictures, new=16):
    name, folder, model = made
    text = pipeline(folder)._render(request)
    return theirs(model, folder, name, text, pictures, new)


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
def test_the_librarys_own_text(made, together):
    """Requests with none, one and several images of several sizes, side by side, have the library's greedy text."""
    sets = [[picture(1)], [picture(2, 90, 50), picture(3)], [], [picture(4, 30, 30)] * 2 + [picture(5, 200, 64)]]
    served = pipeline(made[1], together=together)
    requests = [ask(images) for images in sets]
    answers, _ = run(served, requests)
    assert answers == [wanted(made, request, images) for request, images in zip(requests, sets, strict=True)]
    assert len({tuple(answer) for answer in answers}) == 4


def test_a_chunk_may_end_inside_an_image(made):
    """In blocks of 8 tokens, one in a step, an image of more tokens than that is read as at once."""
    _, folder, _ = made
    images = [picture(7, 300, 300), picture(8)]
    request = ask(images, texts=("a", "b"))
    small = {"block_size": 8, "max_chunk_tokens": 8, "max_step_tokens": 16, "max_batch_size": 4}
    answers, (context,) = run(pipeline(folder, **small), [request])
    cut = [image for image in context.images if image.start_idx // 8 != (image.end_idx - 1) // 8]
    assert cut, "no block ends inside an image"
    assert answers == [wanted(made, request, images)]


def test_another_image_is_another_text(made):
    """The model looks at what it is shown."""
    answers, _ = run(pipeline(made[1]), [ask([picture(seed)]) for seed in range(4)])
    assert len({tuple(answer) for answer in answers}) == 4


def test_a_template_may_begin_a_prompt_itself(made, tmp_path):
    """The first token comes once, from the template or the tokenizer; templates lie where processors once put them."""
    name, folder, _ = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ bos_token }}" + template}))
    begun, plain = pipeline(tmp_path), pipeline(folder)
    request = ask([picture(1)])
    if name.startswith("llava"):
        assert begun._render(request) == "<s>" + plain._render(request)
    assert begun.new_context(request).tokens.all.tolist() == plain.new_context(request).tokens.all.tolist()


def test_equal_images_are_found_and_others_are_not(made):
    """The same words around another image of the same size share what is before it, and no more."""
    _, folder, _ = made
    served = pipeline(folder, block_size=8, max_chunk_tokens=64)
    words = ("x" * 40, "What do you see in this picture, exactly?")
    first, other = picture(1, 56, 56), picture(2, 56, 56) // 4
    fresh, (context,) = run(served, [ask([first], words)])
    before = context.images[0].start_idx // 8 * 8
    again, (found,) = run(served, [ask([first.copy()], words)])
    assert again == fresh
    assert found.cached_prefix_length > context.images[0].end_idx
    different, (apart,) = run(served, [ask([other], words)])
    assert apart.cached_prefix_length == before
    assert different == [wanted(made, ask([other], words), [other])]
    assert different != fresh


def test_a_request_that_was_put_out_sees_its_image_again(made):
    """Preemption of requests with images changes no text."""
    _, folder, _ = made
    requests = [ask([picture(seed, 56, 84)], new=40, ignore_eos=True) for seed in range(4)]
    alone = pipeline(folder)
    solo = [run(alone, [request])[0][0] for request in requests]
    block = alone.decoder.config.token_bytes(4) * 16
    # Each takes 5 blocks at its end.
    tight = pipeline(folder, cache_bytes=11 * block, max_batch_size=4)
    answers, contexts = run(tight, requests)
    assert answers == solo
    assert any(context.tokens.prompt_length > context.first_generated for context in contexts), "nobody was put out"
    assert all(isinstance(context, TextAndVisionContext) for context in contexts)


def test_kinds_of_images(made):
    """Grey ones, one with an alpha channel, and a file are what the same pixels are as RGB."""
    from PIL import Image

    served = pipeline(made[1])
    grey = picture(3)[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(picture(1)).save(file, "png")
    alpha = np.dstack([picture(1), np.full((40, 60), 9, np.uint8)])
    answers, _ = run(served, [ask([image]) for image in (picture(1), file.getvalue(), alpha)])
    assert answers[0] == answers[1] == answers[2]
    answers, _ = run(served, [ask([image]) for image in (grey, grey[:, :, None], np.dstack([grey] * 3))])
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((40, 40, 3), np.float32), "float32"),
        (np.zeros((40, 40, 2), np.uint8), "2 channels"),
        (np.zeros((40,), np.uint8), "shape"),
        (np.zeros((0, 40, 3), np.uint8), "shape"),
        (np.zeros((300, 300, 3), np.uint8), "300 x 300"),
        (b"no image", "image"),
    ],
)
def test_a_bad_image_is_named(made, image, named):
    """By its number and what is wrong with it."""
    served = pipeline(made[1], max_image_pixels=80_000)
    with pytest.raises(InvalidRequest, match=named):
        served.new_context(ask([picture(0), image]))


def test_what_the_processor_refuses_is_the_senders_fault(tmp_path):
    """An aspect that no model of the kind takes."""
    VISION["qwen2_vl"](tmp_path)
    served = pipeline(tmp_path)
    with pytest.raises(InvalidRequest, match=r"images\[0\] cannot be prepared"):
        served.new_context(ask([np.zeros((2, 900, 3), np.uint8)]))


def test_counts_of_images(made):
    """More than allowed, a place without an image, spelled in a text or in tokens, and videos are refused."""
    name, folder, _ = made
    served = pipeline(folder, max_images=2)
    with pytest.raises(InvalidRequest, match="3 images; this deployment takes 2"):
        served.new_context(ask([picture(0)] * 3))
    spelled = PLACEHOLDER[name]
    for prompt in (f"see {spelled}", [1, served.tokenizer.token_id(spelled)]):
        with pytest.raises(InvalidRequest, match="1 places for images, the request 0"):
            served.new_context(TextGenerationRequest(model_name="m", prompt=prompt))
    with pytest.raises(InvalidRequest, match="2 places for images, the request 1"):
        served.new_context(ask([picture(0)], texts=(spelled, "")))
    message = {"role": "user", "content": [{"type": "video"}]}
    with pytest.raises(InvalidRequest, match="no videos"):
        served.new_context(TextGenerationRequest(model_name="m", messages=[message], videos=[b"film"]))


def test_models_without_eyes_say_so(made, tmp_path):
    """A text model, and one whose deployment wants no images."""
    write_text_model(tmp_path, "gpt_neox")
    for served in (pipeline(tmp_path), pipeline(made[1], max_images=0)):
        with pytest.raises(InvalidRequest, match="text only"):
            served.new_context(ask([picture(0)]))


def test_an_encoder_that_feeds_deeper_layers_is_refused(tmp_path):
    """Rows in place of words are not all that Qwen3-VL makes of an image."""
    write_qwen3_vl(tmp_path)
    with pytest.raises(ConfigError, match="a prompt with an image has logits"):
        pipeline(tmp_path)
    assert pipeline(tmp_path, max_images=0).processor is None


def test_an_encoder_that_is_read_wrongly_is_noticed(made, monkeypatch):
    """The trial at start compares a prompt with an image, too."""
    from tensoryard.workers.text.models.hf_images import ImageRows

    encode = ImageRows._encode
    monkeypatch.setattr(ImageRows, "_encode", lambda *args: encode(*args).flip(0))
    with pytest.raises(ConfigError, match="a prompt with an image"):
        pipeline(made[1])
