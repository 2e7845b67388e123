"""Decoder-only models of transformers as targets, in the fastest way that gives the model's own
logits.

Three ways are tried in this order, each compared once with the model's plain forward on a few
symbols: the fused arithmetic of the Llama family; the model's own modules with our masks and our
preallocated cache (both take ragged batches and trees); the model's own cache, one row at a time
(chains only).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from multispec.errors import ModelLoadError, UnsupportedError
from multispec.protocols import MAX_NODES, Capabilities, TargetSession
from multispec.stream import Draft, Prompt, Slot, StreamSpec
from multispec.targets.fused import FusedForward, can_pack
from multispec.targets.masks import Attention
from multispec.targets.ragged import Forward, Metered, ModuleForward, RaggedSession, entries, entry_bytes
from multispec.targets.rowwise import RowwiseSession, StateBytes, state_bytes
from multispec.tree import path_to


def decoder_config(model: Any) -> Any:
    """The configuration of the part that emits symbols."""
    return model.config.get_text_config(decoder=True)


def vocabulary(model: Any) -> int:
    """How many symbols the output layer scores."""
    head = model.get_output_embeddings()
    if head is not None and isinstance(getattr(head, "weight", None), Tensor):
        return int(head.weight.shape[0])
    return int(decoder_config(model).vocab_size)


def context_length(model: Any) -> int | None:
    """The most positions a decoder has learned or been configured for, or None where there is no bound."""
    config = decoder_config(model)
    for name in ("max_position_embeddings", "n_positions", "max_target_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def end_ids(model: Any) -> tuple[int, ...]:
    """The ids that end a stream, from the generation config, else from the config."""
    generation = getattr(model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = getattr(decoder_config(model), "eos_token_id", None)
    if found is None:
        return ()
    return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)


def attention_of(model: Any) -> Attention:
    """The attention layer kinds that a model's configuration names."""
    config = decoder_config(model)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if not kinds:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    return Attention(
        kinds=tuple(dict.fromkeys(kinds)),
        window=window,
        chunk=getattr(config, "attention_chunk_size", None),
    )


def refuse_meta(model: Any) -> None:
    """Refuse a model without weights.

    Raises:
        ModelLoadError: some parameter is on the meta device.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelLoadError(
                f"{type(model).__name__} has no weights: parameter {name!r} is on the meta device. "
                "Load it with from_pretrained, or give it storage with model.to_empty(device=...) first."
            )


class CausalRunner:
    """One row of a decoder-only model in its own cache."""

    def __init__(self, model: Any) -> None:
        self.model = model
        names = inspect.signature(model.forward).parameters
        found = [name for name in ("past_key_values", "cache_params") if name in names]
        if not found:
            raise UnsupportedError(
                f"{type(model).__name__} takes neither past_key_values nor cache_params, so its state cannot "
                "be kept between passes. Use a model of transformers >= 5 with the shared cache classes."
            )
        self._cache_name = found[0]
        self._keeps = "logits_to_keep" in names

    def start(self, prompt: Prompt) -> tuple[Tensor, Any]:
        """Run the prompt in a fresh cache."""
        cache = DynamicCache(config=self.model.config)
        ids = prompt.ids[None].to(self.model.device)
        logits = self._forward(ids, cache, 1, dict(prompt.conditioning))
        return logits[0, -1:], cache

    def step(self, ids: Sequence[int], cache: Any, keep: int) -> Tensor:
        """Run ids behind the cache."""
        rows = torch.tensor([list(ids)], device=self.model.device)
        return self._forward(rows, cache, keep, {})[0, -keep:]

    def _forward(self, ids: Tensor, cache: Any, keep: int, extra: dict[str, Any]) -> Tensor:
        if self._keeps:
            extra["logits_to_keep"] = keep
        out = self.model(input_ids=ids, use_cache=True, **{self._cache_name: cache}, **extra)
        logits: Tensor = out.logits
        return logits


class CausalTarget:
    """Any decoder-only transformers model.

    ``owned`` says that the model is ours alone, so that its weights may be held a second time in
    the order that the processor likes best.

    Raises:
        ModelLoadError: the model has no weights.
        UnsupportedError: the model keeps its state in a way that nothing here can follow.
    """

    def __init__(self, model: Any, *, owned: bool = False, fused: bool = True) -> None:
        refuse_meta(model)
        self.model = model.eval()
        self.spec = StreamSpec(slots=(Slot(size=vocabulary(model)),), end_ids=end_ids(model))
        self.context_length = context_length(model)
        self.device: torch.device = next(model.parameters()).device
        self._reasons: list[str] = []
        self._entry = 0
        self._state: StateBytes | None = None
        self._parallel = True
        self._forward = self._choose(owned and can_pack(next(model.parameters())), fused)
        if self._forward is None:
            self._runner = CausalRunner(model)
            self._parallel = continues(model, self._runner)
        self.capabilities = Capabilities(
            supports_tree=self._forward is not None, way=self.way, why="; ".join(self._reasons)
        )

    @property
    def way(self) -> str:
        """Which of the ways of running was chosen, for ``multispec doctor``."""
        return "rowwise" if self._forward is None else type(self._forward).__name__

    def meter(self, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put ``around`` the model's forward passes: to time them, or to look at them.

        Raises:
            UnsupportedError: this model runs in its own cache; wrap ``model.forward`` instead.
        """
        if self._forward is None:
            raise UnsupportedError(
                f"{type(self.model).__name__} runs in its own cache ({self.way}): wrap its forward yourself."
            )
        self._forward = Metered(self._forward, around)

    def _choose(self, pack: bool, fused: bool) -> Forward | None:
        ways: list[Callable[[], Forward]] = []
        attention = attention_of(self.model)
        if fused and FusedForward.fits(self.model):
            ways.append(lambda: FusedForward(self.model, attention, pack))
        layers = int(getattr(decoder_config(self.model), "num_hidden_layers", 0))
        ways.append(lambda: ModuleForward(self.model, attention, layers))
        known = {"full_attention", "sliding_attention", "chunked_attention"}
        if not set(attention.kinds) <= known:
            self._reasons.append(f"layers of kind {sorted(set(attention.kinds) - known)} keep a state")
            return None
        for way in ways:
            forward, reason = _tried(self.model, way)
            if reason is None:
                return forward
            self._reasons.append(reason.splitlines()[0])
        return None

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        conditioned = any(prompt.conditioning for prompt in prompts)
        if self._forward is not None and not conditioned:
            return RaggedSession(self._forward, prompts, capacity, nodes)
        runner = CausalRunner(self.model) if self._forward is not None else self._runner
        return RowwiseSession(runner, prompts, self._parallel)

    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes for a row that may grow to so many symbols, found once by running a short prompt."""
        if self._forward is None or prompt.conditioning:
            if self._state is None:
                runner = CausalRunner(self.model) if self._forward is not None else self._runner
                self._state = state_bytes(runner, prompt)
            return self._state.of(capacity + MAX_NODES)
        if not self._entry:
            self._entry = entry_bytes(self._forward, Prompt(ids=torch.zeros(1, dtype=torch.long)))
        return self._entry * entries(capacity, MAX_NODES)


def _tried(model: Any, way: Callable[[], Forward]) -> tuple[Forward | None, str | None]:
    """A way of running the model, or why it is not for this model."""
    try:
        forward = way()
        return forward, disagreement(model, forward)
    except Exception as error:  # whatever a probe raises means: not this way
        return None, f"{type(error).__name__}: {error}"


def _reference(model: Any, ids: Sequence[int]) -> Tensor:
    rows = torch.tensor([list(ids)], device=next(model.parameters()).device)
    out = model(input_ids=rows, use_cache=False)
    logits: Tensor = out.logits[0, -1]
    return logits


def _far(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.float().std()) + 1e-12
    return float((found.float() - expected.float()).abs().max()) / scale


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing the same logits may differ, in standard deviations of the logits."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.15


@torch.inference_mode()
def disagreement(model: Any, forward: Forward) -> str | None:
    """Why ragged rows and trees through ``forward`` do not give the model's own logits; None if they do."""
    size = vocabulary(model)
    prompts = [[3 % size, 5 % size, 7 % size, 2 % size], [4 % size, 6 % size]]
    rows = [Prompt(ids=torch.tensor(ids)) for ids in prompts]
    session = RaggedSession(forward, rows, [16, 16], 4)
    first = session.prefill().logits
    drafts = [
        Draft(tokens=torch.tensor([1 % size, 8 % size, 9 % size]), parents=(-1, -1, 1)),
        Draft.chain([5 % size]),
    ]
    scores = session.score([0, 1], [6 % size, 3 % size], drafts).logits
    pairs = [(first[row][0], ids) for row, ids in enumerate(prompts)]
    for row, (root, draft) in enumerate(zip((6 % size, 3 % size), drafts, strict=True)):
        tokens = draft.tokens.tolist()
        for node in range(-1, len(draft)):
            path = [tokens[step] for step in path_to(draft.parents, node)]
            pairs.append((scores[row][node + 1], [*prompts[row], root, *path]))
    worst = max(_far(found, _reference(model, ids)) for found, ids in pairs)
    limit = tolerance(forward.like.dtype)
    if worst <= limit:
        return None
    return f"{type(forward).__name__} differs from the model's own forward by {worst:.2g} (limit {limit:.2g})"


@torch.inference_mode()
def continues(model: Any, runner: CausalRunner) -> bool:
    """True when several symbols at once continue a cache as one by one would."""
    size = vocabulary(model)
    ids = [value % size for value in (3, 5, 7, 2, 4, 6)]
    _, cache = runner.start(Prompt(ids=torch.tensor(ids[:3])))
    found = runner.step(ids[3:], cache, 1)[0]
    return _far(found, _reference(model, ids)) <= tolerance(next(model.parameters()).dtype)
