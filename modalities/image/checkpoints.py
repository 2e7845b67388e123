"""Reading image models from files, folders and the hub: no remote code, no pickled objects."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer

from multispec.errors import ModelLoadError
from multispec.targets.loading import Device, default_device

State = dict[str, Tensor]
# Training scripts put the weights under one of these, beside optimizers and arguments.
_WRAPPERS = ("model", "module", "state_dict", "ema")


def load_pretrained(
    kind: Any,
    name_or_path: str | Path,
    *,
    device: Device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
    optional: Sequence[str] = (),
) -> tuple[Any, tuple[str, ...]]:
    """A transformers model of class ``kind`` and the weights it lacks, which may be ``optional`` ones only.

    ``optional`` are beginnings of names. ``dtype`` defaults to float32 on a CPU, elsewhere to that
    of the weights.

    Raises:
        ModelLoadError: files are missing or cut short, or lack other weights.
    """
    place = torch.device(device) if device is not None else default_device()
    wanted = dtype if dtype is not None else (torch.float32 if place.type == "cpu" else "auto")
    model, info = read_part(
        kind,
        name_or_path,
        "weights of the picture model",
        "config.json and model.safetensors",
        dtype=wanted,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    missing = tuple(sorted(info["missing_keys"]))
    refuse_missing([name for name in missing if not name.startswith(tuple(optional))], name_or_path)
    return model.to(place).eval(), missing


def load_processor(name_or_path: str | Path, trust_remote_code: bool = False) -> Any:
    """The processor of a checkpoint.

    Raises:
        ModelLoadError: it is missing or cannot be read.
    """
    files = "processor_config.json and tokenizer.json"
    what = "processor of the picture model"
    return read_part(AutoProcessor, name_or_path, what, files, trust_remote_code=trust_remote_code)


def load_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        ModelLoadError: it is missing or cannot be read.
    """
    what = "tokenizer of the picture model"
    return read_part(AutoTokenizer, name_or_path, what, "tokenizer.json", trust_remote_code=trust_remote_code)


def read_part(reader: Any, name_or_path: str | Path, what: str, files: str, **options: Any) -> Any:
    """What ``reader.from_pretrained`` makes of a folder with ``files``, or of a hub id.

    Raises:
        ModelLoadError: files are missing or cut short; names ``what`` cannot be read.
    """
    try:
        return reader.from_pretrained(name_or_path, **options)
    except MemoryError:
        raise
    except Exception as error:  # safetensors, tokenizers and transformers raise many kinds for broken files
        raise ModelLoadError(
            f"The {what} cannot be read from {str(name_or_path)!r}: {first_line(error)} Expected a folder "
            f"with {files}, or a hub id that is reachable. A file may be missing or cut short: copy it again."
        ) from error


def refuse_missing(names: Sequence[str], source: object) -> None:
    """Refuse a checkpoint that lacks weights.

    Raises:
        ModelLoadError: names the first of them.
    """
    if names:
        raise ModelLoadError(
            f"{len(names)} weights of {str(source)!r} are missing, the first is {names[0]!r}: they would be "
            "random numbers. Copy the complete checkpoint."
        )


def file_of(name_or_path: str | Path) -> Path:
    """A file or folder here, or a file of the hub named ``owner/repository/path/of/the.file``.

    Raises:
        ModelLoadError: neither is there.
    """
    path, parts = Path(name_or_path), str(name_or_path).split("/")
    if path.exists():
        return path
    if len(parts) < 3 or path.is_absolute() or parts[0].startswith("."):
        raise ModelLoadError(
            f"There is no file or folder {str(name_or_path)!r}. Expected a path, or a file of the hub as "
            "'owner/repository/file.pt'."
        )
    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except Exception as error:  # the hub raises many kinds: offline, no such file, no permission
        raise ModelLoadError(
            f"{str(name_or_path)!r} is no path here, and cannot be had from the hub: {first_line(error)} "
            "Check the name, or download the file and give its path."
        ) from error


def read_state(path: Path) -> State:
    """The weights in a ``.safetensors`` file or in one that ``torch.save`` wrote, out of their wrapper.

    Raises:
        ModelLoadError: the file is cut short, is no such file, or holds objects that are no weights.
    """
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except MemoryError:
        raise
    except Exception as error:  # truncated archives raise many kinds
        raise ModelLoadError(
            f"No weights can be read from {str(path)!r}: {first_line(error)} The file may be cut short "
            "(compare its size with the source), or hold pickled objects beside the weights (save its "
            "state dict as safetensors where you trust it)."
        ) from error
    return _unwrapped(found, path)


def _unpickled(path: Path) -> Any:
    # Training scripts store their arguments too; a Namespace holds plain values and runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(found: Any, path: Path) -> State:
    inner = found
    if isinstance(found, Mapping):
        inner = next((found[name] for name in _WRAPPERS if isinstance(found.get(name), Mapping)), found)
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        kind = sorted(map(str, found))[:5] if isinstance(found, Mapping) else type(found).__name__
        raise ModelLoadError(
            f"{str(path)!r} holds no state dict: got {kind}, expected names and tensors, as they are or "
            f"under one of {', '.join(_WRAPPERS)}."
        )
    return dict(inner)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
