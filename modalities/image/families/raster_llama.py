"""Captions and picture codes in one vocabulary, run by an ordinary Llama: the embedded format.

A stream is bos, the caption, begin-of-image, then the codes row by row. The folder is one of
transformers' ``LlamaForCausalLM`` with a tokenizer, whose config.json says besides ::

    "multispec": {"modality": "image", "grid": [16, 16], "codes": {"offset": 512, "size": 1024},
                  "begin_of_image": 3, "vq": "../vq", "guidance": 3.0}

where ``vq`` is a folder of diffusers' ``VQModel``, seen from the folder of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from multispec.errors import ModelLoadError, PromptError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.codec import VQCodec
from multispec.modalities.image.reading import Alphabet
from multispec.modalities.layout import Raster
from multispec.protocols import Target
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
    return RasterLlama(target, codec, _tokenizer(name_or_path), own)


def _tokenizer(name_or_path: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except Exception as error:  # tokenizers and transformers raise many kinds for broken files
        raise ModelLoadError(
            f"The tokenizer in {str(name_or_path)!r} cannot be read: {error} Copy tokenizer.json again."
        ) from error


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
    """One loaded model of this format; see the module."""

    def __init__(self, target: Target, codec: VQCodec, tokenizer: Any, own: Described) -> None:
        self.target = target
        self.codec = codec
        self.guidance = Guidance(scale=own.guidance)
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
        own = (layout.height * stride, layout.width * stride)
        if size is not None and tuple(size) != own:
            raise UsageError(
                f"This model draws pictures of {own[0]} x {own[1]} pixels and no others: got "
                f"{' x '.join(map(str, size))}. Leave the size out, and resize the picture."
            )
        return layout

    def layout_of(self, prompt: Prompt, /) -> Raster:
        """The one grid that it was trained on."""
        return self._layout

    def prompt(self, caption: str, size: tuple[int, int] | None = None, /) -> Prompt:
        """bos, the caption, begin-of-image.

        Raises:
            PromptError: a caption that its tokenizer cannot read, or that leaves no room for a picture.
        """
        layout = self.layout(size)
        ids = self._ids(caption)
        limit = self.target.context_length
        if limit is not None and len(ids) + layout.length > limit:
            raise PromptError(
                f"A caption may have {limit - layout.length - 2} symbols here, since the picture needs "
                f"{layout.length} of the model's context of {limit}: got {len(ids) - 2}. Shorten the caption."
            )
        return Prompt(ids=torch.tensor(ids), spec=layout.spec)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """bos and begin-of-image, with the negative caption between them where there is one."""
        return Prompt(ids=torch.tensor(self._ids(negative or "")), spec=prompt.spec)

    def _ids(self, caption: str) -> list[int]:
        self._alphabet.check(caption)
        ids: list[int] = self._tokenizer(caption, add_special_tokens=False)["input_ids"]
        self._check(caption, ids)
        return [self._own.bos, *ids, self._own.begin_of_image]

    def _check(self, caption: str, ids: Sequence[int]) -> None:
        own = self._own
        codes = range(own.offset, own.offset + own.codes)
        special = {own.bos, own.begin_of_image}
        wrong = [one for one in ids if one in codes or one in special]
        if wrong:
            raise PromptError(
                f"A caption is words: got {caption!r}, which holds the symbol {wrong[0]} that marks or codes "
                "pictures. Take it out."
            )
        if self._tokenizer.unk_token_id is not None and self._tokenizer.unk_token_id in ids:
            raise PromptError(
                f"The caption {caption!r} has a part that this model's tokenizer has no symbol for. It reads "
                f"{self._alphabet}. Say it in other words."
            )
