"""Higgs Audio v2: Boson AI (2025), a Llama with a second feed-forward path for its eight audio codebooks.

A text in chat form comes first, then steps of codes side by side, each codebook a step behind the one before
(behind a first step of starts). Entries that are audio have norms and a feed-forward layer of their own in
each layer. Every slot may say any symbol: a step behind the first end that anyone says, codebook 0 is forced
to say it too, then codebook 1 and so on; the stream ends with the step in which all do.

A code that comes for the third time within seven steps of its codebook is drawn anew from the model's own
law (``RepetitionAware``), if the checkpoint's generation settings say so; greedy decoding does without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from multispec.errors import ModelLoadError, UnsupportedError
from multispec.guidance import Guidance
from multispec.modalities.speech.families._flat import Reference, named_voice, references, words
from multispec.modalities.speech.families._slots import read_model, read_tokenizer
from multispec.modalities.speech.family import SpeechCodec
from multispec.modalities.speech.layouts import Delayed
from multispec.protocols import Target
from multispec.repetition_aware import RepetitionAware
from multispec.sampling import Sampling
from multispec.stream import Drawn, EverySlot, Forced, Prompt, Slot, StreamSpec
from multispec.targets.causal import refuse_meta
from multispec.targets.parallel_slots import Across, ParallelSlotsTarget, Start

# The codec that its authors speak through, for a folder that has none beside it.
_CODEC = "bosonai/higgs-audio-v2-tokenizer"
# What the model is asked for in its authors' examples.
_TASK, _SCENE = "Generate audio following instruction.", "Audio is recorded from a quiet room."
TEXT, HEARD = "text_ids", "heard"


def fits(config: Any) -> bool:
    """True for Higgs Audio v2."""
    return getattr(config, "model_type", None) == "higgs_audio_v2"


class HiggsSlots:
    """Higgs Audio v2 as a ``SlotModel``: the last channel of an embedding says whether it is audio."""

    def __init__(self, model: Any) -> None:
        self._model, self._body, self._config = model, model.model, model.config
        self.layers = int(model.config.num_hidden_layers)
        self.like: Tensor = self._body.embed_tokens.weight

    def start(self, prompt: Prompt) -> Start:
        """The text, with the steps of a voice where it leaves room for them; a step for every K ids."""
        ids = prompt.conditioning[TEXT].to(self.like.device)
        prefix = _flagged(self._body.embed_tokens(ids), audio=False)
        if HEARD in prompt.conditioning:
            prefix[ids == self._config.audio_token_id] = self.embed(prompt.conditioning[HEARD].to(ids))
        return Start(prefix, prompt.ids.view(-1, self._config.num_codebooks))

    def embed(self, steps: Tensor) -> Tensor:
        """The sum of the codebooks' embeddings, and a one."""
        return _flagged(self._body.embed_audio_tokens(steps), audio=True)

    def run(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Any, across: Across | None) -> Tensor:
        """All layers, each entry along its own path."""
        hidden, audio = x[..., :-1], x[..., -1] > 0
        # The layers take None for audio alone, and need not pick entries then.
        path = None if bool(audio.all()) else audio
        turned = self._body.rotary_emb(hidden, positions)
        for layer in self._body.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                audio_token_mask=path,
                position_ids=positions,
                past_key_values=cache,
                position_embeddings=turned,
            )
        normed: Tensor = self._body.norm(hidden)
        return normed

    def heads(self, hidden: Tensor) -> Tensor:
        """One projection for all codebooks."""
        logits: Tensor = self._model.audio_lm_head(hidden)
        return rearrange(logits, "... (k v) -> ... k v", k=self._config.num_codebooks)


def _flagged(embeddings: Tensor, *, audio: bool) -> Tensor:
    flag = embeddings.new_full((*embeddings.shape[:-1], 1), float(audio))
    return torch.cat([embeddings, flag], dim=-1)


@dataclass(frozen=True, kw_only=True)
class HiggsLayout:
    """K codebooks, the k-th k steps late, behind a step of starts; K symbols in a row are a step.

    ::

        step          0  1  2  3  4  5       two frames, S start, E end; in step 2 codebook 0 says it
        codebook 0    a  b  E  E  E
        codebook 1    S  a  b  E  E
        codebook 2    S  S  a  b  E

    The starts are forced, and from the ``n``-th step behind the first end on, codebooks 0 to n - 1 are forced
    to say it too. As in transformers, what lies between is up to the model; a symbol of a frame that is none
    of the codec's is taken for its last code.

    >>> layout = HiggsLayout(num_codebooks=2, codes_per_book=4, start=4, end=5, vocab_size=6)
    >>> layout.codes([0, 4, 1, 2, 5, 3, 5, 5]).tolist()
    [[0, 2], [1, 3]]
    """

    num_codebooks: int
    codes_per_book: int
    start: int
    end: int
    vocab_size: int

    @cached_property
    def _delayed(self) -> Delayed:
        """The same triangles, for an utterance that ends as it should."""
        return Delayed(
            delays=tuple(range(self.num_codebooks)),
            codes_per_book=self.codes_per_book,
            start=self.start,
            end=self.end,
            ending="every_slot",
            vocab_size=self.vocab_size,
        )

    def grammar(self, generated: Sequence[int], /) -> Forced | None:
        """Start triangle, anything, end triangle; looks at earlier steps alone."""
        count = self.num_codebooks
        step, slot = divmod(len(generated), count)
        if step < slot:
            return Forced(self.start)
        # A stream goes on for K steps at most behind the first end.
        for back in range(max(step - count, 0), step):
            if self.end in generated[back * count : (back + 1) * count]:
                return Forced(self.end) if step - back > slot else None
        return None

    @property
    def spec(self) -> StreamSpec:
        """K parallel slots that end together."""
        return StreamSpec(
            slots=(Slot(size=self.vocab_size),) * self.num_codebooks,
            parallel=True,
            delays=self._delayed.delays,
            order="delayed",
            end_ids=(self.end,),
            ended=EverySlot(ids=(self.end,), slots=self.num_codebooks),
            grammar=self.grammar,
        )

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(frame, codebook) of a position; None in the start triangle."""
        return self._delayed.coordinates(position)

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        """The codes of all frames whose every codebook has come before the last step."""
        count = self.num_codebooks
        steps = torch.tensor([*tokens], dtype=torch.long)[: len(tokens) // count * count].view(-1, count)
        over = (steps == self.end).all(-1).nonzero()
        steps = steps[: int(over[0])] if len(over) else steps
        frames = max(len(steps) - count + 1, 0)
        columns = [steps[slot : slot + frames, slot] for slot in range(count)]
        return torch.stack(columns, dim=-1).clamp(max=self.codes_per_book - 1)

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        """The steps in which these frames stand, triangles filled; ``codes`` undoes it.

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        return self._delayed.tokens(codes)


@dataclass(frozen=True)
class DrawnAgain:
    """Repetition aware sampling as Higgs Audio v2 does it: ``RepetitionAware`` in place of the warpers.

    Raises:
        UnsupportedError: min-p or typical-p, which its authors' rule has no place for.

    >>> DrawnAgain(7, 2, (1024, 1025)).drawn(Sampling(temperature=0.3)).sampling.temperature
    1.0
    """

    window: int
    repeats: int
    ignored: tuple[int, ...]

    def drawn(self, sampling: Sampling, /) -> Drawn:
        """The first draw from the nucleus that was asked for, the second from the model's own law."""
        if sampling.greedy:
            return Drawn(sampling)
        if sampling.min_p > 0 or sampling.typical_p < 1:
            raise UnsupportedError(
                "Repetition aware sampling draws from a nucleus by temperature, top_k and top_p: got min_p="
                f"{sampling.min_p}, typical_p={sampling.typical_p}. Leave these two out."
            )
        rule = RepetitionAware(
            window=self.window,
            repeats=self.repeats,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            temperature=sampling.temperature,
            ignored=self.ignored,
            top_k_first=True,
        )
        return Drawn(replace(sampling, temperature=1.0, top_k=0, top_p=1.0), (rule,))


@dataclass(frozen=True, kw_only=True)
class HiggsAudioV2:
    """A Higgs Audio v2 model as a family of speech models; ``scene`` is where it speaks.

    >>> family = HiggsAudioV2.of(model, tokenizer, codec)                      # doctest: +SKIP
    >>> Generator(family.target, Speech(family)).generate("hello")             # doctest: +SKIP
    """

    target: Target
    codec: SpeechCodec
    layout: HiggsLayout
    tokenizer: Any
    config: Any
    sampling: Sampling
    again: DrawnAgain | None = None
    heard: Mapping[str, Reference] = field(default_factory=dict)
    scene: str = _SCENE
    guidance: Guidance = field(default_factory=Guidance)
    text_limit: int = 600

    @staticmethod
    def of(
        model: Any, tokenizer: Any, codec: SpeechCodec, heard: Mapping[str, Reference] | None = None
    ) -> HiggsAudioV2:
        """Around a ``HiggsAudioV2ForConditionalGeneration``, with voices to be heard before.

        Raises:
            ModelLoadError: a model without weights, or voices that are not of whole frames.
            UnsupportedError: another codec, or a model whose symbols have no place for start and end.
        """
        refuse_meta(model)
        model, voices = model.eval(), dict(heard or {})
        layout = layout_of(model.config, codec)
        _check_voices(voices, layout.num_codebooks)
        settings = model.generation_config
        return HiggsAudioV2(
            target=ParallelSlotsTarget(HiggsSlots(model), layout.spec),
            codec=codec,
            layout=layout,
            tokenizer=tokenizer,
            config=model.config,
            sampling=Sampling(
                temperature=settings.temperature or 1.0,
                top_k=settings.top_k or 0,
                top_p=settings.top_p or 1.0,
            ),
            again=again_of(settings, layout),
            heard=voices,
        )

    @property
    def voices(self) -> Sequence[str]:
        """Pieces of speech by name; without any, it casts its own speaker."""
        return tuple(self.heard)

    def layout_of(self, prompt: Prompt, /) -> HiggsLayout:
        """The same for every prompt."""
        return self.layout

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """The text in chat form, behind the voice's own words and sound, and the step of starts.

        Raises:
            PromptError: a text that the tokenizer cannot read.
            UnknownNameError: an unknown voice.
            ModelLoadError: a tokenizer without the model's chat form.
        """
        words(self.tokenizer, text)  # refuses what is no text
        reference = named_voice(self.heard, voice)
        ids = self._chat(text, reference)
        conditioning: dict[str, Tensor] = {}
        if reference is not None:
            steps = self._steps(reference)
            place = ids.index(self.config.audio_token_id)
            ids[place : place + 1] = [self.config.audio_token_id] * len(steps)
            conditioning[HEARD] = steps
        conditioning[TEXT] = torch.tensor(ids)
        again, spec = self.again, self.layout.spec
        return Prompt(
            ids=torch.full((self.layout.num_codebooks,), self.layout.start),
            conditioning=conditioning,
            spec=spec if again is None else replace(spec, drawing=again.drawn),
            text=text,
        )

    def _chat(self, text: str, reference: Reference | None) -> list[int]:
        parts = [("system", "text", _TASK), ("scene", "text", self.scene)]
        if reference is not None:
            parts += [("user", "text", reference.text), ("assistant", "audio", "voice.wav")]
        parts.append(("user", "text", text))
        names = {"text": "text", "audio": "url"}
        chat = [
            {"role": role, "content": [{"type": kind, names[kind]: content}]} for role, kind, content in parts
        ]
        ids = self._written(chat)
        begin, audio = self.config.audio_bos_token_id, self.config.audio_token_id
        if ids.count(audio) != (reference is not None):
            raise ModelLoadError(
                f"The chat template of this tokenizer writes {ids.count(audio)} symbols of id {audio} for "
                f"{int(reference is not None)} pieces of speech. Load the one that was published with the "
                "model."
            )
        return ids if ids[-1] == begin else [*ids, begin]

    def _written(self, chat: list[dict[str, Any]]) -> list[int]:
        try:
            found = self.tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except ValueError as error:
            raise ModelLoadError(
                f"The tokenizer of this Higgs Audio has no chat template: {str(error).splitlines()[0]} Copy "
                "chat_template.jinja beside it."
            ) from error
        return [int(one) for one in found["input_ids"]]

    def _steps(self, reference: Reference) -> Int[Tensor, "S K"]:
        """A piece of speech between a step of starts and one of ends, as the model has heard it."""
        layout, count = self.layout, self.layout.num_codebooks
        codes = torch.tensor(reference.codes).view(-1, count)
        steps = layout.tokens(codes).view(-1, count)
        edges = [torch.full((1, count), symbol) for symbol in (layout.start, layout.end)]
        return torch.cat([edges[0], steps, edges[1]])

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The prompt of a negative text.

        Raises:
            UnsupportedError: none is given, and the model was never trained without a text.
        """
        if negative is None:
            raise UnsupportedError(
                "Higgs Audio was never trained without a text, so there is nothing to guide away from. Leave "
                "guidance at 1, or give a negative text."
            )
        return replace(self.prompt(negative), guidance=None)


def layout_of(config: Any, codec: SpeechCodec) -> HiggsLayout:
    """The layout of a config, whose symbols are the codec's codes, a start and an end.

    Raises:
        UnsupportedError: another codec, or no place for start and end.
    """
    books, size = int(config.num_codebooks), int(config.codebook_size)
    start, end = int(config.audio_stream_bos_id), int(config.audio_stream_eos_id)
    if codec.num_codebooks != books or codec.cardinality > min(start, end) or max(start, end) >= size:
        raise UnsupportedError(
            f"This Higgs Audio speaks {books} codebooks of {size} symbols, start {start} and end {end} among "
            f"them: got a codec of {codec.num_codebooks} codebooks of {codec.cardinality}. Use the one it "
            "was trained with, and a config whose codebook_size counts start and end."
        )
    return HiggsLayout(
        num_codebooks=books, codes_per_book=codec.cardinality, start=start, end=end, vocab_size=size
    )


def again_of(settings: Any, layout: HiggsLayout) -> DrawnAgain | None:
    """What a checkpoint's generation settings say of repeated codes; None where they say nothing."""
    window = getattr(settings, "ras_win_len", None)
    repeats = getattr(settings, "ras_win_max_num_repeat", None)
    if window is None or repeats is None:
        return None
    return DrawnAgain(int(window), int(repeats), (layout.start, layout.end))


def _check_voices(voices: Mapping[str, Reference], books: int) -> None:
    ragged = [name for name, one in voices.items() if not one.codes or len(one.codes) % books]
    if ragged:
        raise ModelLoadError(
            f"The voice {ragged[0]!r} has {len(voices[ragged[0]].codes)} codes: expected whole frames of "
            f"{books}, frame by frame (codec.encode(waveform).flatten().tolist())."
        )


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> HiggsAudioV2:
    """The model, tokenizer and voices of a folder or hub id; its codec from ``codec``, or as published.

    Raises:
        ModelLoadError: it cannot be read.
    """
    from transformers import HiggsAudioV2ForConditionalGeneration

    from multispec.modalities.speech.codecs.higgs_audio import HiggsAudioCodec

    model = read_model(HiggsAudioV2ForConditionalGeneration, name_or_path, device, dtype)
    beside, books = Path(name_or_path) / "codec", int(model.config.num_codebooks)
    place = beside if beside.is_dir() else _CODEC
    codec = HiggsAudioCodec.load(place, device=model.device, num_codebooks=books)
    return HiggsAudioV2.of(model, read_tokenizer(name_or_path), codec, references(name_or_path))
