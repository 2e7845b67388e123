"""Decoder-only models of transformers as targets, in the fastest way that gives the model's own
logits.

Four ways are tried in this order, each compared once with the model's plain forward on a few symbols: the
Llama family in C, where there is a compiler and the model is ours; its fused arithmetic; the model's own
modules with our masks and our preallocated cache (these take ragged batches and trees); the model's own
cache, one row at a time (chains only). In all but the first, linear maps are made ready for the processor
where the model is ours: see ``targets.fast``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from multispec.errors import ModelLoadError, UnsupportedError, UsageError
from multispec.protocols import MAX_NODES, Capabilities, TargetSession
from multispec.stream import Draft, Prompt, Slot, StreamSpec
from multispec.targets.fast import Maker, check_fast, is_replaced, replaced, restored, sharing
from multispec.targets.fused import FusedForward, as_it_is
from multispec.targets.masks import Attention
from multispec.targets.native import NativeForward
from multispec.targets.padded import COLUMNS, PaddedSession, padded_entries, unsteady
from multispec.targets.ragged import Forward, Metered, ModuleForward, RaggedSession, entries, entry_bytes
from multispec.targets.rowwise import RowwiseSession, StateBytes, state_bytes
from multispec.tree import path_to

# Symbols of a prompt that are run at once where nobody says otherwise.
_CHUNK, _CHUNKS = 4096, {"cpu": 1024}


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

    ``owned`` says that the model is ours alone, so that its linear maps may be made ready for the processor:
    weights are held a second time in the order that it likes best, and modules are given other forwards where
    the model is run by them. ``fast`` is a name of ``targets.fast.FAST``: "auto" does that up to rounding,
    "off" runs the model's own modules as they are, "bfloat16" and "int8" change what comes out (and what is
    made ready is told so, owned or not). ``fused=False`` leaves the arithmetic to the model's own modules.

    Prompts are run in pieces of ``prefill_chunk`` symbols (1024 on a CPU, else 4096), which bounds what a
    long one takes: masks, and what is between layers. A target that is ``deterministic`` runs every pass in
    one shape, each row by itself (``targets.padded``), so that plain and speculative decoding give the same
    bits in any dtype.

    Raises:
        ModelLoadError: the model has no weights.
        UnknownNameError: no such way.
        UsageError: a piece of less than one symbol.
        UnsupportedError: the model keeps its state in a way that nothing here can follow, or there are no
            kernels for int8; ``deterministic`` where passes cannot be padded, or kernels do not keep bits.
    """

    def __init__(
        self,
        model: Any,
        *,
        owned: bool = False,
        fused: bool = True,
        fast: str = "auto",
        deterministic: bool = False,
        prefill_chunk: int | None = None,
    ) -> None:
        refuse_meta(model)
        self.model = model.eval()
        self.spec = StreamSpec(slots=(Slot(size=vocabulary(model)),), end_ids=end_ids(model))
        self.context_length = context_length(model)
        self.device: torch.device = next(model.parameters()).device
        self._owned, self._fused, self._fast = owned, fused, check_fast(fast)
        if prefill_chunk is not None and prefill_chunk < 1:
            raise UsageError(f"prefill_chunk is a number of symbols, 1 or more: got {prefill_chunk}.")
        self.prefill_chunk = prefill_chunk or _CHUNKS.get(self.device.type, _CHUNK)
        self._steady = deterministic
        self._settle()

    def pad(self) -> None:
        """Run every pass in one shape from now on: see ``deterministic``.

        Raises:
            UnsupportedError: passes cannot be padded, or this machine's kernels do not keep the bits.
        """
        if not self._steady:
            self._refuse_unsteady()
            self._steady = True
            self._describe()

    def prepare(self, fast: str, /) -> None:
        """Run the way ``fast`` from now on; the model is ours to change.

        Raises:
            UnknownNameError: no such way.
            UnsupportedError: no kernels for it.
        """
        if not self._owned or check_fast(fast) != self._fast:
            self._owned, self._fast = True, check_fast(fast)
            self._settle()

    def _settle(self) -> None:
        self._reasons: list[str] = []
        self._entry = 0
        self._state: StateBytes | None = None
        self._parallel = True
        changing = self._owned or self._fast != "auto"
        if changing:
            restored(self.model.modules())
        self._maker = Maker(self._fast if changing else "off")
        if not changing and any(map(is_replaced, self.model.modules())):
            self._maker.prepared.note = ", some made ready by another target of this model"
        self._forward = self._choose()
        if self._forward is None:
            self._runner = CausalRunner(self.model)
            self._parallel = continues(self.model, self._runner)
        self._changes = self._lighten()
        if self._steady:
            self._refuse_unsteady()
        self._describe()

    def _describe(self) -> None:
        forward = self._forward
        shape = f" in passes of {COLUMNS} symbols" if self._steady else ""
        chains = ["deterministic passes score chains"] if self._steady else []
        self.capabilities = Capabilities(
            supports_tree=self._forward is not None and not self._steady,
            way=self.way + shape,
            why="; ".join([*self._reasons, *chains]),
            weights=forward.held if isinstance(forward, NativeForward) else str(self._maker.prepared),
            changes=self._changes,
        )

    def _refuse_unsteady(self) -> None:
        name = type(self.model).__name__
        if self._forward is None:
            raise UnsupportedError(
                f"deterministic pads every pass to one shape, and {name} keeps its state in a cache of its "
                f"own, where padding would stay ({'; '.join(self._reasons)}). Leave it out: in float32 "
                "drafts change no symbol as it is."
            )
        found = unsteady(self._forward, vocabulary(self.model), COLUMNS, self.context_length)
        if found is not None:
            raise UnsupportedError(
                "deterministic needs kernels that give a symbol the same bits wherever it stands in a pass, "
                f"and for {name} in {self._forward.like.dtype} on this machine {found}. Use float32 without "
                "it, where a rounding changes no symbol."
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

    def _choose(self) -> Forward | None:
        ways: list[Callable[[], Forward]] = []
        attention = attention_of(self.model)
        if self._fused and self._fast != "off" and FusedForward.fits(self.model):
            make = self._maker if self._maker.exact else as_it_is
            if self._owned and self._fast == "auto":
                ways.append(lambda: NativeForward(FusedForward(self.model, attention)))
            ways.append(lambda: FusedForward(self.model, attention, make))
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

    def _lighten(self) -> str:
        """Make ready what was not made so on the way; says what that changes beyond rounding."""
        forward, maker = self._forward, self._maker
        if isinstance(forward, NativeForward):
            return ""
        if isinstance(forward, FusedForward):
            if maker.exact:
                return ""
            lighter = forward.with_linear(maker)
            far = distance(self.model, lighter)
            self._forward = lighter
        else:
            # A forward that was tried and failed may have counted its own.
            maker.prepared.clear()
            far = self._replace(maker)
        if maker.exact or not maker.prepared.done:
            return ""
        return f"weights in {maker.fast}: logits move by {far:.2g} of their deviation"

    @torch.inference_mode()
    def _replace(self, maker: Maker) -> float:
        """Replace modules in place, where that keeps the model's logits; how far these move."""
        if maker.fast == "off":
            return 0.0
        ids = [value % vocabulary(self.model) for value in (3, 5, 7, 2)]
        before: list[Tensor] = []
        together = sharing(self.model, lambda: before.append(_reference(self.model, ids)))
        changed = replaced([self.model], maker, together)
        try:
            far = _far(_reference(self.model, ids), before[0]) if changed else 0.0
        except Exception:  # whatever it raises means: not this model
            far = math.nan
        if not far <= (tolerance(before[0].dtype) if maker.exact else math.inf):
            restored(changed)
            maker.prepared.done, maker.prepared.kept["since logits differ"] = 0, len(changed)
        return far

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        conditioned = any(prompt.conditioning for prompt in prompts)
        if self._steady and conditioned:
            raise UnsupportedError(
                "deterministic pads passes over ids, and a prompt with conditioning runs in the model's own "
                "cache, which is not padded. Load the model without deterministic for it."
            )
        if self._steady and self._forward is not None:
            room: dict[str, Any] = {"chunk": self.prefill_chunk, "limit": self.context_length}
            return PaddedSession(self._forward, prompts, capacity, nodes, **room)
        if self._forward is not None and not conditioned:
            return RaggedSession(self._forward, prompts, capacity, nodes, chunk=self.prefill_chunk)
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
        if self._steady:
            return self._entry * padded_entries(capacity, MAX_NODES, COLUMNS)
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


def disagreement(model: Any, forward: Forward) -> str | None:
    """Why ragged rows and trees through ``forward`` do not give the model's own logits; None if they do."""
    worst, limit = distance(model, forward), tolerance(forward.like.dtype)
    if worst <= limit:
        return None
    return f"{type(forward).__name__} differs from the model's own forward by {worst:.2g} (limit {limit:.2g})"


@torch.inference_mode()
def distance(model: Any, forward: Forward) -> float:
    """How far ragged rows and trees through ``forward`` are from the model's own logits, in deviations."""
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
    far = [_far(found, _reference(model, ids)) for found, ids in pairs]
    return float(torch.tensor(far).max())  # NaN stays NaN, which is no agreement


@torch.inference_mode()
def continues(model: Any, runner: CausalRunner) -> bool:
    """True when several symbols at once continue a cache as one by one would."""
    size = vocabulary(model)
    ids = [value % size for value in (3, 5, 7, 2, 4, 6)]
    _, cache = runner.start(Prompt(ids=torch.tensor(ids[:3])))
    found = runner.step(ids[3:], cache, 1)[0]
    return _far(found, _reference(model, ids)) <= tolerance(next(model.parameters()).dtype)
