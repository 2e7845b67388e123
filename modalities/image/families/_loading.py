"""Reading a picture model and its processor from a folder or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from multispec.errors import ModelLoadError
from multispec.targets.loading import default_device


def load_pair(
    model_class: Any,
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """The model and the processor of a checkpoint, ready for inference.

    ``dtype`` defaults to float32 on a CPU and elsewhere to the dtype the weights are stored in.

    Raises:
        ModelLoadError: a part that is missing or cannot be read.
    """
    place = torch.device(device) if device is not None else default_device()
    kind = dtype if dtype is not None else (torch.float32 if place.type == "cpu" else "auto")
    model, info = _read(
        model_class,
        name_or_path,
        "weights of the picture model",
        "config.json and model.safetensors",
        dtype=kind,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"{len(missing)} weights of {str(name_or_path)!r} are missing, the first is {missing[0]!r}: "
            "transformers would fill them with random numbers. Copy the complete checkpoint."
        )
    processor = _read(
        AutoProcessor,
        name_or_path,
        "processor of the picture model",
        "processor_config.json and tokenizer.json",
        trust_remote_code=trust_remote_code,
    )
    return model.to(place).eval(), processor


def _read(reader: Any, name_or_path: str | Path, what: str, files: str, **options: Any) -> Any:
    try:
        return reader.from_pretrained(name_or_path, **options)
    except MemoryError:
        raise
    except Exception as error:  # safetensors, tokenizers and transformers raise many kinds for broken files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"The {what} cannot be read from {str(name_or_path)!r}: {reason} Expected a folder with {files}, "
            "or a hub id that is reachable. A file may be missing or cut short: copy it again."
        ) from error
