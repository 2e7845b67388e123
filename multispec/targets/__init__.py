"""How a model is run: causal, encoder-decoder; later parallel slots and two-level models."""

from __future__ import annotations

from typing import Any

from multispec.protocols import Target
from multispec.targets.causal import CausalTarget
from multispec.targets.encoder_decoder import EncoderDecoderTarget

__all__ = ["CausalTarget", "EncoderDecoderTarget", "target_for"]


def target_for(model: Any, *, owned: bool = False) -> Target:
    """The target that runs a transformers model; a target is returned as it is.

    Raises:
        ModelLoadError: the model has no weights.
        UnsupportedError: nothing here can keep the model's state.
    """
    config = getattr(model, "config", None)
    if config is None:
        target: Target = model
        return target
    if getattr(config, "is_encoder_decoder", False):
        return EncoderDecoderTarget(model)
    return CausalTarget(model, owned=owned)
