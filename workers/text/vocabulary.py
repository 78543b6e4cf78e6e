"""The bytes that each token of a vocabulary stands for, read once from a `tokenizers` file.

`detokenizer.py` joins them into text, `grammar.py` hands them to the grammar engine; this module decodes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import ConfigError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

#: What SentencePiece writes for a space.
_SPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """What tokens say.

    `pieces`: bytes of each id, empty where there is no such token. `special`: ids that structure a text and are no part
    of it. `drops_first_space`: whether a text that begins with a space loses it when it is decoded from its very start.
    """

    pieces: tuple[bytes, ...]
    special: frozenset[int]
    drops_first_space: bool = False

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def texts(self) -> tuple[str | None, ...]:
        """The text of each token that is whole characters; None of those that are parts of some."""
        return tuple(map(_as_text, self.pieces))

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """The vocabulary of a `tokenizers.Tokenizer`.

        Raises ConfigError for one whose decoder is not of a kind that joins tokens byte by byte: byte-level BPE, and
        SentencePiece with or without bytes as a last resort.
        """
        file = json.loads(tokenizer.to_str())
        piece_of, drops_first_space = _reader(file.get("decoder") or {})
        names: Mapping[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(names.values(), default=-1) + 1)
        for name, token in names.items():
            pieces[token] = piece_of(name)
        special = frozenset(entry["id"] for entry in file.get("added_tokens") or () if entry["special"])
        return cls(tuple(pieces), special, drops_first_space)


def _as_text(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _reader(decoder: Mapping[str, Any]) -> tuple[Callable[[str], bytes], bool]:
    """How a token's name becomes bytes, and whether the first space goes."""
    parts = decoder.get("decoders", [decoder])
    kinds = [part.get("type") for part in parts]
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}:
        return _byte_level_piece, False
    if kinds == ["Metaspace"]:
        return _sentence_piece, parts[0].get("prepend_scheme", "always") != "never"
    if "ByteFallback" in kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return _fallback_piece, "Strip" in kinds
    raise ConfigError(
        f"a tokenizer with a decoder of {' and '.join(map(str, kinds))} cannot be streamed; "
        "known are ByteLevel, Metaspace, and Replace with ByteFallback, Fuse and Strip",
    )


def _byte_level_table() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, backwards."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(rest)}


_BYTE_LEVEL = _byte_level_table()


def _byte_level_piece(name: str) -> bytes:
    # Tokens that were added by hand may hold characters that stand for no byte; they are meant as they are.
    if all(character in _BYTE_LEVEL for character in name):
        return bytes(_BYTE_LEVEL[character] for character in name)
    return name.encode()


def _sentence_piece(name: str) -> bytes:
    return name.replace(_SPACE, " ").encode()


def _fallback_piece(name: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else _sentence_piece(name)
