"""Qwen3-Omni: Xu et al. (2025), arXiv 2509.17765, section 2.4. A talker says the first of several codes a
frame, and a code predictor the others.

A frame's input is the sum of the embeddings of its codes, and of what the t-th symbol of the text is to the
talker (of padding, behind the text). That follows from the number of the frame alone, so nothing has to be
rolled back. The model's own generate runs its code predictor inside ``prepare_inputs_for_generation``, with
settings of its own; here every code is an ordinary symbol under the settings of the request. A repetition
penalty, which its authors put on the first codes, would look at all of them, so none is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, Qwen3OmniMoeForConditionalGeneration

from multispec.cache import RaggedCache
from multispec.errors import PromptError, UnknownNameError, UnsupportedError
from multispec.guidance import Guidance
from multispec.modalities.speech.codecs._checks import check_codes, sound
from multispec.modalities.speech.families._flat import words
from multispec.modalities.speech.families._two_level import checked, mask_of, read_part, read_pretrained
from multispec.modalities.speech.layouts import Levels
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.targets.causal import attention_of, refuse_meta
from multispec.targets.masks import Attention, Pass
from multispec.targets.two_level import TwoLevelTarget

INPUTS, REPLY, PAD = "inputs_embeds", "reply", "pad"
RATE = 24000
DEFAULT_SPEAKER = "ethan"


def fits(config: Any) -> bool:
    """True for a Qwen3-Omni with a talker."""
    return getattr(config, "model_type", None) == "qwen3_omni_moe" and bool(config.enable_audio_output)


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Qwen3Omni:
    """The model of a folder or hub id.

    Raises:
        ModelLoadError: a part that is missing or cannot be read.
        UnsupportedError: a talker that cannot be run over ragged rows.
    """
    model = read_pretrained(
        Qwen3OmniMoeForConditionalGeneration,
        name_or_path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = read_part(AutoTokenizer, name_or_path, "tokenizer.json", trust_remote_code=trust_remote_code)
    return Qwen3Omni.from_model(model, tokenizer)


class TalkerTime:
    """The talker as a ``TimeModel``: prompts hold ``inputs_embeds``, ``reply`` and ``pad [N, C]``."""

    def __init__(self, talker: Any) -> None:
        self._talker, self._body = talker, talker.model
        self._books = talker.code_predictor.model.codec_embedding
        self.layers = int(talker.config.text_config.num_hidden_layers)
        self.attention = attention_of(talker.model)
        self.like: Tensor = talker.codec_head.weight

    def prompt(self, prompt: Prompt) -> Tensor:
        """What the thinker's embeddings were made into.

        Raises:
            PromptError: a prompt of ids alone.
        """
        if INPUTS not in prompt.conditioning:
            raise PromptError(
                f"The talker of Qwen3-Omni hears embeddings, not ids: got {sorted(prompt.conditioning)}, "
                f"expected {INPUTS}, {REPLY} and {PAD}. Make prompts by the family's prompt(text)."
            )
        return prompt.conditioning[INPUTS].to(self.like)

    def frames(self, codes: Tensor, first: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        """All codes of a frame together, and the text that goes with it."""
        found: Tensor = self._body.codec_embedding(codes[..., 0])
        for level, book in enumerate(self._books, 1):
            # Drafts may hold symbols that no codebook but the first has; they are never accepted.
            found = found + book(codes[..., level].clamp(max=book.num_embeddings - 1))
        return found + torch.stack(
            [self._heard(one, begin, codes.shape[1]) for one, begin in zip(prompts, first, strict=True)]
        )

    def _heard(self, prompt: Prompt, first: int, count: int) -> Tensor:
        reply, pad = prompt.conditioning[REPLY].to(self.like), prompt.conditioning[PAD].to(self.like)
        behind = reply[first : first + count]
        return torch.cat([behind, pad.expand(count - len(behind), -1)])

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
        """The first codebook, and the end."""
        found: Tensor = self._talker.codec_head(states)
        return found


class PredictorDepth:
    """The code predictor as a ``DepthModel``."""

    lead = 1
    lockstep = False

    def __init__(self, talker: Any) -> None:
        self._first = talker.model.codec_embedding
        self._body, self._heads = talker.code_predictor.model, talker.code_predictor.lm_head
        self.layers = int(self._body.config.num_hidden_layers)
        self.attention: Attention = attention_of(talker.code_predictor)
        self.like: Tensor = self._heads[0].weight

    def __call__(self, states: Tensor, codes: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """All layers; entry 0 is the talker's state, entry e the code of codebook e - 1."""
        places = step.positions(codes.device)
        inputs = torch.where((places == 0)[..., None], states[:, None], self._embedded(codes, places))
        out = self._body(
            inputs_embeds=inputs,
            attention_mask=mask_of(step),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        found: Tensor = out.last_hidden_state
        return found

    def _embedded(self, codes: Tensor, places: Tensor) -> Tensor:
        found: Tensor = self._first(codes)
        for level, book in enumerate(self._body.codec_embedding, 1):
            here = (places == level + 1)[..., None]
            if bool(here.any()):
                found = torch.where(here, book(codes.clamp(max=book.num_embeddings - 1)), found)
        return found

    def head(self, found: Tensor, slot: int) -> Tensor:
        """A head for each codebook but the first."""
        logits: Tensor = self._heads[slot - 1](found)
        return logits


@dataclass(frozen=True)
class Code2Wav:
    """Codes to sound by the ``Qwen3OmniMoeCode2Wav`` of a model; it has no encoder."""

    model: Any
    sampling_rate: int = RATE

    @property
    def num_codebooks(self) -> int:
        """Codebooks of a frame."""
        return int(self.model.config.num_quantizers)

    @property
    def cardinality(self) -> int:
        """Entries of each codebook."""
        return int(self.model.config.codebook_size)

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return int(self.model.total_upsample)

    @property
    def reach(self) -> tuple[int, int]:
        """Windows of attention and 16 frames of convolutions; a frame behind, for the last samples."""
        config = self.model.config
        return int(config.sliding_window) * int(config.num_hidden_layers) + 16, 1

    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """The embedding of each code."""
        weights: Tensor = self.model.code_embedding.weight.detach()
        return weights.view(self.num_codebooks, self.cardinality, -1)[level]

    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """Not there.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "The codec of Qwen3-Omni was published without its encoder, so sound cannot become codes. Use "
            "another codec for that (EnCodec, Mimi)."
        )

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1].

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        check_codes(codes, self.num_codebooks, self.cardinality)
        if not len(codes):
            return torch.zeros(1, 0)
        given = codes.T[None].to(self.model.code_embedding.weight.device)
        return sound(self.model.chunked_decode(given)[0], len(codes) * self.hop)


@dataclass(frozen=True, kw_only=True)
class Qwen3Omni:
    """The talker of a Qwen3-Omni as a family: it says the text as if the thinker had said it.

    >>> family = Qwen3Omni.from_model(model, tokenizer)                        # doctest: +SKIP
    >>> Generator(family.target, Speech(family)).generate("hello")             # doctest: +SKIP
    """

    target: TwoLevelTarget
    codec: Code2Wav
    model: Any
    tokenizer: Any
    sampling: Sampling = Sampling(temperature=0.9, top_k=50)
    guidance: Guidance = field(default_factory=Guidance)
    text_limit: int = 600

    @staticmethod
    def from_model(model: Any, tokenizer: Any) -> Qwen3Omni:
        """Around a ``Qwen3OmniMoeForConditionalGeneration`` and its tokenizer.

        Raises:
            ModelLoadError: a model without weights.
            UnsupportedError: no talker, or one that cannot be run over ragged rows.
        """
        if not model.has_talker:
            raise UnsupportedError(
                "This Qwen3-Omni has no talker (enable_audio_output is false), so it cannot speak. Load the "
                "complete checkpoint."
            )
        refuse_meta(model)
        return Qwen3Omni(
            target=talker_target(model.eval().talker),
            codec=Code2Wav(model.code2wav),
            model=model,
            tokenizer=tokenizer,
        )

    @property
    def voices(self) -> Sequence[str]:
        """The speakers of the config, that of the model's own generate first."""
        known = self.model.config.talker_config.speaker_id or {}
        return tuple(sorted(known, key=lambda name: name != DEFAULT_SPEAKER))

    @cached_property
    def _layout(self) -> Levels:
        return talker_layout(self.model.talker.config)

    def layout_of(self, prompt: Prompt, /) -> Levels:
        """The same for every prompt."""
        return self._layout

    @torch.inference_mode()
    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """What the talker hears when the thinker has said this text, asked by the text itself.

        Raises:
            PromptError: a text that the tokenizer cannot read.
            UnknownNameError: an unknown voice.
        """
        speakers, config = self.model.config.talker_config.speaker_id or {}, self.model.config
        if voice is not None and voice not in speakers:
            raise UnknownNameError("voice", voice, speakers)
        speaker = speakers[voice or self.voices[0]]
        said, newline = (
            words(self.tokenizer, text),
            self.tokenizer("\n", add_special_tokens=False)["input_ids"],
        )
        begin, end = config.im_start_token_id, config.im_end_token_id
        asked = [begin, config.user_token_id, *newline, *said, end, *newline]
        reply = [begin, config.assistant_token_id, *newline[:1], *said]
        # The model's own: the user's part, then the reply's first symbol under the speaker.
        embed, project = self.model.thinker.get_input_embeddings(), self.model.talker.text_projection
        specials = [config.tts_bos_token_id, config.tts_eos_token_id, config.tts_pad_token_id]
        device = embed.weight.device
        user, own, special = (
            project(embed(torch.tensor([ids], device=device))) for ids in (asked, reply, specials)
        )
        bos, eos, pad = special.chunk(3, dim=1)
        start, _, trailing = self.model._get_talker_assistant_parts(
            0, len(reply), speaker, embed(torch.tensor([reply], device=device)), pad, bos, eos
        )
        inputs = torch.cat([user, start], 1)[0]
        conditioning = {INPUTS: inputs, REPLY: trailing[0], PAD: pad[0]}
        # The talker has no ids of its own for a prompt; these count its positions.
        ids = torch.full((len(inputs),), int(config.talker_config.codec_pad_id))
        return Prompt(ids=ids, conditioning=conditioning, spec=self._layout.spec, text=text)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The prompt of a negative text.

        Raises:
            UnsupportedError: none is given, and the model was never trained without a text.
        """
        if negative is None:
            raise UnsupportedError(
                "The talker of Qwen3-Omni was never trained without a text, so there is nothing to guide "
                "away from. Leave guidance at 1, or give a negative text."
            )
        return replace(self.prompt(negative), guidance=None)


def talker_layout(config: Any) -> Levels:
    """The stream of a talker: codes of the predictor's vocabulary, and the end in the first slot."""
    return Levels(
        num_codebooks=int(config.num_code_groups),
        codes_per_book=int(config.code_predictor_config.vocab_size),
        vocab_size=int(config.text_config.vocab_size),
        end=int(config.codec_eos_token_id),
        prompt_size=int(config.text_config.vocab_size),
    )


def talker_target(talker: Any) -> TwoLevelTarget:
    """The target of a ``Qwen3OmniMoeTalkerForConditionalGeneration``, compared with its plain passes.

    Raises:
        UnsupportedError: it cannot be run over ragged rows.
    """
    spec, size = talker_layout(talker.config).spec, int(talker.config.text_config.hidden_size)
    limit = int(talker.config.text_config.max_position_embeddings)
    target = TwoLevelTarget("Qwen3-Omni's talker", TalkerTime(talker), PredictorDepth(talker), spec, limit)
    heard = torch.randn(8, size, generator=torch.Generator().manual_seed(0))
    prompts = [
        Prompt(ids=torch.zeros(count, dtype=torch.long), conditioning=_trial(heard, count))
        for count in (4, 2)
    ]
    return checked(target, prompts, lambda prompt, codes: _own_logits(talker, prompt, codes))


def _trial(heard: Tensor, count: int) -> dict[str, Tensor]:
    return {INPUTS: heard[:count], REPLY: heard[5:6], PAD: heard[7:]}


def _own_logits(talker: Any, prompt: Prompt, codes: Sequence[int]) -> Tensor:
    """By plain passes of both models, without a cache."""
    books, like = int(talker.config.num_code_groups), talker.codec_head.weight
    embeddings = [talker.model.codec_embedding, *talker.code_predictor.model.codec_embedding]
    inputs = prompt.conditioning[INPUTS].to(like)
    reply, pad = prompt.conditioning[REPLY].to(like), prompt.conditioning[PAD].to(like)
    ids = torch.tensor(codes, dtype=torch.long, device=like.device)
    whole = len(codes) // books * books
    for number, frame in enumerate(ids[:whole].view(-1, books)):
        heard = reply[number] if number < len(reply) else pad[0]
        own = torch.stack([book(code) for book, code in zip(embeddings, frame, strict=True)]).sum(0)
        inputs = torch.cat([inputs, (own + heard)[None]])
    state = talker.model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[:, -1:]
    if whole == len(codes):
        first: Tensor = talker.codec_head(state)[0, -1]
        return first
    begun = [book(code) for book, code in zip(embeddings, ids[whole:], strict=False)]
    entries = torch.cat([state, torch.stack(begun)[None]], 1)
    logits: Tensor = talker.code_predictor(inputs_embeds=entries, use_cache=False).logits[0, -1]
    return logits
