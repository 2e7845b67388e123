"""Captions and picture codes in one vocabulary, run by an ordinary Llama: the embedded format.

A stream is bos, the caption, begin-of-image, then the codes row by row. The folder is one of
transformers' ``LlamaForCausalLM`` with a tokenizer, whose config.json says besides ::

    "multispec": {"modality": "image", "grid": [16, 16], "codes": {"offset": 512, "size": 1024},
                  "begin_of_image": 3, "vq": "../vq", "guidance": 3.0}

where ``vq`` is a folder of diffusers' ``VQModel``, seen from the folder of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multispec.errors import ModelLoadError, PromptError
from multispec.guidance import Guidance
from multispec.modalities.image.checkpoints import load_tokenizer
from multispec.modalities.image.codec import VQCodec
from multispec.modalities.image.families._pixels import require_size
from multispec.modalities.image.reading import Alphabet, caption_ids, with_room
from multispec.modalities.layout import Raster
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.targets import target_for
from multispec.targets.loading import load_model


def fits(config: Any) -> bool:
    """True for a config with a "multispec" part whose modality is "image"."""
    own = getattr(config, "multispec", None)
    return isinstance(own, dict) and own.get("modality") == "image"


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> RasterLlama:
    """The model in a folder, with its picture tokenizer.

    Raises:
        ModelLoadError: a part that is missing, or parts that do not belong together.
    """
    model = load_model(name_or_path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    own = _described(model.config, name_or_path)
    target = target_for(model, owned=True)
    codec = VQCodec.load(Path(name_or_path) / own.vq, device=target.device)
    if codec.cardinality != own.codes:
        raise ModelLoadError(
            f"{str(name_or_path)!r} draws with {own.codes} codes, and its picture tokenizer {own.vq!r} has "
            f"{codec.cardinality}. Train or copy both together."
        )
    return RasterLlama(target, codec, load_tokenizer(name_or_path), own)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What config.json says of the pictures."""

    height: int
    width: int
    offset: int
    codes: int
    begin_of_image: int
    bos: int
    vq: str
    guidance: float


def _described(config: Any, where: str | Path) -> Described:
    own, bos = config.multispec, config.bos_token_id
    try:
        height, width = own["grid"]
        return Described(
            height=int(height),
            width=int(width),
            offset=int(own["codes"]["offset"]),
            codes=int(own["codes"]["size"]),
            begin_of_image=int(own["begin_of_image"]),
            bos=int(bos),
            vq=str(own["vq"]),
            guidance=float(own.get("guidance", 1.0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(
            f"config.json in {str(where)!r} does not describe its pictures: {error!r} in 'multispec' "
            f"({own!r}) or in bos_token_id ({bos!r}). It needs grid, codes with offset and size, "
            "begin_of_image and vq."
        ) from error


class RasterLlama:
    """One loaded model of this format, drawn from its own law at temperature 1; see the module."""

    def __init__(self, target: Target, codec: VQCodec, tokenizer: Any, own: Described) -> None:
        self.target = target
        self.codec = codec
        self.guidance, self.sampling = Guidance(scale=own.guidance), Sampling()
        self.symbols = range(own.offset, own.offset + own.codes)
        self._tokenizer = tokenizer
        self._own = own
        self._alphabet = Alphabet.of(tokenizer)
        self._layout = Raster(
            height=own.height,
            width=own.width,
            codes=own.codes,
            offset=own.offset,
            vocab_size=target.spec.vocab_size,
        )

    def layout(self, size: tuple[int, int] | None = None, /) -> Raster:
        """The one grid that it was trained on.

        Raises:
            UsageError: any other size.
        """
        layout, stride = self._layout, self.codec.stride
        require_size(size, (layout.height * stride, layout.width * stride))
        return layout

    def layout_of(self, prompt: Prompt, /) -> Raster:
        """The one grid that it was trained on."""
        return self._layout

    def prompt(self, caption: str, size: tuple[int, int] | None = None, /) -> Prompt:
        """bos, the caption, begin-of-image.

        Raises:
            PromptError: a caption that its tokenizer cannot read, or that leaves no room for a picture.
            UsageError: a size that the model cannot draw.
        """
        return self._prompt(caption, self.layout(size))

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """bos and begin-of-image, with the negative caption between them where there is one.

        Raises:
            PromptError: a negative caption that its tokenizer cannot read, or that leaves no room.
        """
        return self._prompt(negative or "", self._layout)

    def _prompt(self, caption: str, layout: Raster) -> Prompt:
        own, tokenizer = self._own, self._tokenizer
        self._alphabet.check(caption)
        words = caption_ids(tokenizer, caption, {own.bos, own.begin_of_image, *self.symbols})
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in words:
            raise PromptError(
                f"The caption {caption!r} has a part that this model's tokenizer has no symbol for. It reads "
                f"{self._alphabet}. Say it in other words."
            )
        ids = torch.tensor([own.bos, *words, own.begin_of_image])
        return with_room(Prompt(ids=ids, spec=layout.spec), layout.length, self.target)
