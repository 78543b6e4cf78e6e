"""Text from tokens while they come: what is a whole character goes out at once, what is part of one waits.

The bytes are from `vocabulary.py`; `answer.py` cuts the text at stop strings. Each token is looked at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from .vocabulary import Vocabulary


class Detokenizer:
    """One stream of text.

    `hidden`: tokens that are left out; None: the special ones. `at_start`: the text begins here rather than behind a
    prompt, so that vocabularies which drop a first space do. Ids that the vocabulary does not have say nothing.
    """

    __slots__ = ("_at_start", "_decoder", "_hidden", "_texts", "_waiting", "vocabulary")

    #: Tokens that are left out.
    _hidden: Collection[int]
    #: Whether part of a character is waiting in `_decoder`.
    _waiting: bool
    #: Nothing has come yet, and a first space would go.
    _at_start: bool

    def __init__(
        self, vocabulary: Vocabulary, *, hidden: Collection[int] | None = None, at_start: bool = False
    ) -> None:
        self.vocabulary = vocabulary
        self._hidden = vocabulary.special if hidden is None else hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._texts = vocabulary.texts
        self._waiting = False
        self._at_start = at_start and vocabulary.drops_first_space

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that is whole now. Bytes that are no UTF-8 become U+FFFD as soon as that is certain."""
        text = self._one(tokens[0]) if len(tokens) == 1 else "".join(map(self._one, tokens))
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix(" ")
        return text

    def hides(self, token: int) -> bool:
        """Whether a token is left out."""
        return not 0 <= token < len(self._texts) or token in self._hidden

    def _one(self, token: int) -> str:
        if not 0 <= token < len(self._texts) or token in self._hidden:
            return ""
        text = self._texts[token]
        if text is not None and not self._waiting:
            return text
        text = self._decoder.decode(self.vocabulary.pieces[token])
        self._waiting = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """What is still waiting when the stream ends: U+FFFD for part of a character, else nothing."""
        self._waiting = False
        return self._decoder.decode(b"", final=True)
