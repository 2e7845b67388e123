"""``load``: a model by name, folder or object, with the modality that fits it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch

from multispec.errors import ModelLoadError, UnknownNameError, UsageError
from multispec.generator import Generator
from multispec.modalities.text import Text, load_tokenizer
from multispec.targets import target_for
from multispec.targets.loading import load_model

EMBEDDED = ("text",)


def assets() -> Path:
    """The folder of the embedded models."""
    return Path(str(resources.files("multispec.assets")))


def load(
    name_or_path: str | Path | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    modality: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    draft: Any = None,
    trust_remote_code: bool = False,
) -> Generator:
    """A generator from embedded models ("text"), a folder or hub id, or a model you already have.

    ``draft`` is the model that ``drafter="auto"`` drafts with: a model, a folder or a hub id.
    Without a tokenizer, prompts are ids.

    Raises:
        UsageError: neither or both of a name and a model.
        ModelLoadError: the model cannot be read.

    >>> generator = load("text")                                               # doctest: +SKIP
    """
    if (name_or_path is None) == (model is None):
        raise UsageError(
            "multispec.load needs a name or a model, one of them: load('text'), load('folder-or-hub-id'), or "
            "load(model=model, tokenizer=tokenizer)."
        )
    if modality not in (None, "text"):
        raise UnknownNameError("modality", modality, EMBEDDED)
    if model is None:
        folder, draft = _resolve(name_or_path, draft)
        model = load_model(folder, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        tokenizer = tokenizer if tokenizer is not None else load_tokenizer(folder, trust_remote_code)
        target = target_for(model, owned=True)
    else:
        target = target_for(_moved(model, device, dtype))
    if isinstance(draft, (str, Path)):
        draft = _load_draft(draft, target.device, dtype, trust_remote_code)
    words = Text(tokenizer, model) if tokenizer is not None else None
    return Generator(target, words, draft)


def _resolve(name_or_path: Any, draft: Any) -> tuple[str | Path, Any]:
    name = str(name_or_path)
    if name in EMBEDDED:
        folder = assets() / name
        if not (folder / "target" / "config.json").is_file():
            raise ModelLoadError(
                f"The embedded {name} models are not in this installation ({folder}). Install multispec "
                f"with its assets, or train them: python recipes/train_{name}.py."
            )
        return folder / "target", folder / "draft" if draft is None else draft
    if not Path(name).exists() and "/" not in name and len(name) < 12 and name.isalpha():
        raise UnknownNameError("embedded model or folder", name, EMBEDDED)
    return name, draft


def _load_draft(draft: Any, device: torch.device, dtype: Any, trust_remote_code: bool) -> Any:
    model = load_model(draft, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    return target_for(model, owned=True)


def _moved(model: Any, device: Any, dtype: Any) -> Any:
    if device is None and dtype is None:
        return model
    return model.to(**{k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None})
