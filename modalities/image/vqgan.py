"""VQGAN as published by taming-transformers, Chameleon and LlamaGen: codes to pixels and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from multispec.errors import ModelLoadError, UnsupportedError
from multispec.modalities.image.checkpoints import State, file_of, first_line, read_state
from multispec.modalities.image.codec import check_codes, check_sides
from multispec.targets.loading import Device, default_device

# Weights that belong to training: discriminators, perceptual losses, usage counts.
_TRAINING = re.compile(r"^(loss\.|quantize\.codebook_used$|quantize\.embed_prob$)")
_GROUPS = 32


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1 = _norm(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = _norm(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        added: Tensor = self.nin_shortcut(x) + inner
        return added


class _Attention(nn.Module):
    """Every place looks at every other, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (rearrange(map_(normed), "b c h w -> b (h w) c") for map_ in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        added: Tensor = x + self.proj_out(rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2]))
        return added


class _Up(nn.Module):
    """Twice the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return larger


class _Down(nn.Module):
    """Half the size; padded on the far sides only, as it was trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        smaller: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return smaller


@dataclass(frozen=True)
class _Stage:
    """One resolution: channels in and out of each residual block, attention behind them, a change of size."""

    blocks: tuple[tuple[int, int], ...]
    attends: bool
    resamples: bool


@dataclass(frozen=True)
class _Plan:
    """One half of the network, as the shapes of its weights tell."""

    channels: tuple[int, int]
    middle: int
    attends: bool
    stages: tuple[_Stage, ...]
    last: tuple[int, int]


class _Level(nn.Module):
    def __init__(self, stage: _Stage, resample: type[_Up] | type[_Down]) -> None:
        super().__init__()
        outs = [outside for _, outside in stage.blocks]
        self.res = nn.ModuleList(_Residual(*channels) for channels in stage.blocks)
        self.attn = nn.ModuleList(_Attention(channels) for channels in outs if stage.attends)
        self.resample = resample(outs[-1]) if stage.resamples else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[place](x)
        changed: Tensor = self.resample(x)
        return changed


class _Half(nn.Module):
    """An encoder, or a decoder, which has its middle first."""

    def __init__(self, plan: _Plan, decodes: bool) -> None:
        super().__init__()
        self.decodes = decodes
        resample = _Up if decodes else _Down
        self.conv_in = nn.Conv2d(*plan.channels, 3, padding=1)
        self.levels = nn.ModuleList(_Level(stage, resample) for stage in plan.stages)
        middle = _Attention(plan.middle) if plan.attends else nn.Identity()
        self.mid = nn.Sequential(
            _Residual(plan.middle, plan.middle), middle, _Residual(plan.middle, plan.middle)
        )
        self.norm_out = _norm(plan.last[0])
        self.conv_out = nn.Conv2d(*plan.last, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        if self.decodes:
            x = self.mid(x)
        for level in self.levels:
            x = level(x)
        if not self.decodes:
            x = self.mid(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class _Quantize(nn.Module):
    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape[0], shape[1])


class _Network(nn.Module):
    """The parts that a checkpoint has weights of, under their published names."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.quantize = _Quantize(state["quantize.embedding.weight"].shape)
        self.encoder, self.quant_conv = _half(state, "encoder"), _pointwise(state, "quant_conv")
        self.decoder, self.post_quant_conv = _half(state, "decoder"), _pointwise(state, "post_quant_conv")


class VQGAN:
    """A picture tokenizer with its own pixels in [-1, 1]; ours lie in [0, 1].

    Esser et al. (2021), arXiv 2012.09841, section 3.1. What it looks like is read from the shapes of
    its weights. ``normalised`` says that codes lie on the unit sphere (Yu et al. 2021, arXiv
    2110.04627, section 3.2), as LlamaGen's do. Either half may be missing.

    >>> codec = VQGAN.load("FoundationVision/LlamaGen/vq_ds16_c2i.pt")         # doctest: +SKIP
    >>> codec.decode(torch.zeros(16, 16, dtype=torch.long)).shape              # doctest: +SKIP
    torch.Size([3, 256, 256])
    """

    def __init__(self, network: nn.Module, *, normalised: bool) -> None:
        self.network = network.eval()
        self.normalised = normalised

    @staticmethod
    def of(state: Mapping[str, Tensor], source: object = "the state dict") -> VQGAN:
        """From weights under the names of taming-transformers and Chameleon, or those of LlamaGen.

        Raises:
            ModelLoadError: weights are missing, are too many, or have shapes that do not fit together.
        """
        kept = {name: value for name, value in state.items() if not _TRAINING.match(name)}
        names = {name: _own_name(name, kept) for name in kept}
        own = {names[name]: value for name, value in kept.items()}
        try:
            with torch.device("meta"):
                network = _Network(own)
                _rehearse(network)
            found = network.load_state_dict(own, strict=False, assign=True)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
            raise ModelLoadError(
                f"{str(source)!r} is no complete VQGAN: {reason}. Expected quantize.embedding.weight, and "
                "the weights of decoder.*, post_quant_conv.*, encoder.* and quant_conv.* or of one half."
            ) from error
        published = {own_name: name for name, own_name in names.items()}
        wrong = [*found.missing_keys, *(published[name] for name in found.unexpected_keys)]
        if wrong:
            raise ModelLoadError(
                f"{str(source)!r} is no complete VQGAN: {len(found.missing_keys)} weights are missing and "
                f"{len(found.unexpected_keys)} have no place, the first is {wrong[0]!r}. Copy the complete "
                "checkpoint."
            )
        spherical = any(".conv_blocks." in name for name in kept)
        return VQGAN(network.requires_grad_(False), normalised=spherical)

    @staticmethod
    def load(
        name_or_path: str | Path, *, device: Device | None = None, dtype: torch.dtype = torch.float32
    ) -> VQGAN:
        """From a ``.ckpt``, ``.pt`` or ``.safetensors`` file here, or ``owner/repository/file`` of the hub.

        Raises:
            ModelLoadError: the file cannot be read or is no complete VQGAN.
        """
        path = file_of(name_or_path)
        codec = VQGAN.of(read_state(path), path)
        codec.network.to(default_device() if device is None else device, dtype)
        return codec

    @property
    def cardinality(self) -> int:
        """Entries of the codebook."""
        return len(self.network.get_parameter("quantize.embedding.weight"))

    @property
    def codebook(self) -> Float[Tensor, "V C"]:
        """The vector of each code."""
        weight = self.network.get_parameter("quantize.embedding.weight").detach()
        return F.normalize(weight, dim=-1) if self.normalised else weight

    @property
    def stride(self) -> int:
        """Pixels in one direction per code."""
        half = self._half("decoder") or self._half("encoder")
        resampled = [] if half is None else [m for m in half.modules() if isinstance(m, (_Up, _Down))]
        return int(2 ** len(resampled))

    def _half(self, name: str) -> nn.Module | None:
        return dict(self.network.named_children()).get(name)

    @property
    def decodes(self) -> bool:
        """True where the way from codes to pixels is there."""
        return self._half("decoder") is not None and self._half("post_quant_conv") is not None

    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """The nearest code at every place.

        Raises:
            UsageError: a picture whose sides are no multiples of the stride.
            UnsupportedError: the checkpoint has no encoder.
        """
        encoder, quant = self._half("encoder"), self._half("quant_conv")
        if encoder is None or quant is None:
            raise UnsupportedError(
                "This picture tokenizer has no encoder weights, so pixels cannot become codes. Take a "
                "checkpoint with 'encoder.*' and 'quant_conv.*'."
            )
        check_sides(pixels, self.stride)
        with torch.inference_mode():
            codebook = self.codebook
            vectors = rearrange(quant(encoder(pixels[None].to(codebook) * 2 - 1)), "1 c h w -> h w c")
            vectors = F.normalize(vectors, dim=-1) if self.normalised else vectors
            distances = codebook.square().sum(-1) - 2 * vectors @ codebook.T
            return distances.argmin(-1).cpu()

    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """Pixels in [0, 1].

        Raises:
            UsageError: a code outside the codebook.
            UnsupportedError: the checkpoint has no decoder.
        """
        decoder, back = self._half("decoder"), self._half("post_quant_conv")
        check_codes(codes, self.cardinality)
        if decoder is None or back is None:
            raise UnsupportedError(
                "This picture tokenizer has no decoder weights, so codes cannot become pixels. Take a "
                "checkpoint with 'decoder.*' and 'post_quant_conv.*', or use the codes as they are."
            )
        with torch.inference_mode():
            codebook = self.codebook
            vectors = rearrange(codebook[codes.to(codebook.device)], "h w c -> 1 c h w")
            pixels: Tensor = decoder(back(vectors))
        return ((pixels[0].float() + 1) / 2).clamp(0, 1).cpu()


def _rehearse(network: _Network) -> None:
    """Run both halves without numbers: shapes that do not fit each other raise here."""
    vectors = torch.empty(1, network.quantize.embedding.weight.shape[1], 2, 2)
    if network.decoder is not None and network.post_quant_conv is not None:
        network.decoder(network.post_quant_conv(vectors))
    if network.encoder is not None and network.quant_conv is not None:
        stride = 2 ** sum(isinstance(module, _Down) for module in network.encoder.modules())
        found = network.quant_conv(network.encoder(torch.empty(1, 3, 2 * stride, 2 * stride)))
        torch.matmul(found.movedim(1, -1), network.quantize.embedding.weight.T)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=1e-6)


def _pointwise(state: State, name: str) -> nn.Conv2d | None:
    if f"{name}.weight" not in state:
        return None
    outside, inside = state[f"{name}.weight"].shape[:2]
    return nn.Conv2d(inside, outside, 1)


def _half(state: State, name: str) -> _Half | None:
    own = {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
    return _Half(_planned(own), name == "decoder") if own else None


def _planned(state: State) -> _Plan:
    numbers = {int(found[1]) for name in state if (found := re.match(r"levels\.(\d+)\.", name))}
    stages = tuple(_staged(state, f"levels.{number}") for number in range(1 + max(numbers, default=-1)))
    return _Plan(
        channels=_channels(state, "conv_in"),
        middle=_channels(state, "mid.0.conv1")[1],
        attends="mid.1.q.weight" in state,
        stages=stages,
        last=_channels(state, "conv_out"),
    )


def _staged(state: State, level: str) -> _Stage:
    numbers = {int(f[1]) for name in state if (f := re.match(rf"{level}\.res\.(\d+)\.", name))}
    return _Stage(
        blocks=tuple(_channels(state, f"{level}.res.{n}.conv1") for n in range(1 + max(numbers, default=0))),
        attends=f"{level}.attn.0.q.weight" in state,
        resamples=f"{level}.resample.conv.weight" in state,
    )


def _channels(state: State, name: str) -> tuple[int, int]:
    """(in, out) of a convolution."""
    outside, inside = state[f"{name}.weight"].shape[:2]
    return int(inside), int(outside)


# taming-transformers numbers a decoder's levels from the finest, which is run last.
_TAMING_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}


def _own_name(name: str, state: Mapping[str, Tensor]) -> str:
    """The name of a published weight in ``_Network``."""
    name = re.sub(r"\.(?:up|down)sample\.", ".resample.", name)
    name = name.replace(".conv_blocks.", ".levels.")
    name = re.sub(r"\.mid\.(block_1|attn_1|block_2)\.", lambda f: f".mid.{_TAMING_MIDDLE[f[1]]}.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.levels.\1.", name)
    found = re.match(r"^decoder\.up\.(\d+)\.", name)
    if found:
        last = max(int(f[1]) for key in state if (f := re.match(r"^decoder\.up\.(\d+)\.", key)))
        name = f"decoder.levels.{last - int(found[1])}.{name[found.end() :]}"
    return re.sub(r"(\.levels\.\d+)\.block\.", r"\1.res.", name)
