"""What all codecs refuse, and how their checkpoints are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.errors import ModelLoadError, UnsupportedError, UsageError


@dataclass(frozen=True)
class Read:
    """A model, and whether its encoder was in the checkpoint."""

    model: Any
    encodes: bool


def read_model(
    kind: Any, name_or_path: str | Path, device: str | torch.device, encoder: Sequence[str] = ("encoder.",)
) -> Read:
    """A transformers codec of class ``kind`` in float32; weights of its ``encoder`` may be missing.

    Raises:
        ModelLoadError: the folder cannot be read, or lacks other weights.
    """
    try:
        model, info = kind.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    except MemoryError:
        raise
    except Exception as error:  # safetensors and transformers raise many kinds for broken files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"No {kind.__name__} can be read from {str(name_or_path)!r}: {first} Expected a folder with "
            "config.json and model.safetensors, or a hub id that is reachable. A file may be cut short: copy "
            "it again."
        ) from error
    missing = sorted(info["missing_keys"])
    needed = [name for name in missing if not name.startswith(tuple(encoder))]
    if needed:
        raise ModelLoadError(
            f"{len(needed)} weights of the codec {str(name_or_path)!r} are missing, the first is "
            f"{needed[0]!r}: they would be random numbers. Copy the complete checkpoint."
        )
    return Read(model.to(device).eval(), encodes=not missing)


def require_type(model: Any, kind: Any, model_type: str) -> None:
    """Refuse a model of another class.

    Raises:
        UsageError: says which codec reads it.
    """
    found = getattr(getattr(model, "config", None), "model_type", None)
    if found != model_type:
        raise UsageError(
            f"This codec runs a {kind}: got {type(model).__name__} of type {found!r}. Load it with "
            "multispec.modalities.speech.codecs.load, which looks at the type."
        )


def check_books(asked: int | None, known: Sequence[int], name: str) -> int:
    """The number of codebooks to use: the largest one where nobody says.

    Raises:
        UsageError: one that this codec cannot be used with.
    """
    count = max(known) if asked is None else asked
    if count not in known:
        choices = f"{min(known)} .. {max(known)}" if len(known) == max(known) else str(sorted(known))
        raise UsageError(
            f"{name} has no way to use {count} codebooks: it knows {choices}. Take the number that the "
            "speech model was trained with."
        )
    return count


def check_codes(codes: Tensor, num_codebooks: int, cardinality: int) -> None:
    """Refuse codes that no entry of the codebooks stands for.

    Raises:
        UsageError: another number of codebooks, or a code outside of them; names the first.
    """
    if codes.shape[1] != num_codebooks:
        raise UsageError(
            f"This codec takes {num_codebooks} codebooks a frame: got {codes.shape[1]}. Load it with "
            "num_codebooks=..., or take the codec that belongs to the model."
        )
    wrong = ((codes < 0) | (codes >= cardinality)).nonzero()
    if len(wrong):
        frame, book = wrong[0].tolist()
        raise UsageError(
            f"Codes must lie in [0, {cardinality}): got {int(codes[frame, book])} in frame {frame}, codebook "
            f"{book}. Take off the offset of the model's ids first, and leave out what ends the speech."
        )


def check_sound(waveform: Tensor, channels: int, encodes: bool = True) -> None:
    """Refuse what cannot be encoded.

    Raises:
        UnsupportedError: there is no encoder.
        UsageError: an empty sound, another number of channels, or samples that are not finite.
    """
    if not encodes:
        raise UnsupportedError(
            "This codec has no encoder weights, so sound cannot become codes here. Load the complete "
            "checkpoint of its authors, whose codes are the same."
        )
    if waveform.shape[0] != channels:
        raise UsageError(
            f"This codec takes {channels} channel{'s' * (channels > 1)}: got {waveform.shape[0]}. Mix it "
            "down with waveform.mean(0, keepdim=True), or repeat the channel."
        )
    if not waveform.shape[1]:
        raise UsageError("A sound needs samples: got none. Check the file that it was read from.")
    if not bool(waveform.isfinite().all()):
        raise UsageError("Samples must be finite numbers: got NaN or infinity. Check how the sound was made.")


def whole_frames(waveform: Tensor, hop: int) -> Tensor:
    """The sound with silence behind it, up to the end of a frame."""
    return F.pad(waveform, (0, -waveform.shape[-1] % hop))


def sound(samples: Tensor, length: int) -> Tensor:
    """``[C, length]`` samples in [-1, 1] on the CPU; what a decoder leaves out at the end is silent."""
    kept = samples[:, :length].float().clamp(-1, 1).cpu()
    return F.pad(kept, (0, length - kept.shape[1]))
