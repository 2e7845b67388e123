"""LlamaGen: class- or text-conditional pictures from the authors' own checkpoint files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import ModelLoadError, PromptError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.checkpoints import file_of, read_state
from multispec.modalities.image.families._llamagen_model import LlamaGenForward, LlamaGenModel, square
from multispec.modalities.image.families._pixels import require_size
from multispec.modalities.image.families._targets import RaggedTarget, checked_target
from multispec.modalities.image.family import PictureCodec
from multispec.modalities.image.vqgan import VQGAN
from multispec.modalities.layout import Layout, Raster
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.targets.loading import Device, default_device

_WEIGHTS = (".pt", ".pth", ".safetensors")
# The scales and the symbols to draw from of the authors' sampling scripts.
_CLASS_SCALE, _TEXT_SCALE = 4.0, 7.5
_CLASS_TOP_K, _TEXT_TOP_K = 2000, 1000


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to features: the released models read those of flan-t5-xl."""

    def __call__(self, caption: str, /) -> tuple[Tensor, Tensor]:
        """Features ``[S, C]`` and a mask ``[S]`` of those that are no padding."""
        ...


def fits(config: object) -> bool:
    """True for the configuration of a ``LlamaGenModel``."""
    return getattr(config, "model_type", None) == "llamagen"


def load(
    name_or_path: str | Path,
    *,
    codec: str | Path | None = None,
    image_size: int | None = None,
    heads: int | None = None,
    encoder: TextEncoder | None = None,
    device: Device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> LlamaGen:
    """The model of a checkpoint file, of a folder with one, or ``owner/repository/file`` of the hub.

    ``codec`` names the VQGAN's file; in a folder it is found by its name, which begins with "vq".
    ``image_size`` in pixels is read from ``block_size`` in a config.json beside it, else from its name
    (``c2i_B_256.pt``). ``heads`` are ``n_head`` there, and only needed for shapes that were never
    published. ``dtype`` defaults to float32 on a CPU, else to that of the weights. There is no remote
    code to trust.

    Raises:
        ModelLoadError: a file is missing, cut short or another model's, or the size is not known.
    """
    place = default_device() if device is None else torch.device(device)
    weights, pictures = _files(name_or_path, codec)
    told, state = _settings(weights.parent), read_state(weights)
    tokenizer = VQGAN.load(pictures, device=place)
    grid = _grid(weights, told.get("block_size"), image_size, tokenizer.stride)
    known = told.get("n_head")
    heads = known if heads is None and isinstance(known, int) else heads
    model = LlamaGenModel.of(state, grid, heads, weights)
    kind = _dtype(dtype, place, model.tok_embeddings.weight.dtype)
    return LlamaGen.from_model(model.to(place, kind), tokenizer, encoder=encoder)


def _dtype(asked: torch.dtype | str | None, place: torch.device, stored: torch.dtype) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    if asked is None:
        return torch.float32 if place.type == "cpu" else stored
    found = stored if asked == "auto" else getattr(torch, asked, None)
    if not isinstance(found, torch.dtype):
        raise UsageError(f"Unknown dtype {asked!r}: pass 'auto', 'float32', 'bfloat16' or a torch.dtype.")
    return found


class LlamaGen:
    """Sun et al. (2024), arXiv 2406.06525: a Llama over the codes of a VQGAN, row by row.

    A class-conditional model takes the number of an ImageNet class for a caption. A text-conditional
    one reads features of T5, a model of its own: give ``encoder``, or make prompts with ``featured``.
    ``cfg_interval`` is the authors': guidance ends behind that many codes and two; -1 is never. As by
    their scripts, classes are drawn from the 2000 best codes and texts from 1000, at temperature 1.

    >>> family = load("c2i_B_256.pt", codec="vq_ds16_c2i.pt")                  # doctest: +SKIP
    >>> family.prompt("207").ids.tolist()                                      # doctest: +SKIP
    [207]
    """

    def __init__(
        self, model: LlamaGenModel, codec: PictureCodec, encoder: TextEncoder | None, guidance: Guidance
    ) -> None:
        self.codec, self.guidance = codec, guidance
        self.sampling = Sampling(top_k=_TEXT_TOP_K if model.config.textual else _CLASS_TOP_K)
        self.symbols = range(model.config.vocab_size)
        self._model, self._encoder, self._config = model, encoder, model.config
        self._side = model.config.grid * codec.stride
        self._raster = Raster(
            height=model.config.grid,
            width=model.config.grid,
            codes=model.config.vocab_size,
            prompt_size=1 if model.config.textual else model.config.classes + 1,
        )
        self.target = self._target()

    @staticmethod
    def from_model(
        model: LlamaGenModel,
        codec: PictureCodec,
        *,
        encoder: TextEncoder | None = None,
        scale: float | None = None,
        cfg_interval: int = -1,
    ) -> LlamaGen:
        """From a loaded transformer and its picture tokenizer.

        Raises:
            UsageError: an interval below -1.
            ModelLoadError: a picture tokenizer with another number of codes.
        """
        if codec.cardinality != model.config.vocab_size:
            raise ModelLoadError(
                f"The model draws {model.config.vocab_size} codes and the picture tokenizer has "
                f"{codec.cardinality}. Load the tokenizer that belongs to the model."
            )
        if cfg_interval < -1:
            raise UsageError(f"cfg_interval is -1 (guide everywhere) or a position: got {cfg_interval}.")
        default = _TEXT_SCALE if model.config.textual else _CLASS_SCALE
        # The authors count decoding steps from the second code, and guide up to step cfg_interval.
        stop = None if cfg_interval == -1 else cfg_interval + 2
        guidance = Guidance(scale=default if scale is None else scale, stop=stop)
        return LlamaGen(model, codec, encoder, guidance)

    def layout(self, size: tuple[int, int] | None = None, /) -> Layout:
        """The square that the model was trained on.

        Raises:
            UsageError: another size.
        """
        require_size(size, (self._side, self._side))
        return self._raster

    def prompt(self, caption: str | int, size: tuple[int, int] | None = None, /) -> Prompt:
        """A class number, or words for the text encoder.

        Raises:
            PromptError: no number of a class, or words without a text encoder.
        """
        self.layout(size)
        if self._config.textual:
            return self._worded(caption)
        number = str(caption).strip()
        if not number.isdecimal() or int(number) >= self._config.classes:
            raise PromptError(
                f"A class-conditional LlamaGen draws classes 0 .. {self._config.classes - 1} by number: got "
                f"{str(caption)[:40]!r}. Pass the number, such as '207' for ImageNet's golden retriever."
            )
        return Prompt(ids=torch.tensor([int(number)]), spec=self._raster.spec)

    def _worded(self, caption: str | int) -> Prompt:
        if self._encoder is None or not isinstance(caption, str):
            raise PromptError(
                f"A text-conditional LlamaGen reads features of T5, not words: got {str(caption)[:40]!r}. "
                "Give LlamaGen an encoder=..., or make the prompt with family.featured(features, mask)."
            )
        return self.featured(*self._encoder(caption))

    def featured(self, features: Float[Tensor, "S C"], mask: Tensor | None = None) -> Prompt:
        """The prompt of a caption's features; ``mask [S]`` says which of them are no padding.

        Padding is left out: the published model hides it from every symbol, and does not tell places
        in the prefix apart.

        Raises:
            PromptError: features that this model cannot take, or padding alone.
        """
        length, channels = self._config.caption_length, self._config.caption_dim
        if not self._config.textual or features.shape[-1] != channels or len(features) > length:
            raise PromptError(
                f"This LlamaGen takes up to {length} features of {channels} numbers: got shape "
                f"{tuple(features.shape)}. "
                + ("Use the encoder it was trained with." if self._config.textual else "It draws classes.")
            )
        kept = features if mask is None else features[mask.bool()]
        if not len(kept):
            raise PromptError("A caption needs at least one feature: got padding alone. Check the mask.")
        ids = torch.zeros(len(kept), dtype=torch.long)
        return Prompt(ids=ids, conditioning={"features": kept}, spec=self._raster.spec)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """``negative`` as a caption; without it the class, or the features, learned for nothing."""
        if negative is not None:
            return self.prompt(negative)
        if not self._config.textual:
            ids = torch.tensor([self._config.classes])
            return replace(prompt, ids=ids, guidance=None, unconditional=None)
        # The features are hidden where the caption has padding, which stands on the left.
        nothing = self._model.cls_embedding.get_buffer("uncond_embedding")[-len(prompt.ids) :]
        return replace(prompt, conditioning={"features": nothing}, guidance=None, unconditional=None)

    def layout_of(self, prompt: Prompt, /) -> Layout:
        """The square."""
        return self._raster

    def _prefix(self, prompt: Prompt) -> Tensor:
        """What a row starts from: embeddings ``[n, C]``."""
        like = self._model.tok_embeddings.weight
        if not self._config.textual:
            embedded: Tensor = self._model.cls_embedding(prompt.ids.to(like.device))
            return embedded
        features = prompt.conditioning.get("features")
        if features is None or features.shape != (len(prompt.ids), self._config.caption_dim):
            raise PromptError(
                f"A text-conditional LlamaGen needs one feature of {self._config.caption_dim} numbers per "
                f"symbol of the prompt: got {None if features is None else tuple(features.shape)} for "
                f"{len(prompt.ids)} symbols. Make the prompt with family.featured(features, mask)."
            )
        projected: Tensor = self._model.cls_embedding(features.to(like))
        return projected

    def _bind(self, prompts: Sequence[Prompt]) -> LlamaGenForward:
        return LlamaGenForward(self._model, [self._prefix(prompt) for prompt in prompts])

    def _target(self) -> RaggedTarget:
        def plain(prompt: Prompt, codes: Sequence[int]) -> Tensor:
            logits: Tensor = self._model(self._prefix(prompt), codes)[-1]
            return logits

        return checked_target(
            "LlamaGen",
            self._bind,
            self._raster.spec,
            context_length=self._config.prefix_length + self._raster.length,
            prompts=self._samples(),
            reference=plain,
        )

    def _samples(self) -> list[Prompt]:
        if not self._config.textual:
            return [Prompt(ids=torch.tensor([number])) for number in (0, self._config.classes)]
        nothing = self._model.cls_embedding.get_buffer("uncond_embedding")
        return [self.featured(nothing[:2]), self.featured(nothing[-1:])]


def _files(name_or_path: str | Path, codec: str | Path | None) -> tuple[Path, Path]:
    """The files of the transformer and of the VQGAN."""
    path = file_of(name_or_path)
    if not path.is_dir():
        folder, weights = path.parent, [path]
    else:
        folder, weights = path, [one for one in sorted(path.iterdir()) if one.suffix in _WEIGHTS]
    beside = [one for one in sorted(folder.iterdir()) if one.suffix in _WEIGHTS]
    weights = [one for one in weights if not one.name.startswith("vq")]
    if len(weights) != 1:
        raise ModelLoadError(
            f"One LlamaGen checkpoint was expected in {str(path)!r}: got "
            f"{[one.name for one in weights] or 'none'}. Give the file itself."
        )
    found = [one for one in beside if one.name.startswith("vq")]
    if codec is None and len(found) != 1:
        raise ModelLoadError(
            f"LlamaGen needs the VQGAN it was trained with, and {[one.name for one in found] or 'no file'} "
            f"of that kind is in {str(folder)!r}. Pass codec='FoundationVision/LlamaGen/vq_ds16_c2i.pt', or "
            "that of the text models, 'peizesun/llamagen_t2i/vq_ds16_t2i.pt'."
        )
    return weights[0], found[0] if codec is None else file_of(codec)


def _grid(weights: Path, length: object, image_size: int | None, stride: int) -> int:
    """Codes in a row, where config.json says that a picture has ``length`` of them."""
    if image_size is None and isinstance(length, int):
        return square(length)
    named = re.search(r"(?<!\d)(256|384|512)(?!\d)", weights.stem)
    size = image_size or (int(named[1]) if named else None)
    if size is None or size % stride:
        raise ModelLoadError(
            f"The size of the pictures of {weights.name!r} is not known: got {size}, and neither its name "
            f"nor a config.json tells. Pass image_size=..., a multiple of {stride} pixels."
        )
    return size // stride


def _settings(folder: Path) -> dict[str, object]:
    """What a config.json beside the weights says, if there is one."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{str(path)!r} is no JSON: {error}. Copy it again, or take it away.") from error
    return found
