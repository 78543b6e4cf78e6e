"""The demo's text: a small language model makes up documentation, shown word by word as its tokens come.

Called by `demo.py` once the other results are shown; the model is the one that comes with the package.
"""

from __future__ import annotations

import time

from ..client import Client
from ..client.text import text_request
from ..proto.text_output import TextGenerationOutput
from .text import duration, say, several

LANGUAGE_MODEL = "small-llama"

#: Names that do not exist, in the form of those that the model was trained on.
PROMPTS = (
    "# zipfile.ZipFile.is_empty(self)\n",
    "# threading.wait_for_all(threads, timeout=None)\n",
    "# pathlib.Path.copy_tree(self, target)\n",
)
SAMPLING = {"temperature": 0.6, "top_p": 0.9, "seed": 7, "max_new_tokens": 80}


def make_text(client: Client) -> list[str]:
    """Stream an answer to each prompt, then ask for all of them at once: each has to be the same again."""
    say("\ntext, as its tokens come: documentation of things that do not exist, by a model of 2.5 MB")
    started, tokens, streamed = time.monotonic(), 0, []
    for prompt in PROMPTS:
        pieces = []
        say(f"  {prompt}    ", end="")
        for output in client.stream(prompt, model=LANGUAGE_MODEL, **SAMPLING):
            pieces.append(output)
            say((output.text or "").replace("\n", "\n    "), end="")
        streamed.append(TextGenerationOutput.merge(pieces).text)
        tokens += sum(len(piece.tokens) for piece in pieces)
        say()
    say(f"  {several(tokens, 'token')} in {duration(time.monotonic() - started)}")
    return _asked_again(client, streamed)


def _asked_again(client: Client, streamed: list[str | None]) -> list[str]:
    requests = [text_request(prompt, LANGUAGE_MODEL, dict(SAMPLING)) for prompt in PROMPTS]
    again = [output.text for output in client.map(requests)]
    return [
        f"{prompt.strip()}: asked again beside others, the same seed gave another text"
        for prompt, before, now in zip(PROMPTS, streamed, again, strict=True)
        if before != now
    ]
