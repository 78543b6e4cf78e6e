"""Speech by espeak-ng: text in, sound out, sentence by sentence while the next ones are still to be spoken.

`_espeak_library.py` does the speaking. `speak` gives in the calling process exactly what the pipeline gives in a
worker; `write_wav` keeps it in a file.
"""

from __future__ import annotations

import re
import time
import wave
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ...errors import InvalidRequest, RequestCancelled
from ...proto.audio import AudioGenerationInputs, AudioGenerationMetadata, AudioGenerationOutput
from ...proto.context import GenerationStatus
from ...proto.one_shot import Allocate, AudioContext
from ...proto.pipeline import Pipeline
from ...proto.request import RequestID
from ._espeak_library import Speech, find_voice, require_espeak, synthesize
from ._options import read_options, require_batch_size, require_within

#: Longest piece spoken in one step, in characters: about 20 seconds of speech, made in 20 ms.
MAX_SENTENCE_CHARS = 300

#: Full scale of a 16-bit sample.
FULL_SCALE = 32768

# Where a sentence or a clause may end: marks with closing quotes behind them, and space; the marks of Chinese and
# Japanese, which no space follows; an empty line.
_END = re.compile(r"[.!?…;]+[\"'”’)\]]*(?=\s)|[。！？；]+[」』”’）]*|\n\s*\n")  # noqa: RUF001 - those marks are meant

# Behind a mark: where the next sentence begins.
_AHEAD = re.compile(r"\S")

# A full stop behind one of these, or behind a single letter, ends no sentence.
_ABBREVIATED = re.compile(
    r"mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|no|fig|approx|dept|est|inc|ltd|co|z\.b|d\.h|bzw|[^\W\d_]",
    re.IGNORECASE,
)

# Controls would be commands to espeak-ng (^A changes the voice), or end the text (NUL); tab and line ends are space.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class SpeechOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may ask for."""

    #: A language code or the name of a voice, with a variant behind "+": "en-us", "de", "en-gb+f3".
    voice: str = "en-us"
    #: Words per minute.
    rate: int = 175
    #: 0 to 99.
    pitch: int = 50
    #: Percent; above 100 louder than the voice was made for, up to 200.
    volume: int = 100

    def __post_init__(self) -> None:
        require_within("rate", self.rate, 80, 450)
        require_within("pitch", self.pitch, 0, 99)
        require_within("volume", self.volume, 0, 200)


class DeploymentOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a deployment may set."""

    #: Most requests in one batch. They are spoken one after another, so more keeps each stream waiting longer.
    max_batch_size: int = 16

    def __post_init__(self) -> None:
        require_batch_size(self.max_batch_size)


@dataclass
class _Stream:
    """A request half spoken: what is still to be said, how, and how many chunks have been made."""

    sentences: deque[str]
    voice: str
    options: SpeechOptions
    chunks: int = 0


class Espeak(Pipeline[AudioGenerationInputs[AudioContext], AudioGenerationOutput]):
    """The pipeline: each `execute` speaks the next sentence of every request, or all of one that does not stream."""

    options_type = SpeechOptions

    def __init__(self, *, max_batch_size: int = 16) -> None:
        require_espeak()
        self._max_batch_size = max_batch_size
        #: Requests that have begun and not been released; only streaming ones stay here between steps.
        self._streams: dict[RequestID, _Stream] = {}

    @property
    def max_batch_size(self) -> int:
        """Most requests accepted in one batch."""
        return self._max_batch_size

    def execute(self, inputs: AudioGenerationInputs[AudioContext]) -> dict[RequestID, Any]:
        """One chunk of sound for each request, or the exception that it alone fails with."""
        outputs: dict[RequestID, Any] = {}
        for request_id, context in inputs.batch.items():
            try:
                outputs[request_id] = self._step(context)
            except Exception as error:
                outputs[request_id] = error
        return outputs

    def release(self, request_id: RequestID) -> None:
        """Forget what the request still had to say."""
        self._streams.pop(request_id, None)

    def _step(self, context: AudioContext) -> AudioGenerationOutput:
        started = time.perf_counter()
        options: Any = context.options
        stream = self._streams.get(context.request_id)
        if stream is None:
            stream = self._streams[context.request_id] = _begin(context.text, options)
        spoken = []
        for _ in range(1 if context.streaming else len(stream.sentences)):
            if context.cancelled:
                raise RequestCancelled("cancelled while speaking")
            spoken.append(_say_next(stream))
        audio = _joined(spoken, context.allocate)
        stream.chunks += 1
        final = not stream.sentences
        metadata = AudioGenerationMetadata(
            sample_rate=spoken[0].sample_rate,
            duration=audio.size / spoken[0].sample_rate,
            chunk_id=stream.chunks - 1,
            final_chunk=final,
            model_name=context.model_name,
            request_id=context.request_id,
            processing_time=time.perf_counter() - started,
        )
        return AudioGenerationOutput(
            final_status=GenerationStatus.END_OF_SEQUENCE if final else GenerationStatus.ACTIVE,
            steps_executed=stream.chunks,
            audio_data=audio,
            metadata=metadata,
        )


def create(**options: Any) -> Espeak:
    """The pipeline of a deployment; see `DeploymentOptions`.

    Raises ConfigError for a wrong option, and where espeak-ng is missing, saying how to get it.
    """
    return Espeak(max_batch_size=read_options(DeploymentOptions, options, pipeline="espeak").max_batch_size)


def speak(
    text: str,
    *,
    voice: str = "en-us",
    rate: int = 175,
    pitch: int = 50,
    volume: int = 100,
) -> tuple[npt.NDArray[np.float32], int]:
    """Speak `text` in the calling process: float32 samples in [-1, 1], `(samples,)`, and their rate in Hz.

    Raises InvalidRequest for an empty text or an unknown voice, ValueError for a number out of range.
    """
    stream = _begin(text, SpeechOptions(voice=voice, rate=rate, pitch=pitch, volume=volume))
    spoken = [_say_next(stream) for _ in range(len(stream.sentences))]
    return _joined(spoken, np.empty), spoken[0].sample_rate


def write_wav(path: str | Path, samples: npt.NDArray[np.float32], sample_rate: int) -> None:
    """Write float samples in [-1, 1], `(samples,)` or `(channels, samples)`, to a WAV file of 16 bits per sample.

    Values beyond are cut off. What espeak-ng made comes out as it was, bit for bit.
    """
    channels = np.atleast_2d(samples)
    whole = np.clip(np.rint(channels * float(FULL_SCALE)), -FULL_SCALE, FULL_SCALE - 1).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(whole.T.tobytes())


def split_sentences(text: str, *, limit: int = MAX_SENTENCE_CHARS) -> list[str]:
    """The sentences and clauses of `text`, none empty, each of at most `limit` characters.

    Depends on the text alone. Only white space and control characters are lost.
    """
    cleaned = _CONTROLS.sub(" ", text)
    pieces, start = [], 0
    for mark in _END.finditer(cleaned):
        if _ends_sentence(cleaned, mark):
            pieces.append(cleaned[start : mark.end()])
            start = mark.end()
    pieces.append(cleaned[start:])
    return [part for piece in pieces for part in _cut(piece.strip(), limit)]


def _ends_sentence(text: str, mark: re.Match[str]) -> bool:
    """Whether a mark ends a sentence or clause, and not an abbreviation or a quotation inside one."""
    if not mark[0].startswith((".", "!", "?", "…")):
        return True
    ahead = _AHEAD.search(text, mark.end())
    if ahead and ahead[0].islower():
        return False
    # The longest abbreviation known is shorter than this by far.
    before = text[max(0, mark.start() - 16) : mark.start()].split()
    return not (before and mark[0].startswith(".") and _ABBREVIATED.fullmatch(before[-1].lstrip("(\"'“")))


def _cut(piece: str, limit: int) -> Iterator[str]:
    """Cut what is too long for one step: at a comma in its second half, else between words, else anywhere."""
    while len(piece) > limit:
        place = max(piece.rfind(mark, limit // 2, limit) for mark in (", ", ": ", "，", "、")) + 1  # noqa: RUF001
        place = place or piece.rfind(" ", 1, limit) + 1 or limit
        yield piece[:place].strip()
        piece = piece[place:].strip()
    if piece:
        yield piece


def _begin(text: object, options: SpeechOptions) -> _Stream:
    if not isinstance(text, str):
        raise InvalidRequest("this model speaks texts, not token ids")
    sentences = split_sentences(text)
    if not sentences:
        raise InvalidRequest("the text to speak is empty")
    return _Stream(deque(sentences), find_voice(options.voice), options)


def _say_next(stream: _Stream) -> Speech:
    options = stream.options
    sentence = stream.sentences.popleft()
    return synthesize(sentence, voice=stream.voice, rate=options.rate, pitch=options.pitch, volume=options.volume)


def _joined(spoken: list[Speech], allocate: Allocate) -> npt.NDArray[np.float32]:
    """The samples one behind the other, as float32 in [-1, 1), in an array of `allocate`."""
    audio = allocate((sum(speech.samples.size for speech in spoken),), np.float32)
    start = 0
    for speech in spoken:
        end = start + speech.samples.size
        np.multiply(speech.samples, np.float32(1 / FULL_SCALE), out=audio[start:end])
        start = end
    return audio
