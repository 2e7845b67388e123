"""Speech: texts as they are said, utterances, chunks that join, long texts, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import multispec as ms
from multispec import loading
from multispec.errors import (
    GenerationError,
    ModelLoadError,
    OutputWarning,
    PromptError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
)
from multispec.generator import Generator
from multispec.guidance import Guidance
from multispec.modalities.speech import numerals
from multispec.modalities.speech.adapter import Speech
from multispec.modalities.speech.audio import Audio, joined
from multispec.modalities.speech.family import FrameLayout, SpeechCodec, SpeechFamily
from multispec.modalities.speech.long_texts import Spoken, speak, speaking
from multispec.modalities.speech.reading import (
    CLAUSE,
    NONE,
    PARAGRAPH,
    SENTENCE,
    Reads,
    read_out,
    utterances,
)
from multispec.modalities.speech.seeing import Frames, draw, spectrogram
from multispec.modalities.speech.streaming import AudioStream, Delivery, Windows, softened
from multispec.modality import Modality
from multispec.stream import Prompt
from multispec.verifiers import Lantern
from tests.models.speaking import CODES, END, HOP, OFFSET, RATE, TinyCodec, TinyLayout, Tongue, Voice, save

TEXT = "the quick fox"
LONG = "The quick brown fox. It jumps over 2 dogs!\n\nAnd more, really."


def generator_of(voice: Tongue, **options: Any) -> Generator:
    return Generator(voice.target, Speech(voice, **options))


@pytest.fixture(params=[1, 2], ids=["one codebook", "two codebooks"])
def voice(request: pytest.FixtureRequest) -> Voice:
    return Voice(TinyCodec(num_codebooks=request.param))


@pytest.fixture
def generator(voice: Voice) -> Generator:
    return generator_of(voice)


def test_the_parts_keep_their_protocols(voice: Voice) -> None:
    assert isinstance(Speech(voice), Modality)
    assert isinstance(voice, SpeechFamily) and isinstance(voice.codec, SpeechCodec)
    assert isinstance(voice.layout, FrameLayout)
    assert isinstance(voice, Reads) and not isinstance(Tongue(), Reads)


# ---- reading


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (1001, "one thousand one"),
        (-12_000_003, "minus twelve million three"),
        (10**18, "one" + 18 * " zero"),
    ],
)
def test_numbers_have_names(count: int, name: str) -> None:
    assert numerals.cardinal(count) == name


def test_every_number_has_another_name() -> None:
    """Cardinals, and their places in a row too."""
    assert len({numerals.cardinal(n) for n in range(1200)}) == 1200
    assert len({numerals.ordinal(n) for n in range(1200)}) == 1200
    places = [1, 2, 3, 5, 8, 9, 12, 20, 21, 100, 101]
    assert " ".join(map(numerals.ordinal, places)) == (
        "first second third fifth eighth ninth twelfth twentieth twenty-first one hundredth one hundred first"
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("12,345 and 3.14, -5, 007", "twelve thousand three hundred forty-five and three point one four,"
         " minus five, zero zero seven"),
        ("In 1984, 1905, 1900, 2005 and 2024.", "In nineteen eighty-four, nineteen oh five, nineteen hundred,"
         " two thousand five and twenty twenty-four."),
        ("the 1980s, the '90s", "the nineteen eighties, the nineties"),
        ("1914-1918, 10-20 km", "nineteen fourteen to nineteen eighteen, ten to twenty kilometres"),
        ("the 3rd, 21st and 1,000th", "the third, twenty-first and one thousandth"),
        ("2024-02-03; 2024-13-03", "February third, twenty twenty-four; twenty twenty-four to thirteen to"
         " zero three"),
        ("May 5, 1984; Jan. 3rd; Sept. 1999; I may 5 times", "May fifth, nineteen eighty-four; January third;"
         " September nineteen ninety-nine; I may five times"),
        ("the 3rd of March 2021 or 12 June", "the third of March, twenty twenty-one or the twelfth of June"),
        ("10:30 a.m., 7:05, 10:00, 14:00, 5:30pm", "ten thirty A M, seven oh five, ten o'clock,"
         " fourteen hundred hours, five thirty P M"),
        ("At 5 p.m. He left at 6 p.m.", "At five P M. He left at six P M."),
        ("$3.50, $1, £1.01, €0.99, ¥5, $5 million, $1.5 billion", "three dollars and fifty cents, one dollar,"
         " one pound and one penny, ninety-nine cents, five yen, five million dollars,"
         " one point five billion dollars"),
        ("1/2, 3/4, 5/8, 2½, 24/7", "one half, three quarters, five eighths, two and one half,"
         " twenty-four slash seven"),
        ("1 kg, 5 ft, 1 ft, 20°C, 60 mph, 50%", "one kilogram, five feet, one foot, twenty degrees Celsius,"
         " sixty miles per hour, fifty percent"),
        ("555-1234", "five five five, one two three four"),
        ("x² + y^3 = 3", "x squared plus y cubed equals three"),
        ("Dr. Smith, Mr. and Mrs. Jones, St. John", "Doctor Smith, Mister and Missis Jones, Saint John"),
        ("In St. Louis on Main St. He", "In Saint Louis on Main street. He"),
        ("e.g. cats, dogs, etc. Then No. 5", "for example cats, dogs, et cetera. Then number five"),
        ("the FBI, NASA, the U.S.A. and J. R. R. Tolkien", "the F B I, NASA, the U S A and J R R Tolkien"),
        ("It was I. Then", "It was I. Then"),
        ("R&D @ home, a/b, and/or, #1", "R and D at home, a slash b, and or, number one"),
        ("www.example.com", "example dot com"),
        ("mp3, B2B", "mp three, B two B"),
        ("café, naïve, Łódź, straße, ﬁne", "cafe, naive, Lodz, strasse, fine"),
        ("“so” — ‘it’s’… done", "\"so\" - 'it's'... done"),
        ("one\n\ntwo", "one\n\ntwo"),
    ],
)  # fmt: skip
def test_what_is_written_is_said(written: str, said: str) -> None:
    assert read_out(written) == said
    assert read_out(said) == said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to say in ''"),
        (" \n", "got no letter and no digit"),
        ("?!...", r"nothing to say in '\?!...'"),
        ("привет", r"got 'п' \(cyrillic\) in 'привет'"),
        ("心", r"got '心' \(cjk\)"),
        ("a 🦊", r"got '🦊' \(sign\)"),
    ],
)
def test_what_cannot_be_said_is_refused(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_out(text)
    with pytest.raises(PromptError):
        generator_of(Voice()).generate(text)


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One. Two! Three?", 20, ["One.", "Two!", "Three?"]),
        ('"Yes!" he said. "No."', 20, ['"Yes!" he said.', '"No."']),
        ("one, two, three, four", 12, ["one, two,", "three, four"]),
        ("first it was; then it was not", 20, ["first it was;", "then it was not"]),
        ("we went to the sea and we came home", 20, ["we went to the sea", "and we came home"]),
        ("abcd efgh ijkl mnop", 10, ["abcd efgh", "ijkl mnop"]),
        ("no end", 20, ["no end"]),
        ("今天天气很好，我们去公园吧！你好。", 8, ["今天天气很好，", "我们去公园吧！", "你好。"]),
        ("你好你好你好", 4, ["你好你", "好你好"]),
    ],
)
def test_texts_are_split(text: str, limit: int, parts: list[str]) -> None:
    found = utterances(text, limit)
    assert [one.text for one in found] == parts
    assert found[-1].pause == NONE


def test_pauses_are_those_of_the_text() -> None:
    found = utterances("One, two. Three,\nand four!\n\nFive.", 11)
    assert [one.pause for one in found] == [SENTENCE, CLAUSE, PARAGRAPH, NONE]
    assert [one.text for one in found] == ["One, two.", "Three,", "and four!", "Five."]


def test_nothing_is_lost_by_splitting() -> None:
    """Whatever the limit, down to the longest word."""
    words = "the quick, brown fox; jumps over the lazy dog and then it sleeps".split()
    for limit in range(6, 70):
        found = utterances(" ".join(words), limit)
        assert [word for one in found for word in one.text.split()] == words
        assert all(len(one.text) <= limit for one in found)
    with pytest.raises(PromptError, match="A word is longer than an utterance of this voice: got 6 char"):
        utterances(" ".join(words), 5)


# ---- one utterance


def test_a_text_becomes_a_sound(generator: Generator, voice: Voice) -> None:
    found = generator.generate(TEXT, drafter=None)
    assert found.finish_reason == "stop" and int(found.tokens[-1]) == END
    frames = (len(found.tokens) - 1) // voice.codec.num_codebooks
    assert found.output.waveform.shape == (1, frames * HOP) and found.output.sampling_rate == RATE
    assert found.output.info["text"] == TEXT and found.output.info["hop"] == HOP
    codes = voice.layout.codes(found.tokens.tolist())
    assert found.output.waveform.equal(voice.codec.decode(codes))


@pytest.mark.parametrize("drafter", ["auto", "prompt_lookup"])
def test_drafting_changes_no_sample(generator: Generator, drafter: str) -> None:
    plain, found = generator.generate(TEXT, drafter=None), generator.generate(TEXT, drafter=drafter)
    assert found.tokens.equal(plain.tokens)
    assert found.output.waveform.equal(plain.output.waveform)
    assert found.report.drafted > 0


def test_voices_and_numbers_reach_the_model(voice: Voice) -> None:
    speech = Speech(voice)
    prompt = speech.encode({"text": "2 foxes", "voice": "bert"})
    assert prompt.ids.tolist() == [1, *b"two foxes"] and prompt.text == "2 foxes"
    assert speech.encode("2 foxes").ids.tolist() == [0, *b"two foxes"]
    assert Speech(Tongue()).encode("2 foxes").ids.tolist() == [0, *b"2 foxes"]


def test_guidance_has_another_branch() -> None:
    voice = Voice(guidance=Guidance(scale=2.0, convention="linear"))
    prompt = Speech(voice).encode(TEXT)
    assert prompt.guidance == voice.guidance == Speech(voice).guidance
    assert prompt.unconditional is not None and prompt.unconditional.ids.tolist() == [0]
    other = Speech(voice).unconditional(prompt, "hm")
    assert other.ids.tolist() == [0, *b"hm"] and Speech(voice).unconditional(prompt, other) is other
    with pytest.raises(PromptError, match="A negative prompt is a text: got int"):
        Speech(voice).unconditional(prompt, 3)


def test_a_voice_that_never_ends_is_cut() -> None:
    """At five times the length of ordinary speech, and the report says so."""
    generator = generator_of(Voice(TinyCodec(sampling_rate=800), endless=True))
    found = generator.generate("hi")
    assert found.finish_reason == "length" and found.output.duration == 4.0
    assert found.report.notes == ["no end within 40 symbols: it was cut there. Pass max_new_tokens for more"]
    longer = generator.generate("a" * 20, drafter=None, max_new_tokens=7)
    assert longer.output.duration == 7 * HOP / 800 and longer.report.notes == []
    prompt = Speech(Voice(text_limit=99)).encode("a" * 50)
    assert prompt.spec is not None and prompt.spec.usual_length == 500


def test_only_frames_that_are_complete_are_heard() -> None:
    voice = Voice(TinyCodec(num_codebooks=2))
    found = generator_of(voice).generate(TEXT, max_new_tokens=5)
    assert len(found.tokens) == 5 and found.output.waveform.shape == (1, 2 * HOP)
    assert generator_of(voice).generate(TEXT, max_new_tokens=1).output.duration == 0


def test_ids_without_a_layout_are_no_sound(generator: Generator) -> None:
    prompt = Prompt(ids=torch.tensor([0, 1]))
    assert generator.modality.decode(prompt, [OFFSET], ()) is None
    decoder = generator.modality.stream(prompt, ())
    assert decoder.push(OFFSET) is None and decoder.finish() is None


def test_symbols_that_are_no_codes_are_kept(generator: Generator) -> None:
    voice = Voice(TinyCodec(num_codebooks=1))
    wrong = replace(Speech(voice).encode(TEXT), spec=replace(voice.layout.spec, grammar=None))
    generator = generator_of(voice)
    bias = ms.Sampling(logit_bias={1: 1000.0})
    with pytest.warns(OutputWarning, match="No codes"):
        found = generator.generate(wrong, sampling=bias, drafter=None, max_new_tokens=40)
    assert found.output is None and found.tokens.tolist() == [1] * 40
    assert all(one.delta is None for one in generator.stream(wrong, sampling=bias, max_new_tokens=40))


# ---- neighbours


def test_relaxed_rules_are_given_the_codebooks(generator: Generator, voice: Voice) -> None:
    """Neighbours are codes of the same codebook."""
    near = generator.modality.neighbours
    levels = voice.codec.num_codebooks
    assert near is not None and near is generator.modality.neighbours and near.size == levels * CODES
    for level in range(levels):
        start = OFFSET + level * CODES
        found = near.of(torch.arange(start, start + CODES), CODES - 1)
        assert int(found.min()) >= start and int(found.max()) < start + CODES
        book = voice.codec.codebook(level)
        assert int(found[0, 0]) == start + int(torch.cdist(book[:1], book)[0].argsort()[1])
    assert generator.generate(TEXT, verifier=Lantern(delta=0.5, k=4)).finish_reason == "stop"


class Closed(TinyCodec):
    """Tells nobody what its codes stand for."""

    def codebook(self, level: int, /) -> torch.Tensor:
        raise UnsupportedError("This codec has no codebook of vectors. Use a rule that needs none.")


@pytest.mark.parametrize(
    "codec", [Closed(), TinyCodec(cardinality=CODES + 1)], ids=["no codebook", "another size"]
)
def test_without_a_codebook_relaxed_rules_say_so(codec: TinyCodec) -> None:
    """Rules that need one name what to pass; the others go on."""
    generator = generator_of(Voice(codec))
    assert generator.modality.neighbours is None
    for rule in ("lantern", "pcg", "gsd"):
        with pytest.raises(UsageError, match=f"{rule} compares codes of a codebook and was given none"):
            generator.generate(TEXT, verifier=rule)
    assert generator.generate(TEXT, verifier="cool_sd").finish_reason == "stop"


# ---- streams


def chunks_of(generator: Generator, text: str = TEXT) -> list[Audio]:
    found = [step.delta for step in generator.stream(text, drafter=None) if step.delta is not None]
    assert all(isinstance(one, Audio) for one in found)
    return found


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
def test_chunks_join_to_the_whole(voice: Voice, chunk: int) -> None:
    """And nothing is decoded from the start again."""
    generator = generator_of(voice, chunk=chunk)
    whole = generator.generate(TEXT, drafter=None).output
    voice.codec.seen.clear()
    found = chunks_of(generator)
    together = joined(found)
    assert together.waveform.shape == whole.waveform.shape
    assert float((together.waveform - whole.waveform).abs().max()) < 1e-6
    lengths = [round(one.duration * RATE) // HOP for one in found]
    assert all(one == chunk for one in lengths[:-1])
    assert max(voice.codec.seen) <= 3 + max(max(lengths), chunk) + 3
    assert 0 < lengths[-1] < 2 * chunk + 3


def test_the_first_chunk_comes_as_soon_as_it_can() -> None:
    """With the frames behind it that the codec hears, and no sooner."""
    generator = generator_of(Voice(), chunk=4)
    steps = list(generator.stream(TEXT, drafter=None))
    assert [step.position for step in steps if step.delta is not None][:3] == [6, 10, 14]


@dataclass(frozen=True, kw_only=True)
class Late(TinyLayout):
    """A layout whose frames are complete two symbols after they are counted, as with delays."""

    asked: list[int] = field(default_factory=list)

    def codes(self, tokens: Sequence[int], /) -> Any:
        self.asked.append(len(tokens))
        return super().codes(tokens)[: max(len(tokens) - 2, 0)]


def test_delayed_codebooks_are_waited_for() -> None:
    """The codes are looked at when there may be a chunk, not at every symbol."""
    voice, late = Voice(), Late()
    stream = AudioStream(voice.codec, late, Windows(chunk=4, before=3, behind=3), {})
    heard = [stream.push(OFFSET + place % CODES) for place in range(40)]
    assert [place for place, one in enumerate(heard) if one is not None][:3] == [8, 12, 16]
    assert len(late.asked) < 25
    rest = stream.finish()
    found = joined([one for one in (*heard, rest) if one is not None])
    codes = torch.arange(38)[:, None] % CODES
    assert torch.allclose(found.waveform, voice.codec.decode(codes), atol=1e-6)


def test_a_codec_that_hears_everything_is_cut_off_without_clicks() -> None:
    """The chunks come near the whole, and no seam is louder than what is around it."""
    voice = Voice(TinyCodec(whole=0.5))
    windows = Windows.of(voice.codec)
    assert (windows.chunk, windows.before, windows.behind) == (16, 100, 12)
    generator = generator_of(voice, chunk=4, around=(8, 4))
    whole = generator.generate(TEXT, drafter=None).output.waveform
    found = joined(chunks_of(generator)).waveform
    error = (found - whole).abs()
    assert 1e-4 < float(error.max()) < 0.5 * float(whole.abs().max())
    # An error that changes slowly is no click: it never jumps by more than a little.
    assert float(error.diff().abs().max()) < 0.2 * float(whole.diff(dim=1).abs().max())


def test_windows_that_cannot_be() -> None:
    wrong: list[dict[str, Any]] = [{"chunk": 0}, {"around": (-1, 2)}]
    for options in wrong:
        with pytest.raises(UsageError, match="A chunk is one frame at least"):
            Speech(Voice(), **options)


def test_a_delivery_knows_when_it_stalled() -> None:
    times = iter([0.0, 1.0, 1.5, 9.0])
    found = Delivery(lambda: next(times))
    assert found.to_dict() == dict.fromkeys(found.to_dict(), 0.0)
    for seconds in (2, 2, 1):
        found.note(Audio(torch.zeros(1, seconds * RATE), RATE))
    assert found.to_dict() == {
        "seconds": 9.0,
        "duration": 5.0,
        "first_audio": 1.0,
        "real_time_factor": 1.8,
        "worst_gap": 7.5,
        "stalled": 4.0,
    }


def test_edges_are_soft() -> None:
    found = softened(Audio(torch.ones(1, 3 * 40), RATE), 0.01).waveform[0]
    assert float(found[0]) < 0.01 > float(found[-1]) and bool((found[40:-40] == 1).all())
    assert bool((found[:40].diff() > 0).all()) and torch.allclose(found, found.flip(0))
    assert softened(Audio(torch.ones(1, 1), RATE)).waveform.tolist() == [[1.0]]


# ---- texts of any length


def test_long_texts_are_said_one_after_the_other() -> None:
    generator = generator_of(Voice())
    found = speak(generator, LONG)
    said = ["The quick brown fox.", "It jumps over", "two dogs!", "And more, really."]
    assert [one.text for one in found.utterances] == said and found.complete
    pauses = sum(one.pause for one in found.utterances)
    sounds = sum(one.output.duration for one in found.results)
    assert pauses == pytest.approx(SENTENCE + CLAUSE + PARAGRAPH)
    assert found.audio.duration == pytest.approx(sounds + pauses)
    for number, one in enumerate(found.results):
        alone = generator.generate(said[number], sampling=ms.Sampling(sample=number))
        assert one.tokens.equal(alone.tokens)


def test_several_at_once_are_the_same(whole: Spoken) -> None:
    generator = generator_of(Voice())
    several = speak(generator, LONG, voice="bert", drafter=None, together=3)
    one = whole
    assert one.audio.waveform.equal(several.audio.waveform)
    assert len(several.delivery.arrivals) == 2
    with pytest.raises(UsageError, match="together is how many utterances are made at once"):
        speak(generator, LONG, together=0)


@pytest.fixture(scope="module")
def whole() -> Spoken:
    return speak(generator_of(Voice()), LONG, voice="bert", together=4)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_chunks_of_a_long_text_join_to_it(whole: Spoken, chunk: int) -> None:
    said = speaking(generator_of(Voice(), chunk=chunk), LONG, voice="bert")
    heard = list(said)
    found = joined(heard).waveform
    assert torch.allclose(found, whole.audio.waveform, atol=1e-6)
    assert said.result.audio.waveform.equal(whole.audio.waveform) and said.result.complete
    assert said.finished == len(said.utterances) == 4
    assert said.result.delivery.duration == pytest.approx(whole.audio.duration)


def test_utterances_join_without_clicks(whole: Spoken) -> None:
    """Each of them begins and ends in silence."""
    found = whole
    start = 0
    for one, utterance in zip(found.results, found.utterances, strict=True):
        end = start + one.output.waveform.shape[1]
        sound = found.audio.waveform[0, start:end]
        assert float(sound[[0, -1]].abs().max()) < 0.02 * float(one.output.waveform.abs().max())
        start = end + round(utterance.pause * RATE)
        assert float(found.audio.waveform[0, end:start].abs().sum()) == 0
    assert start == found.audio.waveform.shape[1]


def test_a_short_text_is_what_generate_makes_of_it() -> None:
    generator = generator_of(Voice())
    sampling = ms.Sampling(seed=3)
    found = speak(generator, TEXT, sampling=sampling)
    alone = generator.generate(TEXT, sampling=sampling)
    assert found.results[0].tokens.equal(alone.tokens)
    assert torch.allclose(found.audio.waveform[0, 40:-40], alone.output.waveform[0, 40:-40])


def test_what_was_said_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in mid-sentence: the sound so far; broken off: a result for each utterance so far."""
    generator = generator_of(Voice(), chunk=4)
    said = speaking(generator, LONG, drafter=None)
    heard = [next(said) for _ in range(3)]
    part = said.result
    assert not part.complete and len(part.results) == 1 and part.results[0].finish_reason == "interrupted"
    assert part.audio.duration >= sum(one.duration for one in heard)
    original, made = Generator.generate, list[int]()

    def third_time(self: Generator, *arguments: Any, **settings: Any) -> Any:
        made.append(0)
        if len(made) == 3:
            raise GenerationError("out of luck")
        return original(self, *arguments, **settings)

    monkeypatch.setattr(Generator, "generate", third_time)
    with pytest.raises(GenerationError, match="out of luck") as caught:
        speak(generator, LONG)
    assert [one.finish_reason for one in caught.value.partial] == ["stop", "stop"]


def test_an_interrupt_ends_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the utterance in which it came, with what there is; nothing is begun after it."""
    generator = generator_of(Voice())
    inner = generator.target.begin

    def begin(prompts: Any, capacity: Any, nodes: int) -> Any:
        session = inner(prompts, capacity, nodes)
        score, calls = session.score, list[int]()

        def sixth(*arguments: Any) -> Any:
            calls.append(0)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return score(*arguments)

        monkeypatch.setattr(session, "score", sixth)
        return session

    monkeypatch.setattr(generator.target, "begin", begin)
    for found in (speak(generator, LONG, drafter=None), drained(speaking(generator, LONG, drafter=None))):
        assert [one.finish_reason for one in found.results] == ["interrupted"] and not found.complete
        assert len(found.results[0].tokens) == 6


def drained(said: Any) -> Any:
    for _ in said:
        pass
    return said.result


# ---- what is refused


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (3.5, "Speech is asked for by a text"),
        ({"text": 3}, "Speech is asked for by a text"),
        ({"text": "hi", "speaker": "anna"}, "Speech is asked for by a text"),
        (
            "a text of more than twenty letters",
            "One utterance of this voice has 20 characters at most: got 34",
        ),
        ("555", "has 20 characters at most: got 23"),
    ],
)
def test_prompts_that_are_no_utterances(prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generator_of(Voice()).generate(prompt)


def test_voices_that_are_not_there() -> None:
    with pytest.raises(UnknownNameError, match="Unknown voice 'ana'. Did you mean 'anna'"):
        generator_of(Voice()).generate({"text": "hi", "voice": "ana"})
    with pytest.raises(UsageError, match="one voice, without a name: got voice='anna'"):
        speak(generator_of(Voice(voices=())), "hi", voice="anna")


def test_stop_strings_are_refused(generator: Generator) -> None:
    with pytest.raises(UsageError, match="A sound holds no text to stop at"):
        generator.generate(TEXT, stop="x")


def test_only_speech_models_speak(generator: Generator) -> None:
    with pytest.raises(UsageError, match="Only a speech model speaks: got a generator of IdsOnly"):
        speak(Generator(generator.target), TEXT)
    with pytest.raises(ms.errors.UnknownNameError):
        speaking(generator, TEXT, temprature=0.5)


# ---- seeing


def test_a_picture_marks_what_drafts_gave(whole: Spoken, tmp_path: Path) -> None:
    """Each code of each frame; what is no code has no mark."""
    generator = generator_of(Voice(TinyCodec(num_codebooks=2)))
    found = generator.generate(TEXT, drafter="jacobi")
    frames = Frames.of(found)
    flags = torch.tensor(found.from_draft[:-1]).view(-1, 2)
    assert frames.drafted.equal(flags.float()) and frames.share == float(flags.float().mean())
    for name, made in (("one.png", found), ("all.svg", whole)):
        assert draw(made, tmp_path / "deep" / name).stat().st_size > 5000
    with pytest.raises(UsageError, match="Only the result of a speech generator"):
        draw(generator.generate([0, 1], max_new_tokens=2), tmp_path / "a.png")
    with pytest.raises(UsageError, match="stands for no picture: got '.doc'"):
        draw(found, tmp_path / "a.doc")


def test_a_spectrogram_shows_a_tone() -> None:
    """Its loudest place is the pitch, and silence is dark."""
    time = torch.arange(RATE) / RATE
    sound = torch.sin(2 * torch.pi * 500 * time) * (time < 0.5)
    found = spectrogram(Audio(sound[None], RATE))
    assert float(found.max()) == 0 and float(found[:, -10:].max()) == -80
    assert int(found[:, found.shape[1] // 4].argmax()) == round(500 / RATE * 1024)
    with pytest.raises(UsageError, match="A sound without samples has no spectrogram"):
        spectrogram(Audio(torch.zeros(1, 0), RATE))


# ---- loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("speech"))


def test_folders_of_speech_models_speak(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their config, as the embedded ones, and never as text; a draft model comes with its own codec."""
    generator = ms.load(folder / "target", draft=folder / "draft")
    assert isinstance(generator.modality, Speech)
    plain = generator.generate("a fox", drafter=None, sampling=ms.Sampling(seed=11))
    drafted = generator.generate("a fox", sampling=ms.Sampling(seed=11))
    assert drafted.report.draft_calls > 0 and drafted.tokens.equal(plain.tokens)
    assert drafted.output.waveform.equal(plain.output.waveform)
    monkeypatch.setattr(loading, "assets", lambda: folder.parent)
    monkeypatch.setattr(loading, "EMBEDDED", ("text", folder.name))
    assert isinstance(ms.load(folder.name).modality, Speech)
    assert not isinstance(ms.load(folder / "target", modality="text").modality, Speech)


def test_what_does_not_speak(folder: Path, tmp_path: Path) -> None:
    for modality, message in (("speech", "speaks no codes of a codec"), ("image", "draws no pictures")):
        with pytest.raises(UnsupportedError, match=f"'llama', which {message}"):
            ms.load("multispec/assets/text/target", modality=modality)
    (tmp_path / "config.json").write_text('{"model_type": "vits"}')
    kinds: tuple[str | None, ...] = (None, "speech")
    for kind in kinds:
        with pytest.raises(UnsupportedError, match="VITS cannot be run here"):
            ms.load(tmp_path, modality=kind)
    with pytest.raises(UsageError, match="read texts with a tokenizer of their own"):
        ms.load(folder / "target", tokenizer=object())
    with pytest.raises(UsageError, match=r"how it speaks.*Speech\(family\)"):
        ms.load(model=object(), modality="speech")
    with pytest.raises(ModelLoadError, match="embedded speech models are not in this installation"):
        pretend_missing(tmp_path)


def pretend_missing(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "assets", lambda: place)
        ms.load("speech")
