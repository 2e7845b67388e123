"""Targets over ragged batches and trees, compared once with a plain pass of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multispec.cache import RaggedCache
from multispec.errors import MultispecError, UnsupportedError
from multispec.protocols import MAX_NODES, Capabilities, TargetSession
from multispec.stream import Draft, Prompt, StreamSpec
from multispec.targets.causal import attention_of, decoder_config, tolerance
from multispec.targets.masks import Pass
from multispec.targets.ragged import Bind, Forward, RaggedSession, entries, entry_bytes
from multispec.tree import path_to

# The logits [V] after a prompt and these symbols, by a plain pass without our cache.
Reference = Callable[[Prompt, Sequence[int]], Tensor]
# The embeddings [B, Q, C] of a pass, and its positions.
Embed = Callable[[Tensor, Pass], Tensor]
Positions = Callable[[Pass], Tensor]


class RaggedTarget:
    """A target that runs ragged batches and trees through the ``Forward`` of each batch.

    ``context_length`` counts the last symbol, which is never run itself.
    """

    def __init__(self, bind: Bind, spec: StreamSpec, context_length: int | None, like: Forward) -> None:
        self._bind, self._entry = bind, 0
        self.spec = spec
        self.context_length = context_length
        self.device = like.like.device
        self.capabilities = Capabilities(way=type(like).__name__)

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        return RaggedSession(self._bind(prompts), prompts, capacity, nodes, self._bind)

    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes for a row that may grow to so many symbols, found once by running a prompt."""
        if not self._entry:
            self._entry = entry_bytes(self._bind([prompt]), prompt)
        return self._entry * entries(capacity, MAX_NODES)


def checked_target(
    name: str,
    bind: Bind,
    spec: StreamSpec,
    *,
    context_length: int | None,
    prompts: Sequence[Prompt],
    reference: Reference,
) -> RaggedTarget:
    """The target of the model ``name``, compared with ``reference`` behind two ``prompts``.

    Raises:
        UnsupportedError: the model cannot be run over ragged rows and trees, or runs otherwise there.
    """
    try:
        forward = bind(prompts)
        target = RaggedTarget(bind, spec, context_length, forward)
        far = _distance(target, prompts, reference)
    except MultispecError:
        raise
    except Exception as error:  # whatever a probe raises means: not this way
        raise UnsupportedError(
            f"{name} cannot be run over ragged rows and trees: it raises {type(error).__name__}: {error}. "
            "A model of transformers needs attn_implementation='sdpa', which takes a mask."
        ) from error
    limit = tolerance(forward.like.dtype)
    if not far <= limit:  # NaN is no agreement
        raise UnsupportedError(
            f"{name} runs here otherwise than by its plain forward pass: logits differ by {far:.2g} of "
            f"their deviation, the limit is {limit:.2g}. Report the checkpoint and its config."
        )
    return target


@torch.inference_mode()
def _distance(target: RaggedTarget, prompts: Sequence[Prompt], reference: Reference) -> float:
    """The largest difference of a tree and a chain, each behind a prompt, from plain passes at each node."""
    size = target.spec.vocab_size
    session = target.begin(prompts, [len(prompt.ids) + 8 for prompt in prompts], 4)
    first = session.prefill().logits
    tree = Draft(tokens=torch.tensor([1 % size, 2 % size, 3 % size]), parents=(-1, -1, 1))
    drafts, roots = [tree, Draft.chain([5 % size])], [6 % size, 4 % size]
    scores = session.score([0, 1], roots, drafts).logits
    far: list[float] = []
    for row, (prompt, root, draft) in enumerate(zip(prompts, roots, drafts, strict=True)):
        far.append(_far(first[row][0], reference(prompt, [])))
        for node in range(-1, len(draft)):
            path = [draft.ids[step] for step in path_to(draft.parents, node)]
            far.append(_far(scores[row][node + 1], reference(prompt, [root, *path])))
    return float(torch.tensor(far).max())


def _far(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.float().std()) + 1e-12
    return float((found.float() - expected.float()).abs().max()) / scale


class InnerForward:
    """A ``ragged.Forward``: embeddings of the family, the language model inside, a head of the family."""

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


def inner_name(model: Any) -> str:
    """A model and the language model inside, as messages call them."""
    return f"{type(model).__name__} with a {type(decoder_config(model)).__name__} inside"
