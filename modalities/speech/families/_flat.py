"""What language models over codec symbols share: how they are told apart, read, prompted and run.

Their configs are those of text models (Llama, Qwen). What tells them apart is the symbols in their tokenizer
files, or ``"multispec": {"family": "orpheus"}`` in config.json. The codec comes from the folder ``codec``
beside config.json, else from ``"multispec": {"codec": ...}`` there, else from where its authors published it.
Voices that are a piece of speech come from ``voices/NAME.json`` with its ``text`` and ``codes``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.guidance import Guidance
from multispec.modalities.speech import codecs
from multispec.modalities.speech.family import FrameLayout, SpeechCodec
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.targets import target_for
from multispec.targets.loading import load_model

# Where a tokenizer says which symbols it has.
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "added_tokens.json")
# The ids of an utterance in a voice.
Writes = Callable[[str, str | None], Sequence[int]]


def own_settings(config: Any) -> Mapping[str, Any]:
    """The "multispec" part of a config; empty where there is none."""
    own = getattr(config, "multispec", None)
    return own if isinstance(own, Mapping) else {}


def recognised(config: Any, family: str, *symbols: str) -> bool:
    """True for a config that names this family, or whose tokenizer files hold all of these symbols."""
    named = own_settings(config)
    if "family" in named or "modality" in named:
        return bool(named.get("family") == family)
    place = getattr(config, "name_or_path", "")
    if not place:
        return False
    left = set(symbols)
    for name in _TOKENIZER_FILES:
        found = _file(place, name) if left else None
        if found is not None:
            text = found.read_bytes()
            left = {symbol for symbol in left if json.dumps(symbol).encode() not in text}
    return not left


def _file(place: str, name: str) -> Path | None:
    try:
        found = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None


def read_model(
    name_or_path: str | Path, device: Any, dtype: Any, trust_remote_code: bool
) -> tuple[Target, Any, Any]:
    """The target, the tokenizer and the config of a folder or hub id.

    Raises:
        ModelLoadError: a part that cannot be read.
    """
    model = load_model(name_or_path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raise many kinds for broken files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"No tokenizer can be read from {str(name_or_path)!r}: {first} Copy tokenizer.json and "
            "tokenizer_config.json beside the model."
        ) from error
    return target_for(model, owned=True), tokenizer, model.config


def read_codec(name_or_path: str | Path, config: Any, published: str, device: Any) -> SpeechCodec:
    """The codec of a model: beside it, where its config says, or as ``published``.

    Raises:
        ModelLoadError: it cannot be read; says where it may lie.
    """
    folder = Path(name_or_path)
    named = own_settings(config).get("codec")
    beside = folder / str(named or "codec")
    place = beside if beside.is_dir() else str(named or published)
    try:
        return codecs.load(place, device=device)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{str(name_or_path)!r} speaks through a codec of its own, which cannot be read: {error} Put it "
            f"into the folder {str(beside)!r} (it is published as {published!r})."
        ) from error


def symbol(tokenizer: Any, name: str) -> int:
    """The id of a control symbol.

    Raises:
        ModelLoadError: the tokenizer has no such symbol.
    """
    found = tokenizer.get_vocab().get(name)
    if found is None:
        raise ModelLoadError(
            f"The tokenizer has no symbol {name!r}, which this family of speech models needs. Load the "
            "tokenizer that was published with the model."
        )
    return int(found)


def segment(tokenizer: Any, pattern: str, count: int) -> int:
    """The first id of ``count`` codes named ``pattern.format(n)``, which follow each other.

    Raises:
        ModelLoadError: a code is missing, or they do not follow each other.
    """
    known = tokenizer.get_vocab()
    first = symbol(tokenizer, pattern.format(0))
    wrong = next((n for n in range(count) if known.get(pattern.format(n)) != first + n), None)
    if wrong is not None:
        name, found = pattern.format(wrong), known.get(pattern.format(wrong))
        raise ModelLoadError(
            f"The {count} codes of this model must follow each other in the vocabulary: {name!r} has the id "
            f"{found}, expected {first + wrong}. Load the tokenizer that was published with the model."
        )
    return first


def words(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """The symbols of a text, which is words alone; ``special`` adds what the tokenizer puts around them.

    Raises:
        PromptError: nothing to say, or a control symbol of the model.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    held = next((one for one in ids if one in control), None)
    if held is not None:
        raise PromptError(
            f"A text to speak is words: {text[:80]!r} holds the control symbol "
            f"{tokenizer.convert_ids_to_tokens(held)!r}. Take it out."
        )
    if not [one for one in ids if one != tokenizer.unk_token_id]:
        raise PromptError(f"The tokenizer of this model reads nothing in {text[:80]!r}. Write some words.")
    if not special:
        return ids
    whole: list[int] = tokenizer(text)["input_ids"]
    return whole


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A piece of speech whose voice a model goes on in: words, codes, and codes of the voice alone."""

    text: str
    codes: tuple[int, ...] = ()
    speaker: tuple[int, ...] = ()


def references(name_or_path: str | Path) -> dict[str, Reference]:
    """The voices in the folder ``voices`` of a model, by name.

    Raises:
        ModelLoadError: a file that says no text or no whole numbers.
    """
    return {path.stem: _reference(path) for path in sorted((Path(name_or_path) / "voices").glob("*.json"))}


def _reference(path: Path) -> Reference:
    try:
        found = json.loads(path.read_text("utf-8"))
        codes, speaker = (tuple(map(int, found.get(name, ()))) for name in ("codes", "speaker"))
        return Reference(text=str(found["text"]), codes=codes, speaker=speaker)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(
            f"{str(path)!r} describes no voice: {error!r}. It needs text, what is said, and codes, the codes "
            "of the codec for it (codec.encode(waveform)[:, 0].tolist())."
        ) from error


def named_voice(voices: Mapping[str, Reference], voice: str | None) -> Reference | None:
    """The reference of a name; the first one without a name; None where there are none.

    Raises:
        UnknownNameError: an unknown name.
    """
    if voice is None:
        return next(iter(voices.values()), None)
    if voice not in voices:
        raise UnknownNameError("voice", voice, voices)
    return voices[voice]


@dataclass(frozen=True, kw_only=True)
class FlatSpeech:
    """A language model over codec symbols, as a family of speech models.

    ``writes`` makes the ids of a text in a voice, after which the model goes on with the symbols of
    ``layout``.
    """

    name: str
    target: Target
    codec: SpeechCodec
    layout: FrameLayout
    writes: Writes
    sampling: Sampling
    voices: Sequence[str] = ()
    text_limit: int = 400
    guidance: Guidance = field(default_factory=Guidance)

    def layout_of(self, prompt: Prompt, /) -> FrameLayout:
        """The same for every prompt."""
        return self.layout

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """The ids of an utterance.

        Raises:
            PromptError: a text that the tokenizer cannot read, or that leaves no room for its sound.
            UnknownNameError: an unknown voice.
        """
        if voice is not None and voice not in self.voices:
            raise UnknownNameError("voice", voice, self.voices)
        ids = torch.tensor(list(self.writes(text, voice)), dtype=torch.long)
        limit, frame = self.target.context_length, self.layout.num_codebooks
        if limit is not None and len(ids) + frame > limit:
            raise PromptError(
                f"The context of {self.name} holds {limit} symbols: got a prompt of {len(ids)}, which leaves "
                "no room for sound. Split the text into sentences."
            )
        return Prompt(ids=ids, spec=self.layout.spec, text=text)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The prompt of a negative text.

        Raises:
            UnsupportedError: none is given, and the model was never trained without a text.
        """
        if negative is None:
            raise UnsupportedError(
                f"{self.name} was never trained without a text, so there is nothing to guide away from. "
                "Leave guidance at 1, or give a negative text."
            )
        return self.prompt(negative)


def require_codec(name: str, codec: SpeechCodec, num_codebooks: int, cardinality: int) -> None:
    """Refuse a codec that does not belong to the model.

    Raises:
        ModelLoadError: other codebooks than the model's symbols.
    """
    if (codec.num_codebooks, codec.cardinality) != (num_codebooks, cardinality):
        raise ModelLoadError(
            f"{name} speaks {num_codebooks} codes a frame of {cardinality} each: got a codec with "
            f"{codec.num_codebooks} of {codec.cardinality}. Load the codec that it was trained with."
        )
