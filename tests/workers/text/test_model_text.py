"""A model's tokenizer, chat template and generation defaults, as its folder says."""

import json

import pytest

from tensoryard.errors import ConfigError, InvalidRequest
from tensoryard.proto import TextGenerationRequestMessage
from tensoryard.workers.pipelines.llama import SMALL_MODEL
from tensoryard.workers.text.generation import GenerationDefaults
from tensoryard.workers.text.tokenizer import TextTokenizer

from .tiny import write_config

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}{{ mood }}"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((SMALL_MODEL / "tokenizer.json").read_bytes())
    return tmp_path


def message(content, role="user", **more):
    return TextGenerationRequestMessage(role=role, content=content, **more)


def test_text_goes_there_and_back(folder):
    """Special tokens are added where they are asked for, and left out of text."""
    tokenizer = TextTokenizer(folder)
    ids = tokenizer.encode("def f(x): 'ä 语'")
    assert ids[0] == tokenizer.token_id("<s>") == 0
    assert tokenizer.decode(ids) == "def f(x): 'ä 语'"
    assert tokenizer.encode("a", add_special_tokens=False) == tokenizer.encode("a")[1:]
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.vocabulary == 2048
    with pytest.raises(InvalidRequest, match="Unicode"):
        tokenizer.encode("\ud800")


def test_a_missing_or_broken_tokenizer_is_named(tmp_path):
    """At start, not with the first request."""
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="no tokenizer"):
        TextTokenizer(tmp_path)


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "list"])
def test_messages_go_through_the_template(folder, place):
    """In a file of its own, or in the tokenizer's config, which may hold several by name."""
    pytest.importorskip("jinja2", reason="templates need jinja2")
    found = {
        "tokenizer_config.json": TEMPLATE,
        "list": [{"name": "tool_use", "template": ""}, {"name": "default", "template": TEMPLATE}],
    }
    config = {"bos_token": {"content": "<s>"}, "chat_template": found.get(place, "not this one")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if place == "chat_template.jinja":
        (folder / place).write_text(TEMPLATE)
    if place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": TEMPLATE}))
    tokenizer = TextTokenizer(folder)
    messages = [message("Be brief", "system"), message([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]
    assert tokenizer.render(messages) == "<s>[system]Be brief[user]a\nb[assistant]"
    options = {"add_generation_prompt": False, "mood": "!"}
    assert tokenizer.render(messages[:1], tools=[{"é": 1}], options=options) == '<s>[system]Be brief[{"é": 1}]!'


def test_what_a_template_refuses_is_the_requests_error(folder):
    """Also what it must not do: the sandbox keeps it from Python's inside."""
    pytest.importorskip("jinja2", reason="templates need jinja2")
    path = folder / "chat_template.jinja"
    for source, named in (
        ("{{ raise_exception('roles alternate') }}", "roles alternate"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
        ("{{ messages[0].nothing.more }}", "refuses"),
    ):
        path.write_text(source)
        with pytest.raises(InvalidRequest, match=named):
            TextTokenizer(folder).render([message("a")])
    path.write_text("{% if %}")
    with pytest.raises(ConfigError, match="no Jinja template"):
        TextTokenizer(folder).render([message("a")])
    path.write_text(TEMPLATE)
    with pytest.raises(InvalidRequest, match="text only"):
        TextTokenizer(folder).render([message([{"type": "image"}])])


def test_messages_in_parts(folder):
    """Where a template wants parts, a text is one too, and an image is a place; what else a message has stays."""
    pytest.importorskip("jinja2", reason="templates need jinja2")
    (folder / "chat_template.jinja").write_text("{{ messages | tojson }}")
    tokenizer = TextTokenizer(folder)
    messages = [message("a"), message([{"type": "image", "detail": "low"}, {"type": "text", "text": "b"}])]
    messages.append(message(None, "assistant", tool_calls=[{"id": "1"}]))
    found = json.loads(tokenizer.render(messages, in_parts=True))
    assert [entry["content"] for entry in found] == [
        [{"type": "text", "text": "a"}],
        [{"type": "image"}, {"type": "text", "text": "b"}],
        [{"type": "text", "text": ""}],
    ]
    assert found[2]["tool_calls"] == [{"id": "1"}]


def test_without_a_template_messages_are_refused(folder):
    """The error says what the model takes instead."""
    with pytest.raises(InvalidRequest, match=r"no chat template.*`prompt`"):
        TextTokenizer(folder).render([message("a")])


def test_generation_defaults(tmp_path):
    """End tokens of both files count; what sampling knows is passed on."""
    write_config(tmp_path, eos_token_id=[1, 5])
    assert GenerationDefaults.read(tmp_path).eos_token_ids == {1, 5}
    fields = {"eos_token_id": 7, "temperature": 0.6, "top_p": 0.9, "do_sample": True, "max_length": 300, "num_beams": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    defaults = GenerationDefaults.read(tmp_path)
    assert defaults.eos_token_ids == {1, 5, 7}
    assert (defaults.sampling.temperature, defaults.sampling.top_p, defaults.max_length) == (0.6, 0.9, 300)


@pytest.mark.parametrize(("key", "value"), [("num_beams", 4), ("no_repeat_ngram_size", 3), ("a_new_way", 1)])
def test_other_ways_to_generate_are_refused(tmp_path, key, value):
    """By name, unless the operator says that it may be passed by."""
    write_config(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ConfigError, match=f"`{key}`.*ignore_config_keys"):
        GenerationDefaults.read(tmp_path)
    GenerationDefaults.read(tmp_path, ignored=[key])


def test_end_tokens_are_ids(tmp_path):
    """Anything else is an error of the file."""
    write_config(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ["</s>"]}))
    with pytest.raises(ConfigError, match="eos_token_id"):
        GenerationDefaults.read(tmp_path)
