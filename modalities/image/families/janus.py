"""Janus and Janus-Pro: text in the vocabulary of a language model, pictures in one of their own.

Wu et al. (2024), arXiv 2410.13848, section 3.1; Chen et al. (2025), arXiv 2501.17811. Captions are embedded
by the language model; generated codes by the generation embeddings and their aligner, and scored by the
generation head. A picture is a fixed number of codes, without grammar. The unconditional branch is the
prompt with everything but bos and begin-of-image replaced by pad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import JanusForConditionalGeneration

from multispec.errors import ModelLoadError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.checkpoints import load_pretrained, load_processor
from multispec.modalities.image.codec import check_codes, check_sides
from multispec.modalities.image.families._pixels import Scale, require_size
from multispec.modalities.image.families._targets import InnerForward, checked_target, inner_name
from multispec.modalities.image.reading import as_chat, check_caption, token_id, tokenizer_of, with_room
from multispec.modalities.layout import Raster
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.targets.causal import context_length, decoder_config, refuse_meta
from multispec.targets.masks import Pass

# What the released models were shown with.
SCALE = 5.0


def fits(config: Any) -> bool:
    """True for the configuration of a Janus model."""
    return getattr(config, "model_type", None) == "janus"


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Janus:
    """The model of a folder or hub id.

    Raises:
        ModelLoadError: a part that is missing or cannot be read.
        UnsupportedError: a language model that cannot be run over ragged rows.
    """
    model, _ = load_pretrained(
        JanusForConditionalGeneration,
        name_or_path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    return Janus.from_model(model, load_processor(name_or_path, trust_remote_code))


@dataclass(frozen=True)
class JanusCodec:
    """The ``JanusVQVAE`` of a model, for pictures of ``side x side`` codes.

    Codes stand for directions: the decoder normalizes the codebook, and so do ``codebook`` and ``encode``.
    """

    vq: Any
    side: int
    scale: Scale = Scale()

    @property
    def stride(self) -> int:
        """Pixels in one direction per code."""
        return 1 << (len(self.vq.config.channel_multiplier) - 1)

    @property
    def codebook(self) -> Float[Tensor, "V C"]:
        """The direction of each code."""
        return F.normalize(self.vq.quantize.embedding.weight.detach(), dim=-1)

    @property
    def cardinality(self) -> int:
        """Entries of the codebook."""
        return int(self.vq.config.num_embeddings)

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """The code of the nearest direction at every place.

        Raises:
            UsageError: a picture whose sides are no multiples of the stride.
        """
        check_sides(pixels, self.stride)
        values = self.scale.into(pixels.to(self.codebook))
        # The model's own encode measures to the codebook as it is stored, which its decode never uses.
        latents = F.normalize(self.vq.quant_conv(self.vq.encoder(values[None])), dim=1)
        likeness = torch.einsum("chw,vc->hwv", latents[0], self.codebook)
        return likeness.argmax(-1).cpu()

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """Pixels in [0, 1].

        Raises:
            UsageError: a code outside the codebook, or another grid than the model's own.
        """
        check_codes(codes, self.cardinality)
        if tuple(codes.shape) != (self.side, self.side):
            raise UsageError(
                f"This model draws {self.side} x {self.side} codes: got {codes.shape[0]} x {codes.shape[1]}. "
                "Decode whole pictures."
            )
        flat = rearrange(codes, "h w -> 1 (h w)").to(self.codebook.device)
        pixels: Tensor = self.vq.decode(flat)
        return self.scale.back(pixels[0])


@dataclass(frozen=True)
class Blank:
    """What a prompt without a caption is: ``pad`` everywhere but at the ids in ``kept``.

    >>> Blank(pad=0, kept=(1, 7)).of(torch.tensor([1, 5, 6, 7])).tolist()
    [1, 0, 0, 7]
    """

    pad: int
    kept: tuple[int, ...]

    def of(self, ids: Int[Tensor, " S"]) -> Int[Tensor, " S"]:
        """The ids of the unconditional branch, of the same length."""
        return torch.where(torch.isin(ids, torch.tensor(self.kept)), ids, self.pad)


def _blank(model: Any, tokenizer: Any) -> Blank:
    """The ids that the model's own generate uses, from its generation config, else from the tokenizer."""
    own = model.generation_config
    more = getattr(own, "generation_kwargs", None) or {}
    boi = more.get("boi_token_id")
    found = {
        "bos_token": own.bos_token_id if own.bos_token_id is not None else tokenizer.bos_token_id,
        "pad_token": own.pad_token_id if own.pad_token_id is not None else tokenizer.pad_token_id,
        "boi_token": boi if boi is not None else token_id(tokenizer, "boi_token"),
    }
    lost = [name for name, value in found.items() if value is None]
    if lost:
        raise ModelLoadError(
            f"Guidance of Janus needs {', '.join(lost)}, which neither generation_config.json nor the "
            "tokenizer names. Set it in model.generation_config."
        )
    return Blank(pad=found["pad_token"], kept=(found["bos_token"], found["boi_token"]))


@dataclass(frozen=True, kw_only=True)
class Janus:
    """A Janus model as a family of picture models, drawn from its own law at temperature 1 as by its authors.

    >>> family = Janus.from_model(model, processor)                            # doctest: +SKIP
    >>> Generator(family.target, Images(family)).generate("a red heart")       # doctest: +SKIP
    """

    target: Target
    model: Any
    codec: JanusCodec
    guidance: Guidance
    processor: Any
    blank: Blank
    sampling: Sampling = Sampling()

    @staticmethod
    def from_model(model: Any, processor: Any) -> Janus:
        """Around a ``JanusForConditionalGeneration`` and its processor (or its tokenizer alone).

        Raises:
            ModelLoadError: special symbols that nothing names, or a model without weights.
            UnsupportedError: a language model that cannot be run over ragged rows.
        """
        tokenizer = tokenizer_of(processor)
        token_id(tokenizer, "boi_token")
        vision = model.config.vision_config
        side = int(model.config.vq_config.num_patches)
        if side * side != vision.num_image_tokens:
            raise ModelLoadError(
                f"This Janus draws {vision.num_image_tokens} codes, and its picture tokenizer takes {side} x "
                f"{side}. Correct num_image_tokens, image_size or patch_size in vision_config."
            )
        scale = model.generation_config.guidance_scale
        return Janus(
            target=_target(model.eval(), side),
            model=model,
            codec=JanusCodec(model.model.vqmodel, side, Scale.of(processor)),
            guidance=Guidance(scale=SCALE if scale is None else float(scale)),
            processor=processor,
            blank=_blank(model, tokenizer),
        )

    @property
    def symbols(self) -> range:
        """The codes themselves: pictures have a vocabulary of their own."""
        return range(self.codec.cardinality)

    def layout(self, size: tuple[int, int] | None = None, /) -> Raster:
        """The one grid that it was trained on.

        Raises:
            UsageError: any other size.
        """
        own = self.codec.side * self.codec.stride
        require_size(size, (own, own))
        return _layout(self.model, self.codec.side)

    def layout_of(self, prompt: Prompt, /) -> Raster:
        """The one grid that it was trained on."""
        return self.layout()

    def prompt(self, caption: str, size: tuple[int, int] | None = None, /) -> Prompt:
        """The caption in the checkpoint's chat template, and begin-of-image.

        Raises:
            PromptError: a caption that the tokenizer cannot read, or that leaves no room for the picture.
            UsageError: a size that the model cannot draw.
        """
        layout, tokenizer = self.layout(size), tokenizer_of(self.processor)
        check_caption(tokenizer, caption)
        text = as_chat(self.processor, caption) + tokenizer.boi_token
        prompt = Prompt(ids=torch.tensor(tokenizer(text)["input_ids"]), spec=layout.spec)
        return with_room(prompt, layout.length, self.target)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """Everything but bos and begin-of-image replaced by pad; with ``negative`` its own prompt.

        Raises:
            PromptError: a negative caption that the tokenizer cannot read.
        """
        if negative is not None:
            return self.prompt(negative)
        return replace(prompt, ids=self.blank.of(prompt.ids), guidance=None, unconditional=None)


def _layout(model: Any, side: int) -> Raster:
    words = int(decoder_config(model).vocab_size)
    codes = int(model.config.vq_config.num_embeddings)
    return Raster(height=side, width=side, codes=codes, prompt_size=words)


def _target(model: Any, side: int) -> Target:
    refuse_meta(model)

    def bind(_: Sequence[Prompt]) -> InnerForward:
        return InnerForward(
            model,
            embed=lambda ids, step: _embedded(model, ids, step),
            head=model.model.generation_head,
            positions=lambda step: step.positions(model.device),
        )

    trial = [[3, 5, 7, 2], [4, 6]]
    words = int(decoder_config(model).vocab_size)
    prompts = [Prompt(ids=torch.tensor([one % words for one in ids])) for ids in trial]
    return checked_target(
        inner_name(model),
        bind,
        _layout(model, side).spec,
        context_length=context_length(model),
        prompts=prompts,
        reference=lambda prompt, codes: _own_logits(model, prompt, codes),
    )


def _embedded(model: Any, ids: Tensor, step: Pass) -> Tensor:
    """A prompt is words, everything behind it is codes."""
    kind = model.get_input_embeddings() if step.prefill else model.prepare_embeddings_for_image_generation
    found: Tensor = kind(ids)
    return found


def _own_logits(model: Any, prompt: Prompt, codes: Sequence[int]) -> Tensor:
    device = model.device
    parts = [model.get_input_embeddings()(prompt.ids[None].to(device))]
    if codes:
        parts.append(
            model.prepare_embeddings_for_image_generation(torch.tensor([list(codes)], device=device))
        )
    hidden = model.model.language_model(inputs_embeds=torch.cat(parts, 1), use_cache=False).last_hidden_state
    logits: Tensor = model.model.generation_head(hidden[0, -1])
    return logits
