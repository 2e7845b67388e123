"""How a model is run: causal, encoder-decoder; later parallel slots and two-level models."""

from __future__ import annotations

from typing import Any

from multispec.errors import UnsupportedError
from multispec.protocols import Target
from multispec.targets.causal import CausalTarget
from multispec.targets.encoder_decoder import EncoderDecoderTarget
from multispec.targets.fast import prepare

__all__ = ["CausalTarget", "EncoderDecoderTarget", "deterministic", "target_for"]


def deterministic(target: Target) -> Target:
    """The target, every pass of it in one shape from now on: see ``CausalTarget``.

    Raises:
        UnsupportedError: a target whose passes cannot be padded, or a machine that does not keep the bits.
    """
    if not isinstance(target, CausalTarget):
        can = target.capabilities
        raise UnsupportedError(
            f"deterministic pads the passes of a decoder over one stream of ids: {type(target).__name__} is "
            f"run {can.way or 'elsewhere'} ({can.why or 'in passes that are made of more than ids'}). Leave "
            "it out: in float32 drafts change no symbol as it is."
        )
    target.pad()
    return target


def target_for(model: Any, *, owned: bool = False, fast: str = "auto") -> Target:
    """The target that runs a transformers model; a target is returned as it is.

    ``owned`` says that the model is ours to change, ``fast`` how it is made ready: see ``CausalTarget``.

    Raises:
        ModelLoadError: the model has no weights.
        UnknownNameError: no such way of making it ready.
        UnsupportedError: nothing here can keep the model's state.
    """
    config = getattr(model, "config", None)
    if config is None:
        target: Target = model
        return prepare(target, fast) if owned or fast != "auto" else target
    if getattr(config, "is_encoder_decoder", False):
        target = EncoderDecoderTarget(model)
        return prepare(target, fast) if owned or fast != "auto" else target
    return CausalTarget(model, owned=owned, fast=fast)
