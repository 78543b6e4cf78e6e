"""Structure, thinking and calls through real processes: told apart while they stream, held where they are to be."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.proto import OpenResponsesRequest, OpenResponsesRequestBody
from tensoryard.proto.open_responses_convert import to_native, to_response
from tensoryard.workers.text.tokenizer import TextTokenizer

from .text_models import END_THINK, THINK, deployment, thinker

pytest.importorskip("llguidance", reason="structured output needs llguidance: pip install 'tensoryard[text]'")
pytest.importorskip("jinja2", reason="templates need jinja2: pip install 'tensoryard[text]'")

pytestmark = pytest.mark.process

#: With and without guesses.
MODELS = ("thinker", "guessed")
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "y"]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
STOP = {
    "type": "function",
    "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}},
}
#: Ends thinking before long, and does not begin it.
CONCLUDES = [{"name": "logit_bias", "options": {"bias": {END_THINK: 9.0, THINK: -100.0}}}]
#: Does not think.
PLAIN = {"named_processors": [{"name": "banned_tokens", "options": {"token_ids": [THINK]}}]}
CHAT = [{"role": "user", "content": "# os.stat(path)"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(thinker(tmp_path_factory.mktemp("models") / "thinker"))


@pytest.fixture(scope="module")
def yard(runtime_folder: Path, folder: Path) -> Iterator[ty.Yard]:
    """A model that thinks and calls; so small a cache that requests are put out in mid-answer."""
    how = {"model_dir": str(folder), "reasoning_parser": "think", "tool_parser": "hermes", "cache_bytes": 1_000_000}
    quiet = {"name": "banned_tokens_of_all", "options": {"token_ids": [THINK]}}
    deployments = [
        deployment("thinker", replicas=2, **how),
        deployment("guessed", speculation="ngram", guessing_tokens=500, **how),
        deployment("quiet", logits_processors=[quiet], **how),
    ]
    with ty.local(deployments, runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(yard: ty.Yard) -> Iterator[ty.Client]:
    with yard.connect() as client:
        yield client


def form(**fields: Any) -> dict[str, Any]:
    return {"response_format": fields}


# -- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("wish", "pattern"),
    [
        ({"type": "regex", "grammar": "[a-f]{3}-[0-9]{2}"}, r"[a-f]{3}-\d\d"),
        ({"type": "grammar", "grammar": 'start: "yes" | "no" /!{1,3}/'}, r"yes|no!{1,3}"),
        ({"type": "json_schema", "json_schema": {"enum": ["red", "green"]}}, r'"red"|"green"'),
        (
            {"type": "json_schema", "json_schema": {"type": "array", "items": {"const": 7}, "maxItems": 3}},
            r"\[[\s7,]*\]",
        ),
    ],
)
def test_every_kind_of_grammar_holds(client: ty.Client, model: str, wish: dict[str, Any], pattern: str) -> None:
    """Expression, grammar and schema, greedy and drawn, and the answer ends by itself."""
    for seed, temperature in ((0, 0), (1, 0.9), (2, 1.5)):
        answer = client.generate(
            "# os\n", model=model, seed=seed, temperature=temperature, max_new_tokens=200, **PLAIN, **form(**wish)
        )
        assert re.fullmatch(pattern, answer.text or ""), answer.text
        assert answer.final_status is ty.GenerationStatus.END_OF_SEQUENCE


@pytest.mark.parametrize("model", MODELS)
def test_held_answers_side_by_side(client: ty.Client, model: str) -> None:
    """Two dozen with grammars of their own, over workers that put some out: each what it is alone."""

    def request(number: int) -> ty.TextGenerationRequest:
        expression = f"{number}:[a-z ]{{60,90}}"
        return ty.TextGenerationRequest(
            model_name=model,
            prompt="# os\n",
            response_format={"type": "regex", "grammar": expression} if number % 4 else None,
            sampling_params=ty.SamplingParams(temperature=0.8, seed=number, max_new_tokens=90, **PLAIN),
        )

    together = [reply.result(60).text for reply in [client.submit(request(number)) for number in range(24)]]
    assert together == [client.submit(request(number)).result(60).text for number in range(24)]
    for number, text in enumerate(together):
        if number % 4:
            assert re.match(f"{number}:[a-z ]+", text or "")


def test_a_killed_worker_breaks_no_structure(client: ty.Client, eventually: Callable[..., None]) -> None:
    """What goes on elsewhere is the same instance, the same calls and the same thoughts."""

    def ask(number: int) -> ty.TextGenerationRequest:
        forced = number % 2 == 1
        return ty.TextGenerationRequest(
            model_name="thinker",
            messages=CHAT,
            tools=[ADD] if forced else None,
            chat_template_options={"thinking": True} if number % 4 > 1 else None,
            response_format={"type": "text", "tools_forced": True}
            if forced
            else {"type": "regex", "grammar": "[a-z ]{40,60}"},
            sampling_params=ty.SamplingParams(
                seed=number, temperature=0.8, max_new_tokens=150, named_processors=CONCLUDES
            ),
        )

    def told(output: ty.TextGenerationOutput) -> tuple[Any, ...]:
        return output.text, output.reasoning, [(call.name, call.arguments) for call in output.calls], output.tokens

    wanted = [told(client.submit(ask(number)).result(60)) for number in range(8)]
    streams = [iter(client.submit(ask(number))) for number in range(8)]
    began = [[next(stream) for _ in range(3)] for stream in streams]
    status = next(model for model in client.status().models if model.model == "thinker")
    os.kill(max(status.workers, key=lambda worker: worker.in_flight).pid, signal.SIGKILL)
    found = [ty.TextGenerationOutput.merge([*begin, *rest]) for begin, rest in zip(began, streams, strict=True)]
    assert [told(each) for each in found] == wanted
    eventually(lambda: all(model.is_ready for model in client.status().models), "the killed one is replaced")


def test_grammars_are_compiled_beside_others(client: ty.Client) -> None:
    """While a dozen large schemas are compiled, small requests are taken in and answered; wrong ones are told."""

    def large(number: int) -> dict[str, Any]:
        keys = {f"k{number}_{at}": {"enum": [f"v{at}_{k}" for k in range(40)]} for at in range(100)}
        return {"type": "object", "properties": keys, "required": list(keys)[:1], "additionalProperties": False}

    held = [
        client.submit(
            ty.TextGenerationRequest(
                model_name="guessed",
                prompt="# os\n",
                response_format={"type": "json_schema", "json_schema": large(number)},
                sampling_params=ty.SamplingParams(seed=1, max_new_tokens=4),
            )
        )
        for number in range(12)
    ]
    assert client.generate("# os\n", model="guessed", max_new_tokens=2, ignore_eos=True).tokens
    assert [len(reply.result(60).tokens) for reply in held] == [4] * 12
    with pytest.raises(errors.InvalidRequest, match="regex grammar cannot be used"):
        client.generate("# os\n", model="guessed", **form(type="regex", grammar="(ab"))


# -- thinking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_thinking_streams_apart(client: ty.Client, model: str) -> None:
    """What stands between the marks is reasoning, in the same pieces' other field, and the rest is the text."""
    wish = {"temperature": 0.8, "seed": 4, "max_new_tokens": 120, "named_processors": CONCLUDES}
    wish |= {"chat_template_options": {"thinking": True}, **form(type="regex", grammar="so: [a-z]{3}")}
    pieces = list(client.stream(CHAT, model=model, **wish))
    whole = client.generate(CHAT, model=model, **wish)
    end = whole.tokens.index(END_THINK)
    assert "".join(piece.reasoning or "" for piece in pieces) == whole.reasoning
    assert "".join(piece.text or "" for piece in pieces) == whole.text
    assert re.fullmatch("so: [a-z]{3}", whole.text or "")
    assert whole.reasoning
    assert sum(piece.reasoning is not None for piece in pieces) <= end


def test_thinking_has_a_temperature_of_its_own(client: ty.Client) -> None:
    """Greedy thinking is the same for every seed, and the answers behind it differ; with guesses, too."""
    wish = {"temperature": 1.2, "thinking_temperature": 0, "max_new_tokens": 120, "named_processors": CONCLUDES}
    wish |= {"chat_template_options": {"thinking": True}, **form(type="regex", grammar="[a-z ]{20}")}
    found = [client.generate(CHAT, model=model, seed=seed, **wish) for model in MODELS for seed in range(4)]
    assert len({each.reasoning for each in found}) == 1
    assert len({each.text for each in found}) == 4
    assert [each.tokens for each in found[:4]] == [each.tokens for each in found[4:]]


# -- calls ------------------------------------------------------------------------------------------------------------


def test_tools_reach_the_template(client: ty.Client, folder: Path) -> None:
    """The prompt that the model reads has them, as the template writes them, and its other options."""
    tokenizer = TextTokenizer(folder)
    options = {"chat_template_options": {"effort": "high"}}
    answer = client.generate(
        CHAT, model="thinker", tools=[ADD], echo=True, logprobs=1, max_new_tokens=1, ignore_eos=True, **options
    )
    assert answer.log_probabilities is not None
    prompt = tokenizer.decode(answer.log_probabilities[0].sampled_token_ids[:-1])
    assert prompt == f"# {json.dumps(ADD['function'])}\n# os.stat(path)\n# effort high\n"


@pytest.mark.parametrize("model", MODELS)
def test_a_forced_call_streams(client: ty.Client, model: str) -> None:
    """Nothing but calls, by their schema: name and id once, then arguments piece by piece, and no text."""
    wish = {"tools": [ADD, STOP], "temperature": 0.8, "max_new_tokens": 300, **PLAIN}
    wish |= form(type="text", tools_forced=True)
    for seed in range(6):
        pieces = list(client.stream(CHAT, model=model, seed=seed, **wish))
        whole = ty.TextGenerationOutput.merge(pieces)
        assert whole.calls
        # What is cut off may end in an opener, which is text as long as no call follows.
        is_whole = whole.final_status is ty.GenerationStatus.END_OF_SEQUENCE
        assert not (whole.text or "").strip() or not is_whole
        for call in whole.calls if is_whole else whole.calls[:-1]:
            arguments = json.loads(call.arguments)
            assert call.name == "stop" or (arguments["a"] <= 99 and arguments["b"] in ("x", "y"))
        deltas = [delta for piece in pieces for delta in piece.tool_calls or ()]
        assert sum(delta.id is not None for delta in deltas) == len(whole.calls)
        if whole.calls[0].name == "add":
            assert sum(delta.index == 0 and bool(delta.arguments) for delta in deltas) > 2


@pytest.mark.parametrize("model", MODELS)
def test_text_stands_beside_calls(client: ty.Client, model: str) -> None:
    """Of an answer that has both, each comes in its own field; without tools all of it is text."""
    written = 'Well. <tool_call>{"name": "add", "arguments": {"a": 1, "b": "x"}}</tool_call>'
    exact = form(type="regex", grammar=re.escape(written), grammar_enforced=True)
    answer = client.generate(CHAT, model=model, tools=[ADD], max_new_tokens=200, **PLAIN, **exact)
    assert (answer.text, [(call.name, call.arguments) for call in answer.calls]) == (
        "Well. ",
        [("add", '{"a": 1, "b": "x"}')],
    )
    plain = client.generate(CHAT, model=model, max_new_tokens=200, **PLAIN, **exact)
    assert (plain.text, plain.tool_calls) == (written, None)


def test_a_schema_allows_calls_instead(client: ty.Client) -> None:
    """Beside tools, an answer is an instance or calls; `grammar_enforced` leaves the instance alone."""
    schema = {"type": "json_schema", "json_schema": {"enum": ["fine"]}}
    bias = [{"name": "logit_bias", "options": {"bias": {first: 60.0}}} for first in (tokens_of("<")[0],)]
    wish = {"tools": [ADD], "max_new_tokens": 300, "temperature": 0, "named_processors": bias}
    called = client.generate(CHAT, model="thinker", **form(**schema), **wish)
    assert called.calls
    told = client.generate(CHAT, model="thinker", **form(**schema, grammar_enforced=True), **wish)
    assert (told.text, told.calls) == ('"fine"', [])


def tokens_of(text: str) -> list[int]:
    from tensoryard.workers.pipelines.llama import SMALL_MODEL

    return TextTokenizer(SMALL_MODEL).encode(text, add_special_tokens=False)


def test_a_forced_call_needs_tools(client: ty.Client) -> None:
    """Else the request is refused, and says so."""
    with pytest.raises(errors.InvalidRequest, match="no tool to call"):
        client.generate(CHAT, model="thinker", **form(type="text", tools_forced=True))


def test_open_responses_go_round(client: ty.Client) -> None:
    """A body becomes a request, and its output a response: thinking, text or calls, log probabilities, usage."""

    def respond(**body: Any) -> Any:
        asked = OpenResponsesRequestBody(model="quiet", input="# os", **body)
        request = OpenResponsesRequest(request_id=ty.RequestID(), body=asked)
        native = to_native(request, ty.PipelineTask.TEXT_GENERATION)
        return to_response(request, client.submit(native).result(60), created_at=1)

    tool = {"type": "function", **{key: ADD["function"][key] for key in ("name", "parameters")}}
    forced = {"tools": [tool], "tool_choice": "required", "max_output_tokens": 300, "temperature": 1.4}
    # The model likes white space so much that some answers end in the midst of it.
    called = next(each for each in (respond(seed=seed, **forced) for seed in range(30)) if each.status == "completed")
    call = called.output[0]
    assert call.name == "add"
    assert json.loads(call.arguments)["b"] in ("x", "y")
    told = respond(max_output_tokens=5, seed=1, top_logprobs=2, logprobs=True)
    (part,) = told.output[0].content
    assert part.text
    assert part.logprobs
    assert "".join(each.token for each in part.logprobs) == part.text
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 2 for each in part.logprobs)
    assert told.usage.output_tokens == 5


def test_answers_of_many_kinds_at_once(client: ty.Client) -> None:
    """Threads that ask for calls, thinking and plain text side by side have each their own."""
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        wish: dict[str, Any] = {"seed": 5, "temperature": 0.7, "max_new_tokens": 200, "named_processors": CONCLUDES}
        if number % 3 == 0:
            wish |= {"tools": [ADD], **form(type="text", tools_forced=True)}
        if number % 3 == 1:
            wish |= {"chat_template_options": {"thinking": True}}
        found[number] = client.generate(CHAT, model="guessed", **wish)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bool(found[number].calls) for number in range(9)] == [True, False, False] * 3
    assert [found[number].reasoning is not None for number in range(9)] == [False, True, False] * 3
    assert len({found[number].text for number in (1, 4, 7)}) == 1
