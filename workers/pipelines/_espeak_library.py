"""The only module that calls espeak-ng: text in, 16-bit samples out, through ctypes and its C interface.

`espeak.py` splits texts and knows requests; nothing is known of them here. Interface: `speak_lib.h` of espeak-ng 1.52,
which the PyPI package espeakng-loader ships with its voices.

espeak-ng keeps the state of its synthesiser (flutter, gain, the phase of the wave) in static variables that no call
resets, so that a text sounds a little different each time. Therefore each text is spoken by a freshly loaded library,
which is unloaded afterwards: 2.5 ms, and the same text gives the same samples for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, InvalidRequest, PipelineError

# Names and values of speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
DONT_EXIT = 0x8000
CHARS_UTF8 = 1
ENDPAUSE = 0x1000
POS_CHARACTER = 1
PARAMETER_RATE = 1
PARAMETER_VOLUME = 2
PARAMETER_PITCH = 3
OK = 0

#: Loading, speaking and unloading are one step: the library's state belongs to the whole process.
_lock = threading.Lock()

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class _Voice(ctypes.Structure):
    """The head of `espeak_VOICE`; of the rest only the size matters, and the library allocates it."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
    )


class _VoiceQuery(ctypes.Structure):
    """All of `espeak_VOICE`, to ask for voices with."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


class Speech(NamedTuple):
    """Samples, int16 `(samples,)`, and how many of them make a second."""

    samples: npt.NDArray[np.int16]
    sample_rate: int


class Voices(NamedTuple):
    """What can speak: lower-case names to the identifiers that the library takes."""

    #: Language codes and names, for example "en-us" and "english (america)".
    languages: dict[str, str]
    #: Variants of a voice, for example "f3".
    variants: dict[str, str]
    #: The language codes, sorted: what is shown to people.
    codes: tuple[str, ...]


def require_espeak() -> None:
    """espeak-ng can be used here; ConfigError otherwise, saying how to get it."""
    voices()


def synthesize(text: str, *, voice: str, rate: int, pitch: int, volume: int) -> Speech:
    """Speak `text`; `voice` as from `find_voice`, `rate` in words per minute, `pitch` 0-99, `volume` in percent.

    A pure function of its arguments. Raises PipelineError when espeak-ng refuses.
    """
    pieces: list[bytes] = []
    with _lock, _loaded() as (library, sample_rate):
        callback = _SynthCallback(functools.partial(_collect, pieces))
        library.espeak_SetSynthCallback(callback)
        _check(library.espeak_SetVoiceByName(voice.encode()), f"the voice {voice!r}")
        for parameter, value in ((PARAMETER_RATE, rate), (PARAMETER_VOLUME, volume), (PARAMETER_PITCH, pitch)):
            _check(library.espeak_SetParameter(parameter, value, 0), f"the value {value}")
        _speak(library, text)
    return Speech(np.frombuffer(b"".join(pieces), np.int16), sample_rate)


def find_voice(name: str) -> str:
    """The identifier of a voice: a language code or name, with "+variant" where wanted, in any case.

    Only names from the library's own lists reach it: it would open any file that a name points to. Raises
    InvalidRequest naming the voice and some that exist.
    """
    known = voices()
    base, plus, variant = name.lower().partition("+")
    if base not in known.languages:
        # Two letters are the languages that most people look for.
        short = ", ".join(code for code in known.codes if len(code) == 2)
        raise InvalidRequest(f"no voice {name[:60]!r}; among {len(known.codes)} languages are {short}")
    if not plus:
        return known.languages[base]
    if variant not in known.variants:
        some = ", ".join(sorted(known.variants)[::5])
        raise InvalidRequest(f"no variant {variant[:60]!r} of a voice; among {len(known.variants)} are {some}")
    return f"{known.languages[base]}+{known.variants[variant]}"


@functools.cache
def voices() -> Voices:
    """All voices that can speak here, and the variants."""
    with _lock, _loaded() as (library, _):
        spoken = [voice for voice in _list_voices(library, None) if _has_dictionary(voice[1])]
        variants = [identifier for _, identifier, _ in _list_voices(library, b"variant")]
    languages = {name.lower(): identifier for name, identifier, _ in spoken}
    # A code that several voices serve goes to the one that gives it the best priority (the lowest number).
    claims = sorted((priority, code, identifier) for _, identifier, codes in spoken for priority, code in codes)
    codes: dict[str, str] = {}
    for _, code, identifier in claims:
        codes.setdefault(code.lower(), identifier)
    stems = [identifier.rpartition("/")[2] for identifier in variants]
    return Voices(languages | codes, {stem.lower(): stem for stem in stems}, tuple(sorted(codes)))


def _has_dictionary(identifier: str) -> bool:
    """Whether a voice can speak: some are listed whose dictionary is not there, and those give silence.

    A voice's file names its dictionary, or else means that of its first language, without the country. MBROLA voices,
    which need a program of their own, have no such file.
    """
    folder = Path(_paths()[1], "espeak-ng-data")
    try:
        lines = (folder / "lang" / identifier).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    pairs = [line.split()[:2] for line in lines if len(line.split()) >= 2]
    named = [value for key, value in pairs if key == "dictionary"]
    spoken = [value.partition("-")[0] for key, value in pairs if key == "language"]
    return any((folder / f"{name}_dict").is_file() for name in (named or spoken)[:1])


def _list_voices(library: Any, kind: bytes | None) -> list[tuple[str, str, list[tuple[int, str]]]]:
    """Name, identifier, and (priority, language code) pairs of each voice."""
    query = None if kind is None else ctypes.byref(_VoiceQuery(languages=kind))
    found = library.espeak_ListVoices(query)
    entries = []
    for entry in found:
        if not entry:
            break
        voice = entry.contents
        entries.append((voice.name.decode(), voice.identifier.decode(), list(_codes(voice.languages))))
    return entries


def _codes(address: int) -> Iterator[tuple[int, str]]:
    """Read the language list of a voice: a priority byte and a C string, again and again, ended by a 0 byte."""
    while priority := ctypes.string_at(address, 1)[0]:
        code = ctypes.string_at(address + 1)
        yield priority, code.decode()
        address += len(code) + 2


def _speak(library: Any, text: str) -> None:
    encoded = text.encode(errors="replace")
    arguments = (0, POS_CHARACTER, 0, CHARS_UTF8 | ENDPAUSE, None, None)
    _check(library.espeak_Synth(encoded, len(encoded) + 1, *arguments), "the text")
    _check(library.espeak_Synchronize(), "the text")


def _collect(pieces: list[bytes], wave: int | None, samples: int, events: int | None) -> int:  # noqa: ARG001 - C's
    # Nothing in here can raise: an exception could not cross the C code anyway.
    if wave and samples > 0:
        pieces.append(ctypes.string_at(wave, 2 * samples))
    return 0


def _check(status: int, what: str) -> None:
    if status != OK:
        raise PipelineError(f"espeak-ng refuses {what} (status {status})")


@contextlib.contextmanager
def _loaded() -> Iterator[tuple[Any, int]]:
    """A fresh library, initialised, and its sample rate in Hz; unloaded at the end."""
    library_path, data_folder = _paths()
    # The library keeps 160 characters of the data's path and cuts longer ones; through a descriptor it is always short.
    descriptor = os.open(data_folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        library = _declared(_open(library_path))
        try:
            data = f"/proc/self/fd/{descriptor}".encode()
            sample_rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, DONT_EXIT)
            if sample_rate <= 0:
                raise ConfigError(f"espeak-ng does not start with the voices in {data_folder} (status {sample_rate})")
            try:
                yield library, sample_rate
            finally:
                library.espeak_Terminate()
        finally:
            _unload(library)
    finally:
        os.close(descriptor)


@functools.cache
def _paths() -> tuple[str, str]:
    """The library, and the folder that holds `espeak-ng-data`."""
    try:
        loader = importlib.import_module("espeakng_loader")
        return loader.get_library_path(), str(Path(loader.get_data_path()).parent)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"espeak-ng is not installed: {error}; pip install 'tensoryard[models]'") from error


def _open(path: str) -> Any:
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise ConfigError(f"espeak-ng cannot be loaded: {error}") from error


def _declared(library: Any) -> Any:
    library.espeak_Initialize.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
    library.espeak_SetSynthCallback.argtypes = (_SynthCallback,)
    library.espeak_SetSynthCallback.restype = None
    library.espeak_SetVoiceByName.argtypes = (ctypes.c_char_p,)
    library.espeak_SetParameter.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int)
    library.espeak_ListVoices.argtypes = (ctypes.c_void_p,)
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
    number, pointer = ctypes.c_uint, ctypes.c_void_p
    library.espeak_Synth.argtypes = (
        ctypes.c_char_p,
        ctypes.c_size_t,
        number,
        ctypes.c_int,
        number,
        number,
        pointer,
        pointer,
    )
    return library


def _unload(library: Any) -> None:
    # ctypes keeps libraries for ever; the C library's own call does not.
    dlclose = ctypes.CDLL(None).dlclose
    dlclose.argtypes = (ctypes.c_void_p,)
    dlclose(library._handle)  # noqa: SLF001 - ctypes has no public name for it
