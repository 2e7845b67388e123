"""Reading transformers models from a folder or hub id: safetensors, no remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)

from multispec.errors import ModelLoadError

Device = str | torch.device


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_config(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model.

    Raises:
        ModelLoadError: no such folder or hub id, or no readable config.json in it.
    """
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"No model can be read from {str(name_or_path)!r}: {_first_line(error)} "
            "Expected a folder with config.json and model.safetensors, or a hub id that is reachable."
        ) from error


def load_model(
    name_or_path: str | Path,
    *,
    device: Device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A transformers model with a decoder, ready for inference.

    ``dtype`` defaults to float32 on a CPU, where half precision is slow on many machines, and
    elsewhere to the dtype the weights are stored in. Remote code is off unless asked for.

    Raises:
        ModelLoadError: weights are missing or truncated, or the architecture generates nothing.
    """
    config = load_config(name_or_path, trust_remote_code=trust_remote_code)
    place = torch.device(device) if device is not None else default_device()
    kind = dtype if dtype is not None else (torch.float32 if place.type == "cpu" else "auto")
    try:
        model, info = _auto_class(config).from_pretrained(
            name_or_path, dtype=kind, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    except MemoryError:
        raise
    except Exception as error:  # safetensors and transformers raise many kinds for broken files
        raise ModelLoadError(
            f"The weights in {str(name_or_path)!r} cannot be read: {_first_line(error)} "
            "The file may be missing or cut short: compare its size with the source and copy it again."
        ) from error
    _refuse_missing(name_or_path, info)
    return model.to(place).eval()


def _auto_class(config: Any) -> Any:
    if not getattr(config, "is_encoder_decoder", False):
        return AutoModelForCausalLM
    speech = type(config).__name__ in {"WhisperConfig", "Speech2TextConfig"}
    return AutoModelForSpeechSeq2Seq if speech else AutoModelForSeq2SeqLM


def _refuse_missing(name_or_path: str | Path, info: dict[str, Any]) -> None:
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelLoadError(
            f"{len(missing)} weights of {str(name_or_path)!r} are missing, the first is {missing[0]!r}: "
            "transformers would fill them with random numbers. Copy the complete checkpoint."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
