"""MusicGen and MusicGen-Melody: Copet et al. (2023), "Simple and Controllable Music Generation".

K codebooks of EnCodec side by side, each a step behind the one before (of stereo models, each pair). The
words are read by T5: MusicGen attends to them, MusicGen-Melody has them in front of the music, behind the
chroma of a melody. The other branch of guidance is given zeros in their place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.errors import PromptError
from multispec.guidance import Guidance
from multispec.modalities.speech.codecs.encodec import EncodecCodec
from multispec.modalities.speech.families._slots import (
    SlotFamily,
    only_own_voice,
    read_model,
    read_tokenizer,
)
from multispec.modalities.speech.family import FrameLayout, SpeechCodec
from multispec.modalities.speech.layouts import Delayed
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.targets.causal import refuse_meta
from multispec.targets.parallel_slots import Across, ParallelSlotsTarget, Start

_KINDS = ("musicgen", "musicgen_melody")
# Half a minute, as its authors trained it.
_SECONDS = 30


def fits(config: Any) -> bool:
    """True for MusicGen and MusicGen-Melody."""
    return getattr(config, "model_type", None) in _KINDS


class MusicgenSlots:
    """The decoder of MusicGen as a ``SlotModel``: the layers of transformers, our positions and masks."""

    def __init__(self, model: Any) -> None:
        self._model, self._decoder = model, model.decoder.model.decoder
        self._melody = model.config.model_type == "musicgen_melody"
        self.layers = len(self._decoder.layers)
        self.like: Tensor = self._decoder.embed_tokens[0].weight
        config = model.config.decoder
        # The pad is an id behind the codes, which no head can say.
        self._beside = max(config.pad_token_id + 1 - config.vocab_size, 0)

    def start(self, prompt: Prompt) -> Start:
        """The words, encoded, with zeros where the mask is 0; a step for every K ids."""
        config = self._model.config
        steps = prompt.ids.view(-1, config.decoder.num_codebooks)
        words = self._words(prompt)
        if not self._melody:
            return Start(None, steps, words)
        chroma = prompt.conditioning.get("input_features")
        melody = torch.zeros(1, config.num_chroma) if chroma is None else chroma[0]
        if chroma is None:
            melody[:, 0] = 1
        return Start(torch.cat([self._chroma(melody.to(words)), words]), steps)

    def _words(self, prompt: Prompt) -> Tensor:
        given = {
            name: prompt.conditioning[name].to(self.like.device) for name in ("input_ids", "attention_mask")
        }
        config, width = self._model.config, self._model.config.decoder.hidden_size
        mask = given["attention_mask"]
        if not bool(mask.any()):
            return torch.zeros(mask.shape[1], width).to(self.like)
        states: Tensor = self._model.text_encoder(**given).last_hidden_state
        if config.text_encoder.hidden_size != width:
            states = self._model.enc_to_dec_proj(states)
        return (states * mask[..., None])[0]

    def _chroma(self, melody: Tensor) -> Tensor:
        config = self._model.config
        if config.num_chroma != config.decoder.hidden_size:
            melody = self._model.audio_enc_to_dec_proj(melody)
        times = math.ceil(config.chroma_length / len(melody))
        return melody.repeat(times, 1)[: config.chroma_length]

    def embed(self, steps: Tensor) -> Tensor:
        """The sum of the codebooks' embeddings."""
        tables = self._decoder.embed_tokens
        return cast(Tensor, sum(table(steps[..., slot]) for slot, table in enumerate(tables)))

    def run(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Any, across: Across | None) -> Tensor:
        """All layers, with sinusoids at the positions of each row."""
        table = self._decoder.embed_positions
        longest = int(positions.max()) + 1
        if longest > len(table.weights):
            table.make_weights(longest, table.embedding_dim)
        hidden = x + table.weights[positions].to(x)
        for layer in self._decoder.layers:
            if across is None:
                hidden = layer(hidden, attention_mask=mask, past_key_values=cache, use_cache=True)[0]
            else:
                hidden = layer(
                    hidden,
                    mask,
                    across.states,
                    encoder_attention_mask=across.mask,
                    past_key_values=cache,
                    use_cache=True,
                )
        normed: Tensor = self._decoder.layer_norm(hidden)
        return normed

    def heads(self, hidden: Tensor) -> Tensor:
        """One head for each codebook."""
        logits = torch.stack([head(hidden) for head in self._model.decoder.lm_heads], dim=-2)
        return F.pad(logits, (0, self._beside), value=-torch.inf)


@dataclass(frozen=True, kw_only=True)
class Musicgen:
    """A MusicGen model; ``common`` is what all families of its kind answer alike.

    >>> family = Musicgen.of(model, tokenizer)                                     # doctest: +SKIP
    """

    target: Target
    common: SlotFamily
    tokenizer: Any
    guidance: Guidance = field(default_factory=Guidance)

    @staticmethod
    def of(
        model: Any, tokenizer: Any, codec: SpeechCodec | None = None, frames: int | None = None
    ) -> Musicgen:
        """Around a model of transformers; ``frames`` is how long its music is, else half a minute.

        Raises:
            ModelLoadError: the model has no weights.
        """
        refuse_meta(model)
        config, settings = model.config, model.generation_config
        decoder = config.decoder
        if codec is None:
            stereo = decoder.audio_channels == 2
            codec = EncodecCodec.from_model(
                model.audio_encoder, num_codebooks=decoder.num_codebooks, stereo=stereo
            )
        rate = config.audio_encoder.frame_rate
        layout = layout_of(decoder, int(_SECONDS * rate) if frames is None else frames)
        scale = settings.guidance_scale
        common = SlotFamily(codec=codec, layout=layout, sampling=Sampling(top_k=settings.top_k or 250))
        return Musicgen(
            target=ParallelSlotsTarget(MusicgenSlots(model), layout.spec),
            common=common,
            tokenizer=tokenizer,
            guidance=Guidance(scale=1.0 if scale is None or scale <= 1 else float(scale)),
        )

    @property
    def codec(self) -> SpeechCodec:
        """EnCodec."""
        return self.common.codec

    @property
    def sampling(self) -> Sampling:
        """The best 250 codes, at temperature 1."""
        return self.common.sampling

    @property
    def voices(self) -> Sequence[str]:
        """None: it makes music."""
        return ()

    @property
    def text_limit(self) -> int:
        """Descriptions are short."""
        return self.common.text_limit

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """The words for T5, and the step of pads before the first one.

        Raises:
            PromptError: nothing to read.
            UnknownNameError: a voice; it has none.
        """
        only_own_voice("MusicGen", voice)
        given = self.tokenizer(text, return_tensors="pt") if text.strip() else {}
        if not given:
            raise PromptError("MusicGen needs a description of the music: got an empty text. Describe it.")
        words = {name: given[name] for name in ("input_ids", "attention_mask")}
        return self.common.started(self.common.layout.start, conditioning=words, text=text)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """Zeros in place of the words; or other words, which music is led away from."""
        if negative is not None:
            return self.prompt(negative)
        mask = torch.zeros_like(prompt.conditioning["attention_mask"])
        words = {"input_ids": prompt.conditioning["input_ids"], "attention_mask": mask}
        return replace(prompt, conditioning=words, guidance=None, unconditional=None)

    def layout_of(self, prompt: Prompt, /) -> FrameLayout:
        """The delays, as long as the prompt's stream."""
        return self.common.layout_of(prompt)


def layout_of(decoder: Any, frames: int) -> Delayed:
    """The layout of a decoder's config; left and right of stereo models move together."""
    together = 2 if decoder.audio_channels == 2 else 1
    return Delayed(
        delays=tuple(slot // together for slot in range(decoder.num_codebooks)),
        codes_per_book=decoder.vocab_size,
        start=decoder.pad_token_id,
        frames=frames,
    )


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Musicgen:
    """The model, tokenizer and codec of a folder or hub id; no code of others is run.

    Raises:
        ModelLoadError: it cannot be read.
    """
    from transformers import (
        AutoConfig,
        MusicgenForConditionalGeneration,
        MusicgenMelodyForConditionalGeneration,
    )

    melody = AutoConfig.from_pretrained(name_or_path).model_type == "musicgen_melody"
    kind: Any = MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration
    return Musicgen.of(read_model(kind, name_or_path, device, dtype), read_tokenizer(name_or_path))
