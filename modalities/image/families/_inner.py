"""The language model inside a picture model as a target: ragged batches, trees, our masks and cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from multispec.cache import RaggedCache
from multispec.errors import MultispecError, UnsupportedError
from multispec.modalities.image.families._ragged import Bind, RaggedTarget, Reference, require_agreement
from multispec.stream import Prompt, StreamSpec
from multispec.targets.causal import attention_of, context_length, decoder_config, refuse_meta
from multispec.targets.masks import Pass

# The embeddings [B, Q, C] of a pass, and its positions.
Embed = Callable[[Tensor, Pass], Tensor]
Positions = Callable[[Pass], Tensor]


class InnerForward:
    """A ``ragged.Forward``: embeddings of the family, the layers of the model, a head of the family."""

    def __init__(self, model: Any, embed: Embed, head: Callable[[Tensor], Tensor], positions: Positions):
        self._body = model.model.language_model
        self._embed, self._head, self._positions = embed, head, positions
        self.attention = attention_of(model)
        self.layers = int(decoder_config(model).num_hidden_layers)
        self.like: Tensor = self._body.get_input_embeddings().weight

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers."""
        out = self._body(
            inputs_embeds=self._embed(ids, step),
            attention_mask=_mask(step),
            position_ids=self._positions(step),
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state
        return self._head(hidden if keep is None else hidden[:, keep])


def _mask(step: Pass) -> Any:
    masks = dict(step.masks)
    if None in masks.values():
        return None
    return masks if len(masks) > 1 else next(iter(masks.values()))


def inner_target(
    model: Any, bind: Bind, spec: StreamSpec, prompts: Sequence[Prompt], reference: Reference
) -> RaggedTarget:
    """A target over the language model inside ``model``, compared with ``reference`` on two ``prompts``.

    Raises:
        ModelLoadError: the model has no weights.
        UnsupportedError: a language model that cannot be run over ragged rows and trees.
    """
    refuse_meta(model)
    name, weight = type(model).__name__, model.get_input_embeddings().weight
    limit = context_length(model)
    target = RaggedTarget(bind, spec, context_length=limit, device=weight.device, way="InnerForward")
    try:
        require_agreement(name, target, prompts, reference, weight.dtype)
    except MultispecError:
        raise
    except Exception as error:  # whatever a probe raises means: not this way
        kind = type(decoder_config(model)).__name__
        raise UnsupportedError(
            f"{name} with a {kind} inside cannot be run over ragged rows and trees: it raises "
            f"{type(error).__name__}: {error}. Load it with attn_implementation='sdpa', which takes a mask."
        ) from error
    return target
