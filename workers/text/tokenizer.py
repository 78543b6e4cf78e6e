"""A model's tokenizer and chat template: text to token ids and back, and messages to the text of a prompt.

Reads `tokenizer.json` with the `tokenizers` library, and the template (Jinja, in its sandbox) from
`chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`; the pipeline builds contexts with it. It knows
no sampling.
"""

from __future__ import annotations

import datetime as dt
import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from ...errors import ConfigError, InvalidRequest
from ...proto.text_messages import TextContentPart, TextGenerationRequestMessage
from .models.config import read_json


class TextTokenizer:
    """The tokenizer of a model's folder; ConfigError where a file or a library is missing. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"the model folder {folder} has no file 'tokenizer.json'")
        try:
            #: As the `tokenizers` library has it, for who decodes piece by piece.
            self.backend: Any = _library("tokenizers").Tokenizer.from_file(str(path))
        except ConfigError:
            raise
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(f"{path} is no tokenizer: {error}") from error
        # The model takes what there is: nothing is cut off or filled up.
        self.backend.no_truncation()
        self.backend.no_padding()
        config = folder / "tokenizer_config.json"
        self._config: dict[str, Any] = read_json(config) if config.is_file() else {}

    @property
    def vocabulary(self) -> int:
        """Tokens there are, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def tokens(self) -> dict[str, int]:
        """Every token's name and its id."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text; InvalidRequest for one that is no valid Unicode."""
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(f"the prompt holds a lone surrogate, so it is not valid Unicode: {error}") from error
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        text: str = self.backend.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)
        return text

    def token_id(self, token: str) -> int | None:
        """The id of one token by its text, None when there is no such token."""
        found: int | None = self.backend.token_to_id(token)
        return found

    def render(
        self,
        messages: Sequence[TextGenerationRequestMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        in_parts: bool = False,
    ) -> str:
        """The prompt that the chat template makes of messages; `options` are further variables of the template.

        `in_parts`: contents are lists of parts, images among them, as templates of models that see expect it.

        InvalidRequest when the template refuses them, or there is none.
        """
        template = self._template
        if template is None:
            raise InvalidRequest("this model has no chat template, so it takes a `prompt` and no `messages`")
        variables = {
            "messages": [_in_parts(message) if in_parts else _plain(message) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_tokens,
            **(options or {}),
        }
        try:
            text: str = template.render(**variables)
        except (_library("jinja2").TemplateError, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error
        return text

    @cached_property
    def _template(self) -> Any:
        source = self._template_source()
        if source is None:
            return None
        jinja2, sandbox = _library("jinja2"), _library("jinja2.sandbox")
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template in {self._folder} is no Jinja template: {error}") from error

    def _template_source(self) -> str | None:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        # Where processors kept theirs until they shared that file.
        path = self._folder / "chat_template.json"
        found = (read_json(path) if path.is_file() else self._config).get("chat_template")
        if isinstance(found, list):  # several by name; the one that is meant is called `default`
            found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
        return found

    @property
    def bos_token(self) -> str:
        """The text of the token that begins prompts; empty where none is named."""
        return self._special_tokens["bos_token"]

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        """Those that templates name: `bos_token` and its like."""
        found = {}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            token = self._config.get(name)
            text = token.get("content") if isinstance(token, dict) else token
            found[name] = text or ""
        return found


def _plain(message: TextGenerationRequestMessage) -> dict[str, Any]:
    """A message as templates expect it: its text, and what else it has."""
    try:
        return message.flatten_content()
    except ValueError as error:
        raise InvalidRequest(f"this model reads text only: {error}") from error


def _in_parts(message: TextGenerationRequestMessage) -> dict[str, Any]:
    """A message as templates of models with eyes expect it: `{"type": "image"}` where an image belongs."""
    content = [TextContentPart(text=message.content)] if isinstance(message.content, str) else message.content
    shown = [
        {"type": "text", "text": part.text} if isinstance(part, TextContentPart) else {"type": part.type}
        for part in content
    ]
    plain = msgspec.structs.replace(message, content="").flatten_content()
    return plain | {"content": shown}


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    # Jinja's own filter escapes what HTML would take for its own; a prompt is no HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise _library("jinja2").TemplateError(message)


def _now(form: str) -> str:
    return dt.datetime.now(tz=dt.UTC).strftime(form)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{error}; pip install 'tensoryard[text]'") from error
