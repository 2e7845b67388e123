"""Dia: Nari Labs (2025), dialogue in nine channels of DAC, spoken from bytes.

The channels stand behind each other by ``delay_pattern`` steps. The first one says when it ends, the others
are forced to end as many steps later as they are behind. The end is never drawn: it is said where it is the
best symbol of all. In the other branch of guidance the text is zeros; guidance keeps the conditional logits
of those symbols that are best after mixing (``masked``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import PromptError, UnsupportedError
from multispec.guidance import Guidance
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
from multispec.stream import Drawn, Prompt, StreamSpec
from multispec.targets.causal import refuse_meta
from multispec.targets.parallel_slots import Across, ParallelSlotsTarget, Start

# The codec that its authors speak through, for a folder that has none beside it.
_CODEC = "descript/dac_44khz"


def fits(config: Any) -> bool:
    """True for Dia."""
    return getattr(config, "model_type", None) == "dia"


class DiaSlots:
    """The decoder of Dia as a ``SlotModel``."""

    def __init__(self, model: Any) -> None:
        self._model, self._decoder = model, model.model.decoder
        self.layers = len(self._decoder.layers)
        self.like: Tensor = self._decoder.embeddings.embed.weight
        config = model.config.decoder_config
        self._channels, self._vocab = config.num_channels, config.vocab_size

    def start(self, prompt: Prompt) -> Start:
        """The encoded bytes of the text; a step for every K ids."""
        ids = prompt.conditioning["input_ids"].to(self.like.device)
        encoded: Tensor = self._model.model.encoder(ids).last_hidden_state[0]
        return Start(None, prompt.ids.view(-1, self._channels), encoded)

    def embed(self, steps: Tensor) -> Tensor:
        """The sum of the channels' embeddings."""
        found: Tensor = self._decoder.embeddings(steps)
        return found

    def run(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Any, across: Across | None) -> Tensor:
        """All layers, turned by the positions of each row."""
        turned = self._decoder.rotary_emb(x, position_ids=positions)
        states = None if across is None else across.states
        seen = None if across is None else across.mask
        for layer in self._decoder.layers:
            x = layer(x, turned, mask, states, encoder_attention_mask=seen, past_key_values=cache)
        normed: Tensor = self._decoder.norm(x)
        return normed

    def heads(self, hidden: Tensor) -> Tensor:
        """One projection for all channels."""
        logits: Tensor = self._model.logits_dense(hidden)
        return logits.view(*logits.shape[:-1], self._channels, self._vocab)


@dataclass(frozen=True)
class EndIfBest:
    """Dia's rule for its end, a pure function of the scores: where ``end`` is best it is said, else never.

    As a ``Drawing`` it goes before temperature and truncation, behind guidance and grammar, as in Dia's own
    generate. Greedy decoding does the same without it. That generate lets no temperature go below 1; here
    the temperature is the one that was asked for, and the family's own ``sampling`` keeps to that limit.

    >>> EndIfBest(1)(torch.zeros(2, 0, dtype=torch.long), torch.tensor([[2.0, 3.0, 0.0], [2.0, 1.0, 0.0]]))
    tensor([[-inf, 3., -inf],
            [2., -inf, 0.]])
    """

    end: int
    reads: ClassVar[Literal["scores", "prefix"]] = "scores"

    def __call__(self, input_ids: Int[Tensor, "n S"], scores: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """The scores with -inf for everything but the end, or for the end."""
        others = torch.arange(scores.shape[-1], device=scores.device) != self.end
        ends = scores.argmax(-1, keepdim=True) == self.end
        return scores.masked_fill(others == ends, -torch.inf)

    def drawn(self, sampling: Sampling, /) -> Drawn:
        """The settings as they are, and this rule."""
        return Drawn(sampling, () if sampling.greedy else (self,))


@dataclass(frozen=True, kw_only=True)
class Dia:
    """A Dia model; ``common`` is what all families of its kind answer alike.

    >>> family = Dia.of(model, tokenizer, codec)                                   # doctest: +SKIP
    """

    target: Target
    common: SlotFamily
    tokenizer: Any
    guidance: Guidance = field(default_factory=Guidance)

    @staticmethod
    def of(model: Any, tokenizer: Any, codec: SpeechCodec, frames: int | None = None) -> Dia:
        """Around a model of transformers; ``frames`` is the most it speaks, else what it has positions for.

        Raises:
            ModelLoadError: the model has no weights.
            UnsupportedError: a codec of another number of codebooks.
        """
        refuse_meta(model)
        config, settings = model.config, model.generation_config
        decoder = config.decoder_config
        if codec.num_codebooks != decoder.num_channels or codec.cardinality > decoder.eos_token_id:
            raise UnsupportedError(
                f"This Dia speaks {decoder.num_channels} channels of {decoder.eos_token_id} codes: got a "
                f"codec of {codec.num_codebooks} codebooks of {codec.cardinality}. Use the one it was "
                "trained with."
            )
        most = decoder.max_position_embeddings - max(config.delay_pattern) - 2
        layout = layout_of(config, most if frames is None else frames)
        voices = SlotFamily(
            codec=codec,
            layout=layout,
            sampling=Sampling(
                temperature=max(settings.temperature or 1.0, 1.0),
                top_k=settings.top_k or 0,
                top_p=settings.top_p or 1.0,
            ),
            text_limit=config.encoder_config.max_position_embeddings,
        )
        return Dia(
            target=ParallelSlotsTarget(DiaSlots(model), _spec(layout)),
            common=voices,
            tokenizer=tokenizer,
            guidance=guidance_of(settings),
        )

    @property
    def codec(self) -> SpeechCodec:
        """DAC at 44.1 kHz."""
        return self.common.codec

    @property
    def sampling(self) -> Sampling:
        """What the checkpoint says; it does not go below temperature 1."""
        return self.common.sampling

    @property
    def voices(self) -> Sequence[str]:
        """Dia casts its speakers itself, [S1] and [S2] in the text."""
        return ()

    @property
    def text_limit(self) -> int:
        """Bytes that its encoder takes."""
        return self.common.text_limit

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """The bytes of the text for the encoder, and the step of starts before the first one.

        Raises:
            PromptError: nothing to read.
            UnknownNameError: a voice; speakers are marked in the text.
        """
        only_own_voice("Dia", voice)
        if not text.strip():
            raise PromptError("Dia needs something to say: got an empty text. Write it, as '[S1] Hello.'")
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        layout = self.common.layout
        made = self.common.started(layout.start, conditioning={"input_ids": ids}, text=text)
        return replace(made, spec=_spec(layout))

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """A text of zeros, as long as the real one; or another text, which speech is led away from."""
        if negative is not None:
            return self.prompt(negative)
        blank = {"input_ids": torch.zeros_like(prompt.conditioning["input_ids"])}
        return replace(prompt, conditioning=blank, guidance=None, unconditional=None)

    def layout_of(self, prompt: Prompt, /) -> FrameLayout:
        """The delays, as long as the prompt's stream."""
        return self.common.layout_of(prompt)


def layout_of(config: Any, frames: int) -> Delayed:
    """The layout of a config: codes below the end, which is the first channel's to say."""
    decoder = config.decoder_config
    return Delayed(
        delays=tuple(config.delay_pattern),
        codes_per_book=decoder.eos_token_id,
        start=decoder.bos_token_id,
        pad=decoder.pad_token_id,
        end=decoder.eos_token_id,
        frames=frames,
        vocab_size=decoder.vocab_size,
    )


def _spec(layout: Delayed) -> StreamSpec:
    """The stream of a layout, drawn by Dia's own rule for its end."""
    end = layout.end
    return layout.spec if end is None else replace(layout.spec, drawing=EndIfBest(end).drawn)


def guidance_of(settings: Any) -> Guidance:
    """What a checkpoint's generation settings ask for; ``top_k`` chooses what is kept after mixing."""
    scale, top_k = settings.guidance_scale, settings.top_k
    if scale is None or scale == 1:
        return Guidance()
    if not top_k:
        return Guidance(scale=float(scale), convention="extrapolate")
    return Guidance(scale=float(scale), convention="masked", top_k=int(top_k))


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Dia:
    """The model and tokenizer of a folder or hub id; its codec from the folder ``codec``, or as published.

    Raises:
        ModelLoadError: it cannot be read.
    """
    from transformers import DiaForConditionalGeneration

    from multispec.modalities.speech.codecs.dac import DacCodec

    model = read_model(DiaForConditionalGeneration, name_or_path, device, dtype)
    beside = Path(name_or_path) / "codec"
    channels = model.config.decoder_config.num_channels
    codec = DacCodec.load(beside if beside.is_dir() else _CODEC, device=model.device, num_codebooks=channels)
    return Dia.of(model, read_tokenizer(name_or_path), codec)
