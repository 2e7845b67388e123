"""``load``: a model by name, folder or object, with the modality that fits it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from multispec.errors import ModelLoadError, UnknownNameError, UnsupportedError, UsageError
from multispec.generator import Generator
from multispec.modalities.image.families import FAMILIES, Entry, family_of, family_of_file
from multispec.modalities.text import Text, load_tokenizer
from multispec.targets import target_for
from multispec.targets.loading import load_config, load_model

EMBEDDED = ("text", "image")


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
    """A generator from embedded models ("text", "image"), a folder or hub id, or a model you already have.

    The modality follows from the model's config unless it is given. ``draft`` is the model that
    ``drafter="auto"`` drafts with: a model, a folder or a hub id. Without a tokenizer, prompts are ids.

    Raises:
        UsageError: neither or both of a name and a model; a modality that nobody knows.
        UnsupportedError: ``modality="image"`` for a model that draws no pictures.
        ModelLoadError: the model cannot be read.

    >>> generator = load("text")                                               # doctest: +SKIP
    """
    if (name_or_path is None) == (model is None):
        raise UsageError(
            "multispec.load needs a name or a model, one of them: load('text'), load('folder-or-hub-id'), or "
            "load(model=model, tokenizer=tokenizer)."
        )
    if modality not in (None, *EMBEDDED):
        raise UnknownNameError("modality", modality, EMBEDDED)
    if model is None:
        folder, draft = _resolve(name_or_path, draft)
        entry = None if modality == "text" else _image_family(folder, modality == "image", trust_remote_code)
        if entry is not None:
            return _load_images(entry, folder, draft, tokenizer, device, dtype, trust_remote_code)
        model = load_model(folder, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        tokenizer = tokenizer if tokenizer is not None else load_tokenizer(folder, trust_remote_code)
        target = target_for(model, owned=True)
    elif modality == "image":
        raise UsageError(
            "A model object does not say how it draws. Pass its folder or hub id, or build the generator: "
            "Generator(family.target, Images(family)), with multispec.modalities.image."
        )
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


def _image_family(name_or_path: str | Path, needed: bool, trust_remote_code: bool) -> Entry | None:
    """The family of image models that this one belongs to, from its config alone."""
    entry = family_of_file(name_or_path)
    if entry is not None:
        return entry
    config = _config_of(name_or_path, trust_remote_code)
    entry = None if config is None else family_of(config)
    if entry is None and needed and config is not None:
        known = ", ".join(one.module for one in FAMILIES)
        raise UnsupportedError(
            f"{str(name_or_path)!r} is of type {getattr(config, 'model_type', None)!r}, which draws no "
            f"pictures. Families that do: {known}."
        )
    return entry


def _config_of(name_or_path: str | Path, trust_remote_code: bool) -> Any:
    """The config, as a plain one where transformers does not know its type; None where there is none."""
    try:
        return load_config(name_or_path, trust_remote_code=trust_remote_code)
    except ModelLoadError:
        pass
    try:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path)
    except (OSError, ValueError):
        return None
    return PreTrainedConfig.from_dict(found) if found else None


def _load_images(
    entry: Entry,
    folder: str | Path,
    draft: Any,
    tokenizer: Any,
    device: Any,
    dtype: Any,
    trust_remote_code: bool,
) -> Generator:
    if tokenizer is not None:
        raise UsageError(
            f"The {entry.module} models read captions with a tokenizer of their own: got tokenizer=... too. "
            "Leave it out, or put it into the model's folder."
        )
    try:
        from multispec.modalities.image.adapter import Images
    except ImportError as error:
        raise UnsupportedError(
            f"Pictures need the package pillow, which cannot be imported ({error}): "
            "pip install 'multispec[image]'"
        ) from error
    family = entry.load(folder, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    if isinstance(draft, (str, Path)):
        draft = _load_draft(draft, family.target.device, dtype, trust_remote_code)
    return Generator(family.target, Images(family), draft)


def _load_draft(draft: Any, device: torch.device, dtype: Any, trust_remote_code: bool) -> Any:
    entry = _image_family(draft, False, trust_remote_code)
    if entry is not None:
        family = entry.load(draft, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return family.target
    model = load_model(draft, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    return target_for(model, owned=True)


def _moved(model: Any, device: Any, dtype: Any) -> Any:
    if device is None and dtype is None:
        return model
    return model.to(**{k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None})
