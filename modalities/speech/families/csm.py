"""CSM: Schalkwyk et al., Sesame (2025), "Crossing the uncanny valley of conversational voice".

A Llama over frames (the backbone) says the first of 32 Mimi codes from all frames before, a small Llama (the
depth decoder) the others. A frame's input is the sum of the embeddings of its codes; the depth decoder begins
with the backbone's state. A frame of zeros ends the sound; the model's own generate does not look at the last
code of it, and neither does the stream here. A voice is a number in brackets before the text, or a piece of
speech in ``voices/NAME.json`` (``text``, and ``codes`` frame by frame) that is heard before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CsmForConditionalGeneration

from multispec.cache import RaggedCache
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.guidance import Guidance
from multispec.modalities.speech.codecs.mimi import MimiCodec
from multispec.modalities.speech.families._flat import Reference, references, words
from multispec.modalities.speech.families._two_level import (
    checked,
    explicit_mask,
    mask_of,
    read_part,
    read_pretrained,
)
from multispec.modalities.speech.layouts import Levels
from multispec.sampling import Sampling
from multispec.stream import EverySlot, Prompt, StreamSpec
from multispec.targets.causal import attention_of, context_length, refuse_meta
from multispec.targets.masks import Attention, Pass
from multispec.targets.two_level import TwoLevelTarget

CODES = "codes"
# A speaker is a number; these are offered by name.
SPEAKERS = tuple(str(number) for number in range(10))


def fits(config: Any) -> bool:
    """True for the configuration of a CSM."""
    return getattr(config, "model_type", None) == "csm"


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Csm:
    """The model of a folder or hub id; its codec lies in it.

    Raises:
        ModelLoadError: a part that is missing or cannot be read.
        UnsupportedError: a model that cannot be run over ragged rows.
    """
    model = read_pretrained(
        CsmForConditionalGeneration,
        name_or_path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = read_part(AutoTokenizer, name_or_path, "tokenizer.json", trust_remote_code=trust_remote_code)
    return Csm.from_model(model, tokenizer, references(name_or_path))


class CsmTime:
    """The backbone as a ``TimeModel``."""

    def __init__(self, model: Any) -> None:
        self._model, self._body = model, model.backbone_model
        self.layers = int(model.config.num_hidden_layers)
        self.attention = attention_of(model)
        self.like: Tensor = model.lm_head.weight

    def prompt(self, prompt: Prompt) -> Tensor:
        """Embedded text, with the frames of a voice where the ids leave room for them."""
        ids = prompt.ids.to(self.like.device)
        found: Tensor = self._model.embed_text_tokens(ids)
        if CODES not in prompt.conditioning:
            return found
        config = self._model.config
        heard = prompt.conditioning[CODES].to(ids.device)
        found[ids == config.audio_token_id] = self._body.embed_tokens(heard[None])[0]
        end = torch.full((1, 1, config.num_codebooks), config.codebook_eos_token_id, device=ids.device)
        found[ids == config.audio_eos_token_id] = self._body.embed_tokens(end)[0]
        return found

    def frames(self, codes: Tensor, first: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        """The sum of the embeddings of a frame's codes."""
        found: Tensor = self._body.embed_tokens(codes)
        return found

    def __call__(self, inputs: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """All layers."""
        out = self._body(
            inputs_embeds=inputs,
            attention_mask=mask_of(step),
            position_ids=step.positions(inputs.device),
            past_key_values=cache,
            use_cache=True,
        )
        states: Tensor = out.last_hidden_state
        return states

    def head(self, states: Tensor) -> Tensor:
        """The first codebook."""
        found: Tensor = self._model.lm_head(states)
        return found


class CsmDepth:
    """The depth decoder as a ``DepthModel``: its layers as they are, at places of our own in each row."""

    lead = 1
    lockstep = False
    attention = Attention(kinds=("full_attention",))

    def __init__(self, model: Any) -> None:
        self._body, self._heads = model.depth_decoder.model, model.depth_decoder.codebooks_head.weight
        config = model.depth_decoder.config
        self._size, self._books = int(config.vocab_size), int(config.num_codebooks)
        self.layers = int(config.num_hidden_layers)
        self.like: Tensor = self._body.inputs_embeds_projector.weight

    def __call__(self, states: Tensor, codes: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """All layers; entry 0 is the backbone's state, entry e the code of codebook e - 1."""
        body, places = self._body, step.positions(codes.device)
        slots = (places - 1).clamp(0, self._books - 1)
        inputs = body.embed_tokens(codes + slots * self._size)
        inputs = torch.where((places == 0)[..., None], states[:, None], inputs)
        hidden = body.inputs_embeds_projector(inputs)
        mask = explicit_mask(step, codes.shape[1], hidden)
        turned = body.rotary_emb(hidden, position_ids=places)
        for layer in body.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=turned,
            )
        found: Tensor = body.norm(hidden)
        return found

    def head(self, found: Tensor, slot: int) -> Tensor:
        """A head for each codebook but the first."""
        return F.linear(found, self._heads[slot - 1].T)


@dataclass(frozen=True)
class AllButLast:
    """Ends a stream with the frame whose ``slots`` all hold ``symbol``, whatever its last one holds.

    >>> AllButLast(symbol=0, slots=3)([0, 0, 7])
    True
    """

    symbol: int
    slots: int

    def __call__(self, generated: Sequence[int], /) -> bool:
        """True behind such a frame."""
        before = generated[-self.slots : -1] if len(generated) % self.slots == 0 else ()
        return len(before) > 0 and EverySlot(ids=(self.symbol,), slots=self.slots - 1)(before)


@dataclass(frozen=True, kw_only=True)
class Csm:
    """A CSM as a family of speech models.

    >>> family = Csm.from_model(model, tokenizer)                              # doctest: +SKIP
    >>> Generator(family.target, Speech(family)).generate("hello")             # doctest: +SKIP
    """

    target: TwoLevelTarget
    codec: MimiCodec
    tokenizer: Any
    config: Any
    heard: Mapping[str, Reference] = field(default_factory=dict)
    sampling: Sampling = Sampling(temperature=0.9, top_k=50)
    guidance: Guidance = field(default_factory=Guidance)
    text_limit: int = 600

    @staticmethod
    def from_model(model: Any, tokenizer: Any, heard: Mapping[str, Reference] | None = None) -> Csm:
        """Around a ``CsmForConditionalGeneration`` and its tokenizer, with voices to be heard before.

        Raises:
            ModelLoadError: a model without weights, or voices that are not of whole frames.
            UnsupportedError: a model that cannot be run over ragged rows.
        """
        refuse_meta(model)
        model, voices = model.eval(), dict(heard or {})
        books = int(model.config.num_codebooks)
        ragged = [name for name, one in voices.items() if not one.codes or len(one.codes) % books]
        if ragged:
            raise ModelLoadError(
                f"The voice {ragged[0]!r} has {len(voices[ragged[0]].codes)} codes: expected whole frames of "
                f"{books}, frame by frame (codec.encode(waveform).flatten().tolist())."
            )
        codec = MimiCodec.from_model(model.codec_model, num_codebooks=books)
        layout = _layout(model.config, codec)
        return Csm(
            target=_target(model, layout.spec),
            codec=codec,
            tokenizer=tokenizer,
            config=model.config,
            heard=voices,
        )

    @property
    def voices(self) -> Sequence[str]:
        """Pieces of speech by name, then speakers by number."""
        return (*self.heard, *SPEAKERS)

    @cached_property
    def _layout(self) -> Levels:
        return _layout(self.config, self.codec)

    def layout_of(self, prompt: Prompt, /) -> Levels:
        """The same for every prompt."""
        return self._layout

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """The speaker's number and the text; behind the voice's own, where one is heard before.

        Raises:
            PromptError: a text that the tokenizer cannot read, or that leaves no room for its sound.
            UnknownNameError: an unknown voice.
        """
        if voice is not None and voice not in self.voices:
            raise UnknownNameError("voice", voice, self.voices)
        voice = voice if voice is not None else self.voices[0]
        reference = self.heard.get(voice)
        ids, conditioning = list[int](), dict[str, Tensor]()
        speaker = voice
        if reference is not None:
            codes = torch.tensor(reference.codes).view(-1, int(self.config.num_codebooks))
            speaker, conditioning = "0", {CODES: codes}
            ids = self._said(speaker, reference.text)
            ids += [self.config.audio_token_id] * len(codes) + [self.config.audio_eos_token_id]
        ids += self._said(speaker, text)
        limit = self.target.positions
        if limit is not None and len(ids) >= limit:
            raise PromptError(
                f"The context of {self.target.name} holds {limit} symbols and frames: got a prompt of "
                f"{len(ids)}, which leaves no room for sound. Split the text into sentences."
            )
        spec = _spec(self._layout, self.config)
        return Prompt(ids=torch.tensor(ids), conditioning=conditioning, spec=spec, text=text)

    def _said(self, speaker: str, text: str) -> list[int]:
        words(self.tokenizer, text)  # refuses what is no text
        found: list[int] = self.tokenizer(f"[{speaker}]{text}")["input_ids"]
        return found

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The prompt of a negative text.

        Raises:
            UnsupportedError: none is given, and the model was never trained without a text.
        """
        if negative is None:
            raise UnsupportedError(
                "CSM was never trained without a text, so there is nothing to guide away from. Leave "
                "guidance at 1, or give a negative text."
            )
        return replace(self.prompt(negative), guidance=None)


def _layout(config: Any, codec: MimiCodec) -> Levels:
    return Levels(
        num_codebooks=int(config.num_codebooks),
        codes_per_book=min(codec.cardinality, int(config.vocab_size)),
        vocab_size=int(config.vocab_size),
        every=(int(config.codebook_eos_token_id),),
        prompt_size=int(config.text_vocab_size),
    )


def _spec(layout: Levels, config: Any) -> StreamSpec:
    ended = AllButLast(symbol=int(config.codebook_eos_token_id), slots=layout.num_codebooks)
    return replace(layout.spec, ended=ended)


def _target(model: Any, spec: StreamSpec) -> TwoLevelTarget:
    limit = context_length(model)
    target = TwoLevelTarget("CSM", CsmTime(model), CsmDepth(model), spec, limit)
    size = int(model.config.text_vocab_size)
    trial = [torch.tensor([one % size for one in ids]) for ids in ([3, 5, 7, 2], [4, 6])]
    prompts = [Prompt(ids=ids) for ids in trial]
    return checked(target, prompts, lambda prompt, codes: _own_logits(model, prompt, codes))


def _own_logits(model: Any, prompt: Prompt, codes: Sequence[int]) -> Tensor:
    """By plain passes of both models, without a cache."""
    device, books = model.lm_head.weight.device, int(model.config.num_codebooks)
    whole = len(codes) // books * books
    inputs = [model.embed_text_tokens(prompt.ids[None].to(device))]
    if whole:
        frames = torch.tensor(codes[:whole], device=device).view(1, -1, books)
        inputs.append(model.backbone_model.embed_tokens(frames))
    states = model.backbone_model(inputs_embeds=torch.cat(inputs, 1), use_cache=False).last_hidden_state
    if whole == len(codes):
        first: Tensor = model.lm_head(states[0, -1])
        return first
    ids = torch.tensor([[0, *codes[whole:]]], device=device)
    out = model.depth_decoder(input_ids=ids, backbone_last_hidden_state=states[:, -1], use_cache=False)
    logits: Tensor = out.logits[0, -1]
    return logits
