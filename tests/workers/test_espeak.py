"""Speech by espeak-ng: real sound, the same every time, sentence by sentence; and what is refused."""

import re
import sys
import threading
import wave
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import ConfigError, InvalidRequest, PipelineError, PoolExhausted, RequestCancelled
from tensoryard.proto.audio import AudioGenerationInputs, AudioGenerationRequest
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.one_shot import new_context
from tensoryard.workers.pipelines import _espeak_library
from tensoryard.workers.pipelines.espeak import (
    MAX_SENTENCE_CHARS,
    SpeechOptions,
    create,
    speak,
    split_sentences,
    write_wav,
)

from ..baseline import Baseline

STORY = "A crane lifts the box. Where does it go? Onto the ship; then away! The yard is empty now."
SENTENCES = 5


@pytest.fixture
def pipeline():
    return create()


def context(text, *, streaming=True, allocate=np.empty, **options):
    fields = {"input": text} if isinstance(text, str) else {"prompt": text}
    request = AudioGenerationRequest(model="espeak", streaming=streaming, **fields)
    return new_context(request, options=SpeechOptions(**options), allocate=allocate)


def step(pipeline, *contexts):
    outputs = pipeline.execute(AudioGenerationInputs(batch={each.request_id: each for each in contexts}))
    assert list(outputs) == [each.request_id for each in contexts]
    return list(outputs.values())


def stream(pipeline, *contexts):
    """All chunks of each request, stepped together as the runtime does, each until it is done."""
    chunks = {each.request_id: [] for each in contexts}
    waiting = list(contexts)
    while waiting:
        for each, output in zip(waiting, step(pipeline, *waiting), strict=True):
            chunks[each.request_id].append(output)
        waiting = [each for each in waiting if not chunks[each.request_id][-1].is_done]
    for each in contexts:
        pipeline.release(each.request_id)
    assert not pipeline._streams
    return list(chunks.values())


def loudness(samples):
    return float(np.sqrt(np.square(samples).mean()))


def test_a_text_becomes_sound():
    """Float samples in [-1, 1] at 22050 Hz, clearly louder than silence, about as long as people take."""
    samples, rate = speak("Requests move, tensors stay.")
    assert rate == 22050
    assert samples.dtype == np.float32
    assert loudness(samples) > 0.02
    assert abs(samples).max() <= 1
    assert 1 < samples.size / rate < 5


def test_the_sound_has_the_pitch_of_a_voice():
    """The fundamental frequency of a vowel lies where voices are, and rises with `pitch`."""

    def fundamental(pitch):
        samples, rate = speak("aaah", pitch=pitch)
        vowel = samples[samples.size // 4 :][:4096] * np.hanning(4096)
        # The cepstrum: evenly spaced harmonics make one peak, at the period of the vocal cords.
        cepstrum = np.fft.irfft(np.log(abs(np.fft.rfft(vowel)) + 1e-6))
        shortest, longest = rate // 400, rate // 50
        return rate / (shortest + cepstrum[shortest:longest].argmax())

    assert 50 <= fundamental(20) < 0.8 * fundamental(50) < 0.8 * fundamental(90) < 320


def test_more_text_takes_longer_and_a_higher_rate_less():
    """Duration follows the text and the words per minute."""
    sizes = [speak(text)[0].size for text in ("One.", "One two three.", "One two three four five six seven.")]
    assert sizes == sorted(sizes)
    assert speak(STORY, rate=350)[0].size < 0.7 * speak(STORY, rate=175)[0].size


def test_volume_scales_the_sound():
    """Half the volume is clearly softer, none is silence."""
    loud, soft, silent = (loudness(speak("Hello.", volume=volume)[0]) for volume in (100, 50, 0))
    assert loud > 1.5 * soft > 0
    assert silent == 0


def test_the_same_text_always_sounds_the_same():
    """Whatever voice, rate or text was spoken before in this process: the samples are equal to the bit."""
    first, _ = speak(STORY)
    for before in (
        ("Etwas anderes.", {"voice": "de", "rate": 320, "pitch": 90}),
        ("!", {"voice": "en+whisper"}),
        (STORY, {}),
    ):
        speak(before[0], **before[1])
        assert (speak(STORY)[0] == first).all()


def test_the_same_text_sounds_the_same_in_another_process():
    """Nothing depends on the process either, so any worker gives the same answer."""
    code = "from tensoryard.workers.pipelines.espeak import speak; print(speak('Hello there.')[0].tobytes().hex())"
    import subprocess

    printed = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert bytes.fromhex(printed.strip()) == speak("Hello there.")[0].tobytes()


def test_threads_speak_one_at_a_time():
    """The library's state is the process's; callers in several threads still get their own text."""
    texts = ["One.", "Two and a half.", "Three, four, five."] * 3
    results = {}
    threads = [
        threading.Thread(target=lambda place=place, text=text: results.update({place: speak(text)[0]}))
        for place, text in enumerate(texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((results[place] == speak(text)[0]).all() for place, text in enumerate(texts))


def test_languages_differ():
    """The same word in two languages, and a variant of one voice, are three different sounds."""
    sounds = [speak("Restaurant", voice=voice)[0] for voice in ("en-us", "fr-fr", "en-us+f3")]
    assert all(loudness(sound) > 0.02 for sound in sounds)
    assert len({sound.tobytes() for sound in sounds}) == 3


def test_voices_go_by_code_and_by_name_in_any_case():
    """A language code and the name of its voice mean the same."""
    expected, _ = speak("Hello.", voice="en-us")
    for name in ("EN-US", "English (America)"):
        assert (speak("Hello.", voice=name)[0] == expected).all()


def test_a_text_is_streamed_sentence_by_sentence(pipeline):
    """One chunk per step; only the last ends the request; the metadata count and measure them."""
    request = context(STORY)
    [chunks] = stream(pipeline, request)
    assert len(chunks) == SENTENCES
    assert [chunk.final_status for chunk in chunks] == [GenerationStatus.ACTIVE] * 4 + [
        GenerationStatus.END_OF_SEQUENCE
    ]
    for place, chunk in enumerate(chunks):
        about = chunk.metadata
        assert (about.chunk_id, about.final_chunk, chunk.steps_executed) == (place, place == 4, place + 1)
        assert (about.sample_rate, about.model_name, about.request_id) == (22050, "espeak", request.request_id)
        assert about.duration == pytest.approx(chunk.audio_data.size / 22050)
        assert about.processing_time > 0
        assert loudness(chunk.audio_data) > 0.02


def test_chunks_join_to_the_whole(pipeline):
    """Streamed, at once, and spoken locally: the same samples to the bit."""
    [chunks], [whole] = stream(pipeline, context(STORY)), stream(pipeline, context(STORY, streaming=False))[0:1]
    joined = np.concatenate([chunk.audio_data for chunk in chunks])
    assert len(whole) == 1
    assert whole[0].metadata.final_chunk
    assert (joined == whole[0].audio_data).all()
    assert (joined == speak(STORY)[0]).all()


def test_requests_of_a_batch_do_not_mix(pipeline):
    """Stepped together, with voices and lengths of their own, each gets exactly its own sound."""
    cases = [
        (STORY, {}),
        ("Eins. Zwei. Drei.", {"voice": "de", "rate": 240}),
        ("Hi.", {"pitch": 80}),
        (STORY, {"volume": 60}),
    ]
    chunks = stream(pipeline, *(context(text, **options) for text, options in cases))
    assert [len(each) for each in chunks] == [5, 3, 1, 5]
    for (text, options), each in zip(cases, chunks, strict=True):
        assert (np.concatenate([chunk.audio_data for chunk in each]) == speak(text, **options)[0]).all()


def test_results_are_written_into_the_lent_memory(pipeline):
    """Each chunk is the very array that `allocate` gave."""
    lent = []

    def allocate(shape, dtype):
        lent.append(np.empty(shape, dtype))
        return lent[-1]

    [chunks] = stream(pipeline, context(STORY, allocate=allocate))
    assert all(chunk.audio_data is memory for chunk, memory in zip(chunks, lent, strict=True))


def test_a_token_prompt_or_bad_voice_fails_its_request_alone(pipeline):
    """The errors say what is wrong; the other requests of the batch are answered."""

    def full(shape, dtype):
        raise PoolExhausted("no room")

    cancelled = context("Hello.")
    cancelled.status = GenerationStatus.CANCELLED
    bad = [context([1, 2, 3]), context("Hello.", voice="xx"), context("Hello.", allocate=full), cancelled]
    *errors, good = step(pipeline, *bad, context("Hello."))
    assert [type(error) for error in errors] == [InvalidRequest, InvalidRequest, PoolExhausted, RequestCancelled]
    assert "texts, not token ids" in str(errors[0])
    assert (good.audio_data == speak("Hello.")[0]).all()


def test_a_released_request_is_forgotten(pipeline):
    """After a cancel in mid-stream nothing is kept; releasing twice is harmless."""
    request = context(STORY)
    assert not step(pipeline, request)[0].is_done
    pipeline.release(request.request_id)
    pipeline.release(request.request_id)
    assert not pipeline._streams


@pytest.mark.parametrize("text", ["", "  \n\t ", "\x00\x01\x07"])
def test_nothing_to_say_is_refused(text):
    """An empty text, white space and control characters are no speech."""
    with pytest.raises(InvalidRequest, match="empty"):
        speak(text)


def test_an_unknown_voice_is_named_with_some_that_exist():
    """The error lists languages, so that the next try can succeed."""
    with pytest.raises(InvalidRequest, match=r"no voice 'xx'; among \d+ languages are af, .*, fr"):
        speak("Hello.", voice="xx")
    with pytest.raises(InvalidRequest, match=r"no variant 'nope' of a voice; among \d+ are adam, "):
        speak("Hello.", voice="en+nope")


@pytest.mark.parametrize("voice", ["../../lang/gmw/de", "gmw/de", "mb-en1", "fo", "", "+f3", "x" * 5000])
def test_only_listed_voices_reach_the_library(voice):
    """Paths, MBROLA voices, those without a dictionary, and names too long for its buffers are all unknown."""
    with pytest.raises(InvalidRequest, match="no voice"):
        speak("Hello.", voice=voice)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 79}, "`rate` must be between 80 and 450, not 79"),
        ({"rate": 451}, "`rate` must be between"),
        ({"pitch": 100}, "`pitch` must be between 0 and 99, not 100"),
        ({"volume": -1}, "`volume` must be between 0 and 200, not -1"),
        ({"speed": 3}, "unknown field `speed`"),
        ({"voice": 3}, r"\$\.voice"),
    ],
)
def test_wrong_options_are_named(pipeline, options, words):
    """Ranges, names and types are checked when the worker reads a request's options."""
    with pytest.raises(msgspec.ValidationError, match=re.escape(words) if "$" not in words else words):
        msgspec.convert(options, pipeline.options_type)


def test_a_deployment_sets_the_batch_size():
    """`max_batch_size` is the pipeline's, and the only option; another is named."""
    assert create(max_batch_size=2).max_batch_size == 2
    with pytest.raises(ConfigError, match=r"`voice`.*known options: max_batch_size"):
        create(voice="de")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            STORY,
            ["A crane lifts the box.", "Where does it go?", "Onto the ship;", "then away!", "The yard is empty now."],
        ),
        (
            "Dr. J. Smith paid 3.14 dollars, e.g. to Mrs. Lee. Yes",
            ["Dr. J. Smith paid 3.14 dollars, e.g. to Mrs. Lee.", "Yes"],
        ),
        ('"Stop!" he said. "Why?" Nobody knew...', ['"Stop!" he said.', '"Why?"', "Nobody knew..."]),
        ("First\nline\n\nSecond", ["First\nline", "Second"]),
        ("今日は。明日は。はい", ["今日は。", "明日は。", "はい"]),
        ("...", ["..."]),
        ("No end", ["No end"]),
        (" ? ! ", ["?", "!"]),
        ("", []),
    ],
)
def test_texts_split_where_people_pause(text, sentences):
    """At sentence marks, semicolons and empty lines; not in numbers, abbreviations, initials or quotations."""
    assert split_sentences(text) == sentences


def test_long_sentences_are_cut_at_commas_else_spaces_else_anywhere():
    """No piece is over the limit, whatever the text."""
    assert split_sentences("one two, three four five", limit=14) == ["one two,", "three four", "five"]
    assert split_sentences("x" * 25, limit=10) == ["x" * 10, "x" * 10, "x" * 5]
    assert max(map(len, split_sentences("word " * 500))) <= MAX_SENTENCE_CHARS


@given(st.text(alphabet=st.sampled_from("ab .!?;,\n\"'。、é…\x01"), max_size=200), st.integers(1, 50))
def test_splitting_loses_nothing_but_space(text, limit):
    """All visible characters are there, in order, in pieces within the limit."""
    pieces = split_sentences(text, limit=limit)
    assert "".join("".join(pieces).split()) == "".join(text.replace("\x01", " ").split())
    assert all(0 < len(piece) <= limit and piece == piece.strip() for piece in pieces)


def test_commands_hidden_in_a_text_change_nothing():
    """espeak-ng's in-text commands and markup are taken as text, not obeyed."""
    plain, _ = speak("90 p hello")
    hidden, _ = speak("\x0190 p hello")
    assert (plain == hidden).all()
    assert speak("<prosody rate='500%'>hello</prosody>")[0].size > speak("hello")[0].size


def test_every_character_can_be_spoken():
    """Emoji, other scripts, lone surrogates and text in no language at all end as sound, not as a crash."""
    for text in ("👍🏽", "Привет", "مرحبا", "\ud800", "\u202e\u200b!", "aaa" * 200, "1" * 120, "[[_:]]", "&#1;"):
        assert speak(text)[0].size > 0


def test_wav_files_hold_the_samples(tmp_path):
    """What was spoken is read back bit for bit; stereo is interleaved and what is too loud is cut."""
    samples, rate = speak("Hello.")
    write_wav(tmp_path / "hello.wav", samples, rate)
    with wave.open(str(tmp_path / "hello.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
        read = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert (read / np.float32(32768) == samples).all()
    write_wav(tmp_path / "stereo.wav", np.array([[0, 0.5, 2], [-0.5, -2, 1]], np.float32), 8000)
    with wave.open(str(tmp_path / "stereo.wav")) as file:
        assert file.getnchannels() == 2
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [0, -16384, 16384, -32768, 32767, 32767]


@pytest.fixture
def _forgotten_paths():
    _espeak_library._paths.cache_clear()
    yield
    _espeak_library._paths.cache_clear()


@pytest.mark.usefixtures("_forgotten_paths")
def test_a_missing_library_says_how_to_get_it(monkeypatch):
    """Without the package the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ConfigError, match=r"tensoryard\[models\]"):
        speak("Hello.")


def test_voices_in_a_very_long_path_are_found(monkeypatch, tmp_path):
    """The library cuts paths after 160 characters; it gets a short one, and speaks the same."""
    library, data = _espeak_library._paths()
    deep = tmp_path / ("x" * 120) / ("y" * 120)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(Path(data, "espeak-ng-data"))
    expected, _ = speak("Hello.")
    monkeypatch.setattr(_espeak_library, "_paths", lambda: (library, str(deep)))
    assert (speak("Hello.")[0] == expected).all()


@pytest.mark.parametrize(
    ("library", "words"), [(None, "does not start with the voices in"), (__file__, "cannot be loaded")]
)
def test_a_broken_installation_is_an_error_and_not_a_crash(monkeypatch, tmp_path, library, words):
    """A folder without voices, or a file that is no library: the error names it, and speaking works again after."""
    expected, _ = speak("Hello.")
    good, _ = _espeak_library._paths()
    with monkeypatch.context() as patch:
        patch.setattr(_espeak_library, "_paths", lambda: (library or good, str(tmp_path)))
        with pytest.raises(ConfigError, match=words):
            speak("Hello.")
    assert (speak("Hello.")[0] == expected).all()


def test_what_the_library_refuses_is_an_error(monkeypatch):
    """A voice that it does not know, past our own check, is not spoken with another one."""
    with pytest.raises(PipelineError, match="refuses the voice 'no/such'"):
        _espeak_library.synthesize("Hello.", voice="no/such", rate=175, pitch=50, volume=100)


def test_nothing_stays_loaded_or_open():
    """After speaking, the library is unloaded and no descriptor is left."""
    speak("Hello.")
    before = Baseline()
    for _ in range(5):
        speak("Hello.")
    before.assert_nothing_new()
    assert "libespeak" not in Path("/proc/self/maps").read_text()
