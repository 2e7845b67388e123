"""Words: whole characters, stop strings, chat templates, streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multispec as ms
from multispec.errors import UsageError
from multispec.modalities.text import Detokenizer, StopStrings, Text, TextStream
from multispec.stream import Slot, StreamSpec
from multispec.testing import FakeModel, ScriptedDrafter, ScriptedModel
from tests.models import words, zoo

TRICKY = "naïve 日本語 🙂👩‍👩‍👧 the fox\n\nŁódź ½"
TEXTS = st.text(alphabet=st.sampled_from("abc thequickfox .,\n日本語🙂👩‍é½ñ한글"), max_size=30)


def _ids(text: str) -> list[int]:
    found: list[int] = words.byte_level()(text, add_special_tokens=False)["input_ids"]
    return found


def _pushed(ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(words.byte_level(), context or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


# ---- characters ----


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_deltas_are_whole_characters_that_join_to_the_text(text: str) -> None:
    """Byte-level symbols cut characters anywhere; deltas never do."""
    deltas = _pushed(_ids(text))
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(3, 258), max_size=12))
def test_any_symbols_at_all_join_to_their_decoding(ids: list[int]) -> None:
    """Bytes that are no text (a random model emits them) come out as the whole decoding has them."""
    assert "".join(_pushed(ids)) == words.byte_level().decode(ids)


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(0, 60))
def test_a_prompt_may_end_inside_a_text(text: str, cut: int) -> None:
    """With the prompt's last symbols as context, the deltas are what the whole text has after them."""
    ids = _ids("the fox " + text)
    cut = min(cut, len(ids))
    whole, before = words.byte_level().decode(ids), words.byte_level().decode(ids[:cut])
    if "\ufffd" not in before:
        assert before + "".join(_pushed(ids[cut:], ids[:cut])) == whole


def test_one_symbol_at_a_time_shows_nothing_until_a_character_is_complete() -> None:
    """An emoji of four bytes: three empty deltas, then the emoji."""
    alphabet = words.byte_level().get_vocab()
    raw = {bytes([n]): c for n, c in enumerate(_byte_names())}
    ids = [alphabet[raw[bytes([byte])]] for byte in "🙃".encode()]
    assert _pushed(ids) == ["", "", "", "🙃", ""]


def _byte_names() -> list[str]:
    """How byte-level vocabularies write the bytes 0 to 255."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown}
    names |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [names[byte] for byte in range(256)]


def test_half_a_character_at_the_end_is_shown_as_broken_not_lost() -> None:
    """A text that ends inside a character says so at the end."""
    ids = _ids("a🙃")
    assert "".join(_pushed(ids[:-1])) == words.byte_level().decode(ids[:-1])


@pytest.mark.parametrize("context", [[], ["the", "quick"]])
def test_a_leading_space_is_kept_behind_a_prompt_and_dropped_at_the_start(context: list[str]) -> None:
    """Sentence pieces carry the space before a word; only the first word of a text loses it."""
    tokenizer = words.sentence_pieces()
    known = tokenizer.get_vocab()
    before = [known[f"▁{word}"] for word in context]
    detokenizer = Detokenizer(tokenizer, before)
    deltas = [detokenizer.push(known[f"▁{word}"]) for word in ("brown", "fox")]
    assert deltas == ([" brown", " fox"] if context else ["brown", " fox"])


# ---- stop strings ----


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.lists(st.text(alphabet="the fox🙂日本語\n", min_size=1, max_size=4), min_size=1, max_size=2))
def test_the_stream_is_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    """Whatever the pieces: deltas join to the text cut at the stop string that is complete first."""
    stream, shown, pushed = TextStream(words.byte_level(), stops), "", Detokenizer(words.byte_level(), [])
    read, cut = "", None
    for token in _ids(text):
        shown += stream.push(token)
        assert not any(stop in shown for stop in stops)
        read += pushed.push(token)
        if cut is None:
            # Of two stop strings, one within the other, the shorter may be complete a symbol earlier.
            cut = min((read.find(stop) for stop in stops if stop in read), default=None)
    shown += stream.finish()
    assert shown == text[:cut]


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.text(alphabet="the fox🙂日本語\n", min_size=1, max_size=4))
def test_the_rule_fires_at_the_symbol_that_completes_the_stop(text: str, stop: str) -> None:
    """Not a symbol later, also where the stop lies across symbols or inside one."""
    rule, ids = StopStrings(words.byte_level(), [stop]), _ids(text)
    fired = [rule(ids[: n + 1], torch.zeros(1)) for n in range(len(ids))]
    whole = [words.byte_level().decode(ids[: n + 1]) for n in range(len(ids))]
    expected = next((n for n, one in enumerate(whole) if stop in one.rstrip("\ufffd")), None)
    assert (fired.index(True) if True in fired else None) == expected


def test_text_that_may_begin_a_stop_is_held_back_and_released() -> None:
    """ "sto" is held back while "stop" may come; "stone" releases it."""
    tokenizer = words.letters()
    stream = TextStream(tokenizer, ["stop"])
    deltas = [stream.push(token) for token in tokenizer("a stone")["input_ids"]]
    assert deltas == ["a", " ", "", "", "", "ston", "e"]
    stream = TextStream(tokenizer, ["stop"])
    deltas = [stream.push(token) for token in tokenizer("a stop!")["input_ids"]]
    assert "".join(deltas) == "a " and stream.finish() == ""


def _scripted(text: str, vocab_size: int = 340) -> tuple[ms.Generator, list[int]]:
    """A generator that emits ``text``, again and again."""
    ids = _ids(text)
    return ms.Generator(ScriptedModel(ids, vocab_size), Text(words.byte_level())), ids


@pytest.mark.parametrize("drafted", [0, 1, 3, 8])
@pytest.mark.parametrize("stop", ["fox", "ox", " lazy", "lazy dog", "🙂 b", "\n\n", "日本"])
def test_a_stop_inside_a_draft_ends_the_output_there(stop: str, drafted: int) -> None:
    """The output and the deltas end before the stop; the tokens end with the symbol that completes it."""
    text = "the quick fox jumps over a lazy dog 🙂 bye\n\n日本語 and more"
    generator, ids = _scripted(text)
    drafter = ScriptedDrafter(ids, num_draft_tokens=drafted) if drafted else None
    settings: dict[str, Any] = {"drafter": drafter, "stop": stop, "max_new_tokens": len(ids)}
    result = generator.generate("a", **settings)
    assert result.output == text[: text.index(stop)]
    assert result.finish_reason == "stop"
    shortest = next(n for n in range(len(ids)) if stop in words.byte_level().decode(ids[:n]))
    assert result.tokens.tolist() == ids[:shortest]
    assert "".join(step.delta for step in generator.stream("a", **settings)) == result.output


def test_stops_may_differ_per_prompt() -> None:
    """A list of lists is one entry per prompt."""
    generator, _ = _scripted("the quick fox jumps")
    found = generator.generate(["a", "b", "c"], stop=[["quick"], [" fox", "the q"], []], max_new_tokens=12)
    assert [one.output for one in found][:2] == ["the ", ""]
    assert found[2].finish_reason == "length"


def test_the_stop_strings_of_a_generation_config_count_too() -> None:
    """They join those of the call."""
    from transformers import GenerationConfig

    generator, _ = _scripted("the quick fox jumps")
    config = GenerationConfig(stop_strings=["fox"], max_new_tokens=30)
    assert generator.generate("a", generation_config=config).output == "the quick "
    assert generator.generate("a", generation_config=config, stop="qu").output == "the "


# ---- prompts ----


def test_a_chat_is_laid_out_by_the_template() -> None:
    """Messages go through the chat template once, with the generation prompt, and no second BOS."""
    tokenizer = words.byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}bot: {% endif %}"
    )
    chat = [{"role": "user", "content": "hi 🙂"}]
    try:
        prompt = Text(tokenizer).encode(chat)
        assert tokenizer.decode(prompt.ids) == "<s>user: hi 🙂\nbot: "
        assert prompt.ids.tolist().count(tokenizer.bos_token_id) == 1
        model = ScriptedModel(_ids("hello"), 340)
        found = ms.Generator(model, Text(tokenizer)).generate([chat, chat], max_new_tokens=3)
        assert len(found) == 2 and found[0].output == found[1].output
        single = ms.Generator(model, Text(tokenizer)).generate(chat, max_new_tokens=3)
        assert single.output == found[0].output
    finally:
        tokenizer.chat_template = None


def test_special_symbols_are_not_shown() -> None:
    """The end symbol is a token of the result, and no part of its text."""
    ids = [*_ids("the fox"), 1]
    generator = ms.Generator(ScriptedModel(ids, 340, end_ids=(1,)), Text(words.byte_level()))
    result = generator.generate("a", max_new_tokens=30)
    assert result.tokens.tolist() == ids and result.output == "the fox"
    assert result.finish_reason == "stop"


def test_text_goes_to_the_encoder_of_an_encoder_decoder_model() -> None:
    """T5 through a tokenizer: the text is encoded, the decoder starts with its own symbol."""
    model, tokenizer = zoo.shared("t5"), words.letters()
    generator = ms.load(model=model, tokenizer=tokenizer)
    settings: dict[str, Any] = {"sampling": ms.Sampling(temperature=0), "max_new_tokens": 12}
    found = generator.generate(["the fox", "a dog jumps"], drafter="prompt_lookup", **settings)
    for text, result in zip(("the fox", "a dog jumps"), found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, 1:]
        assert result.tokens.tolist() == expected.tolist()
        assert result.output == tokenizer.decode(expected, skip_special_tokens=True)


# ---- streams ----


@pytest.fixture(scope="module")
def generator() -> ms.Generator:
    """A random Llama over bytes: it emits broken characters, whole ones and words."""
    return ms.load(model=zoo.build("llama", vocab_size=340), tokenizer=words.byte_level())


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("drafter", [None, "prompt_lookup"])
def test_the_deltas_of_a_stream_join_to_the_output(
    generator: ms.Generator, temperature: float, drafter: Any
) -> None:
    """Step by step, with positions and flags, and the same symbols as ``generate``."""
    settings: dict[str, Any] = {
        "drafter": drafter,
        "sampling": ms.Sampling(temperature=temperature, seed=3),
        "max_new_tokens": 30,
    }
    steps = list(generator.stream("the quick", **settings))
    result = generator.generate("the quick", **settings)
    assert [step.token for step in steps] == result.tokens.tolist()
    assert [step.position for step in steps] == list(range(30))
    assert tuple(step.from_draft for step in steps) == result.from_draft
    assert "".join(step.delta for step in steps) == result.output


def test_a_stream_of_several_prompts_names_the_row(generator: ms.Generator) -> None:
    """Rows interleave, and each joins to its own output."""
    settings: dict[str, Any] = {"sampling": ms.Sampling(seed=5), "max_new_tokens": [9, 21]}
    steps = list(generator.stream(["the fox", "日本"], **settings))
    found = generator.generate(["the fox", "日本"], **settings)
    for row, result in enumerate(found):
        own = [step for step in steps if step.row == row]
        assert [step.token for step in own] == result.tokens.tolist()
        assert "".join(step.delta for step in own) == result.output


def test_a_stream_can_be_left_and_the_generator_used_again(generator: ms.Generator) -> None:
    """A caller who stops listening leaves nothing behind."""
    settings: dict[str, Any] = {"sampling": ms.Sampling(seed=5), "max_new_tokens": 12}
    stream = iter(generator.stream("the fox", **settings))
    first = next(stream)
    del stream
    assert generator.generate("the fox", **settings).tokens[0] == first.token


class _Interrupted(FakeModel):
    """Emits a text, and is interrupted at its fifth pass."""

    def __init__(self) -> None:
        spec = StreamSpec(slots=(Slot(size=340),))
        inner = ScriptedModel(_ids("the quick fox jumps"), 340)
        self.passes = 0

        def after(prefix: Any, length: int) -> torch.Tensor:
            self.passes += 1
            if self.passes > 5:
                raise KeyboardInterrupt
            return inner.after(prefix, length)

        super().__init__(after, spec, strict=False)


def test_ctrl_c_ends_a_stream_and_keeps_what_was_made() -> None:
    """The stream just ends; ``generate`` returns the text so far, marked as interrupted."""
    steps = list(ms.Generator(_Interrupted(), Text(words.byte_level())).stream("a", drafter=None))
    result = ms.Generator(_Interrupted(), Text(words.byte_level())).generate("a", drafter=None)
    assert len(steps) == len(result.tokens) == 5
    assert result.finish_reason == "interrupted"
    assert result.output == words.byte_level().decode(result.tokens)


class _Collector:
    def __init__(self) -> None:
        self.heard: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_hears_the_prompt_the_output_and_the_end(generator: ms.Generator) -> None:
    """transformers' streamer protocol on our own generate."""
    streamer = _Collector()
    result = generator.generate("the fox", streamer=streamer, max_new_tokens=9)
    assert streamer.heard[0] == _ids("the fox")
    assert [token for heard in streamer.heard[1:] for token in heard] == result.tokens.tolist()
    assert streamer.ended


def test_a_stream_takes_no_streamer(generator: ms.Generator) -> None:
    """The option of ``generate`` that makes no sense there is refused."""
    with pytest.raises(UsageError, match="streamer"):
        generator.stream("the fox", streamer=_Collector())


def test_the_text_streamer_of_transformers_prints_the_output(
    generator: ms.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real TextStreamer that skips the prompt shows what was generated."""
    from transformers import TextStreamer

    script = _ids("the quick fox jumps over")
    scripted = ms.Generator(ScriptedModel(script, 340), Text(words.byte_level()))
    streamer = TextStreamer(words.byte_level(), skip_prompt=True)
    drafter = ScriptedDrafter(script)
    result = scripted.generate("a", streamer=streamer, drafter=drafter, max_new_tokens=len(script))
    assert capsys.readouterr().out.rstrip("\n") == result.output == "the quick fox jumps over"


@pytest.fixture(autouse=True)
def _template_free() -> Iterator[None]:
    """Tokenizers are shared: none may leave a template behind."""
    yield
    assert words.byte_level().chat_template is None
