"""Codes to pixels and back by diffusers' VQModel."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import UnsupportedError, UsageError
from multispec.modalities.image.checkpoints import read_part, refuse_missing

# What a checkpoint without a way back to pixels lacks.
_DECODER = ("decoder.", "post_quant_conv.")


class VQCodec:
    """Single pictures through a ``VQModel``, whose own pixels lie in [-1, 1]; ours lie in [0, 1].

    VQGAN: Esser et al. (2021), arXiv 2012.09841, section 3.1. ``decodes`` says whether the weights
    of the way back to pixels are there.

    >>> codec = VQCodec.load("assets/image/vq")                                # doctest: +SKIP
    >>> codec.decode(codec.encode(torch.rand(3, 64, 64))).shape                # doctest: +SKIP
    torch.Size([3, 64, 64])
    """

    def __init__(self, model: Any, *, decodes: bool = True) -> None:
        self.model = model.eval()
        self.decodes = decodes

    @staticmethod
    def load(folder: str | Path, *, device: str | torch.device = "cpu") -> VQCodec:
        """The codec of a diffusers folder or hub id, in float32.

        Raises:
            UnsupportedError: diffusers is not installed.
            ModelLoadError: the folder cannot be read, or lacks weights of the encoder or the codebook.
        """
        model, info = read_part(
            _vq_model(),
            folder,
            "picture tokenizer",
            "diffusers' config.json and diffusion_pytorch_model.safetensors",
            output_loading_info=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
        )
        missing = sorted(info["missing_keys"])
        refuse_missing([name for name in missing if not name.startswith(_DECODER)], folder)
        return VQCodec(model.to(device), decodes=not missing)

    @property
    def codebook(self) -> Float[Tensor, "V C"]:
        """The vector of each code."""
        weight: Tensor = self.model.quantize.embedding.weight
        return weight.detach()

    @property
    def cardinality(self) -> int:
        """Entries of the codebook."""
        return len(self.codebook)

    @property
    def stride(self) -> int:
        """Pixels in one direction per code."""
        return int(2 ** (len(self.model.config.block_out_channels) - 1))

    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """The nearest code at every place.

        Raises:
            UsageError: a picture whose sides are no multiples of the stride.
        """
        height, _ = check_sides(pixels, self.stride)
        with torch.inference_mode():
            inside = pixels[None].to(self.codebook) * 2 - 1
            _, _, (_, _, codes) = self.model.quantize(self.model.encode(inside).latents)
        grid: Tensor = rearrange(codes.cpu(), "(h w) -> h w", h=height)
        return grid

    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """Pixels in [0, 1].

        Raises:
            UsageError: a code outside the codebook.
            UnsupportedError: the checkpoint has no decoder.
        """
        check_codes(codes, self.cardinality)
        if not self.decodes:
            raise UnsupportedError(
                "The picture tokenizer has no decoder weights, so codes cannot become pixels. Take a "
                "checkpoint with 'decoder.*' and 'post_quant_conv.*', or use the codes as they are."
            )
        with torch.inference_mode():
            vectors = self.codebook[codes.to(self.codebook.device)]
            latents = rearrange(vectors, "h w c -> 1 c h w")
            pixels: Tensor = self.model.decode(latents, force_not_quantize=True).sample
        return ((pixels[0].float() + 1) / 2).clamp(0, 1).cpu()


def check_sides(pixels: Tensor, stride: int) -> tuple[int, int]:
    """The grid of codes of a picture.

    Raises:
        UsageError: a side that is no multiple of ``stride``.
    """
    height, width = pixels.shape[-2:]
    if height % stride or width % stride:
        raise UsageError(
            f"A picture's sides must be multiples of {stride} pixels: got {height} x {width}. "
            "Resize or crop it first."
        )
    return height // stride, width // stride


def check_codes(codes: Tensor, cardinality: int) -> None:
    """Refuse codes that no codebook entry stands for.

    Raises:
        UsageError: names the first one.
    """
    wrong = codes[(codes < 0) | (codes >= cardinality)]
    if len(wrong):
        raise UsageError(
            f"Codes must lie in [0, {cardinality}), the codebook of this picture tokenizer: got "
            f"{int(wrong[0])}. Take off the offset of the model's ids first, or load the tokenizer that "
            "belongs to the model."
        )


def _vq_model() -> Any:
    try:
        return import_module("diffusers").VQModel
    except ImportError as error:
        raise UnsupportedError(
            f"Pictures need the package diffusers, which cannot be imported ({error}): "
            "pip install 'multispec[image]'"
        ) from error
