"""What families of two-level models share: masks, reading a checkpoint, a comparison with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multispec.errors import ModelLoadError, MultispecError, UnsupportedError
from multispec.stream import Draft, Prompt
from multispec.targets.causal import tolerance
from multispec.targets.loading import default_device
from multispec.targets.masks import Pass
from multispec.targets.two_level import TwoLevelTarget

# The logits [V] behind a prompt and these symbols, by plain passes of the model without our caches.
Reference = Callable[[Prompt, Sequence[int]], Tensor]


def mask_of(step: Pass) -> Any:
    """The masks of a pass as a transformers model takes them: none, one, or one for each kind of layer."""
    masks = dict(step.masks)
    if None in masks.values():
        return None
    return masks if len(masks) > 1 else next(iter(masks.values()))


def explicit_mask(step: Pass, width: int, like: Tensor) -> Tensor | None:
    """The mask of a pass for layers that are called directly, and make none themselves."""
    (mask,) = step.masks.values()
    return _square(width, like.dtype, like.device) if mask is None and width > 1 else mask


@lru_cache(maxsize=64)
def _square(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    lowest = torch.finfo(dtype).min
    return torch.full((1, 1, width, width), lowest, dtype=dtype, device=device).triu_(1)


def read_pretrained(
    kind: Any, name_or_path: str | Path, *, device: Any, dtype: Any, trust_remote_code: bool
) -> Any:
    """A transformers model of class ``kind``; in float32 on a CPU unless told otherwise.

    Raises:
        ModelLoadError: files or weights are missing or cut short.
    """
    place = torch.device(device) if device is not None else default_device()
    wanted = dtype if dtype is not None else (torch.float32 if place.type == "cpu" else "auto")
    options = {"dtype": wanted, "output_loading_info": True, "trust_remote_code": trust_remote_code}
    model, info = read_part(kind, name_or_path, "config.json and model.safetensors", **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"{len(missing)} weights of {str(name_or_path)!r} are missing, the first is {missing[0]!r}: they "
            "would be random numbers. Copy the complete checkpoint."
        )
    return model.to(place).eval()


def read_part(reader: Any, name_or_path: str | Path, files: str, **options: Any) -> Any:
    """What ``reader.from_pretrained`` makes of a folder with ``files``, or of a hub id.

    Raises:
        ModelLoadError: files are missing or cut short.
    """
    try:
        return reader.from_pretrained(name_or_path, **options)
    except MemoryError:
        raise
    except Exception as error:  # safetensors, tokenizers and transformers raise many kinds for broken files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"The speech model in {str(name_or_path)!r} cannot be read: {first} Expected a folder "
            f"with {files}, or a hub id that is reachable. A file may be missing or cut short: copy it again."
        ) from error


def checked(target: TwoLevelTarget, prompts: Sequence[Prompt], reference: Reference) -> TwoLevelTarget:
    """The target itself, if ragged rows in its caches give the logits of plain passes.

    Raises:
        UnsupportedError: they do not, or the model takes neither our masks nor our caches.
    """
    try:
        far = _distance(target, prompts, reference)
    except MultispecError:
        raise
    except Exception as error:  # whatever a probe raises means: not this way
        raise UnsupportedError(
            f"{target.name} cannot be run over ragged rows: it raises {type(error).__name__}: {error}. A "
            "model of transformers needs attn_implementation='sdpa' or 'eager', which take a mask."
        ) from error
    limit = tolerance(target.time.like.dtype)
    if not far <= limit:  # NaN is no agreement
        raise UnsupportedError(
            f"{target.name} runs here otherwise than by its plain forward pass: logits differ by {far:.2g} "
            f"of their deviation, the limit is {limit:.2g}. Report the checkpoint and its config."
        )
    return target


@torch.inference_mode()
def _distance(target: TwoLevelTarget, prompts: Sequence[Prompt], reference: Reference) -> float:
    """The largest difference behind a prompt and in two frames, for two rows of different length."""
    slots = target.spec.slots
    # Small codes: any codebook has those.
    run = [(3 + 5 * place) % min(slot.size, 7) for place, slot in enumerate((*slots, *slots[:2]))]
    runs = [run, run[:2]]
    session = target.begin(prompts, [len(prompt.ids) + 3 * len(slots) for prompt in prompts], len(run))
    first = session.prefill().logits
    drafts = [Draft.chain(one[1:]) for one in runs]
    scores = session.score([0, 1], [one[0] for one in runs], drafts).logits
    far: list[float] = []
    for row, (prompt, one) in enumerate(zip(prompts, runs, strict=True)):
        far.append(_far(first[row][0], reference(prompt, [])))
        # The slots behind the first, where a frame ends and where the next begins.
        nodes = sorted({0, 1, len(slots) - 2, len(slots) - 1, len(one) - 1} & {*range(len(one))})
        far += [_far(scores[row][node], reference(prompt, one[: node + 1])) for node in nodes]
    return float(torch.tensor(far).max())


def _far(found: Tensor, expected: Tensor) -> float:
    found = found[: len(expected)].float()
    return float((found - expected.float()).abs().max()) / (float(expected.float().std()) + 1e-12)
