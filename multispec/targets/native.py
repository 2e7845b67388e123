"""A pass over a few symbols of a Llama in one call of C: compiled once on the user's machine, else not used.

On small models the time goes between the kernels, not into them, and reading weights as bfloat16 where that
loses nothing takes half the memory's time. Every symbol is summed in the same order whatever stands beside
it, so scoring a draft gives the very bits that decoding one by one gives. Prompts and large batches go
through ``FusedForward``, whose weights these are.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multispec.cache import RaggedCache
from multispec.errors import UnsupportedError
from multispec.neighbours import cache_folder
from multispec.targets.fused import FusedForward, Layer
from multispec.targets.masks import Attention, Pass
from multispec.targets.ragged import Forward
from multispec.targets.views import MakeLinear, Sublayers, Watch

_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_LANES = 8
# More columns than that are left to the library's matrix products, which are better at many.
MOST_COLUMNS = 72
_COMPILE_SECONDS = 60
_OUTSIDE = {1: "an id", 2: "a place in the cache", 3: "a position"}


_MAPS = ("qkv", "out", "gate_up", "down")


class _Matrix(Structure):
    _fields_ = (("data", c_void_p), ("rows", c_int64), ("width", c_int64), ("half", c_int32))


class _Layer(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, _Matrix) for name in _MAPS),
        ("attends", c_int32),
        ("thinks", c_int32),
    )


class _Model(Structure):
    _fields_ = (
        *(
            (name, c_int64)
            for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "inner", "vocab")
        ),
        ("eps", c_float),
        ("layer", POINTER(_Layer)),
        ("norm", c_void_p),
        ("embedding", _Matrix),
        ("head", _Matrix),
    )


class _Columns(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("ids", "rows", "places", "counts", "cos", "sin"))


class _Cache(Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("room", c_int64),
        ("masks", c_void_p),
        ("end", c_int64),
    )


def compiler() -> str | None:
    """The C compiler of this machine: ``CC``, else one that is usual."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in names if (found := shutil.which(name))), None)


@lru_cache(maxsize=1)
def library() -> Any:
    """The compiled functions: from the cache folder, else compiled now, which takes a second.

    Raises:
        UnsupportedError: no compiler, or one that does not take the source.
    """
    try:
        path = cache_folder() / _name()
    except OSError as error:
        raise UnsupportedError(f"{_SOURCE.name} is not in this installation: {error}.") from error
    found = _opened(path) if path.is_file() else None
    return _declared(found if found is not None else _opened(_compiled(path)))


def _name() -> str:
    """A file for each source, set of flags and processor."""
    known = [_SOURCE.read_bytes(), " ".join(_FLAGS).encode(), _processor()]
    return f"native-{hashlib.sha256(b'|'.join(known)).hexdigest()[:32]}.so"


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return torch.backends.cpu.get_cpu_capability().encode()
    return b"".join(
        sorted({line for line in lines if line.startswith((b"flags", b"model name", b"Features"))})
    )


def _compiled(path: Path) -> Path:
    cc = compiler()
    if cc is None:
        raise UnsupportedError(
            "No C compiler was found (cc, gcc, clang or $CC): install one for faster passes."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder: str | None = str(path.parent)
    except OSError:
        folder = None
    handle, part = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    reason = ""
    # Without threads where the compiler has none to offer.
    for more in (("-fopenmp",), ()):
        command = [cc, *_FLAGS, *more, "-o", part, str(_SOURCE), "-lm"]
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
            continue
        if ran.returncode == 0:
            return Path(part).replace(path) if folder is not None else Path(part)
        reason = ran.stderr.strip().splitlines()[0] if ran.stderr.strip() else f"exit code {ran.returncode}"
    Path(part).unlink(missing_ok=True)
    raise UnsupportedError(f"{cc} does not compile {_SOURCE.name}: {reason}")


def _opened(path: Path) -> Any:
    """The library in a file; None where it is damaged."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _declared(found: Any) -> Any:
    if found is None:
        raise UnsupportedError("The compiled library cannot be opened: empty the cache folder of multispec.")
    found.room_for.argtypes = (POINTER(_Model), c_int64, c_int64)
    found.room_for.restype = c_int64
    pointers = (POINTER(_Model), POINTER(_Columns), c_int, POINTER(_Cache))
    found.forward.argtypes = (*pointers, c_void_p, c_void_p, c_int)
    found.forward.restype = c_int
    return found


def why_not(model: Any) -> str:
    """Why a model of the Llama family cannot be run by this; "" where it can."""
    config, weight = model.config, model.model.embed_tokens.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"passes in C are for float32 on a processor, and this is {weight.dtype} on {weight.device}"
    layers = list(model.model.layers)
    maps = [one for layer in layers for one in (*_maps(layer), layer.self_attn.o_proj, layer.mlp.down_proj)]
    if any(one.bias is not None for one in (*maps, model.lm_head)):
        return "linear maps have biases"
    head = layers[0].self_attn.head_dim
    sizes = [config.hidden_size, config.intermediate_size, config.num_attention_heads * head, 2 * head]
    if any(size % (2 * _LANES) for size in sizes):
        return f"widths {sizes} are not multiples of {2 * _LANES}"
    if sys.byteorder != "little":
        return "the bytes of words are in another order here"
    return ""


def _maps(layer: Any) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    return attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj


def _paired(half: Tensor) -> Tensor:
    """Of each 16 entries of a row, the first 8 in the lower halves of 8 words, the others in the upper."""
    groups = half.reshape(len(half), -1, 2, _LANES)
    return groups.transpose(-1, -2).contiguous().flatten(1)


@dataclass(frozen=True)
class _Weights:
    """A model as C reads it, what has to live as long, and of its layers the kinds and numbers."""

    model: _Model
    kept: list[Any]
    layers: list[_Layer]
    kinds: list[str]
    numbers: list[int]


def _held(model: Any, layers: Sequence[Layer]) -> _Weights:
    kept: list[Any] = []

    def matrix(*weights: Tensor) -> _Matrix:
        whole = torch.cat([one.detach() for one in weights])
        half = whole.to(torch.bfloat16)
        lossless = bool((half.float() == whole).all())
        kept.append(_paired(half) if lossless else whole.contiguous())
        return _Matrix(kept[-1].data_ptr(), *whole.shape, int(lossless))

    def vector(weight: Tensor | None) -> int | None:
        if weight is None:
            return None
        kept.append(weight.detach().contiguous())
        return int(kept[-1].data_ptr())

    table = (_Layer * len(layers))()
    for place, (one, read) in enumerate(zip(model.model.layers, layers, strict=True)):
        q, k, v, gate, up = (each.weight for each in _maps(one))
        norms = (read.input_norm, read.post_norm, read.q_norm, read.k_norm)
        outs = (matrix(one.self_attn.o_proj.weight), matrix(gate, up), matrix(one.mlp.down_proj.weight))
        table[place] = _Layer(*map(vector, norms), matrix(q, k, v), *outs, 1, 1)
    config, embedding = model.config, matrix(model.model.embed_tokens.weight)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    sizes = (config.num_attention_heads, config.num_key_value_heads, model.model.layers[0].self_attn.head_dim)
    made = _Model(
        len(layers),
        config.hidden_size,
        *sizes,
        config.intermediate_size,
        model.lm_head.weight.shape[0],
        config.rms_norm_eps,
        table,
        vector(model.model.norm.weight),
        embedding,
        embedding if tied else matrix(model.lm_head.weight),
    )
    kinds = [layer.kind for layer in layers]
    return _Weights(made, [*kept, table], list(table), kinds, [*range(len(layers))])


def _lessened(weights: _Weights, skipped: Sublayers) -> _Weights:
    """The same weights with some sublayers left out."""
    kept, numbers = list[_Layer](), list[int]()
    for number, layer in zip(weights.numbers, weights.layers, strict=True):
        attends = layer.attends and number not in skipped.attention
        thinks = layer.thinks and number not in skipped.mlp
        if attends or thinks:
            twin = _Layer.from_buffer_copy(layer)
            twin.attends, twin.thinks = int(attends), int(thinks)
            kept.append(twin)
            numbers.append(number)
    model = _Model.from_buffer_copy(weights.model)
    table = (_Layer * len(kept))(*kept)
    model.layers, model.layer = len(kept), table
    kinds = [weights.kinds[weights.numbers.index(number)] for number in numbers]
    return _Weights(model, [*weights.kept, table], kept, kinds, numbers)


class _Scratch(threading.local):
    """Memory for what is between layers; every thread has its own."""

    def __init__(self) -> None:
        self.floats = torch.empty(0)

    def of(self, size: int) -> Tensor:
        """At least so many floats."""
        if len(self.floats) < size:
            self.floats = torch.empty(size + size // 2)
        return self.floats


class NativeForward:
    """A ``ragged.Layered`` for the Llama family on a processor: a few symbols by C, the rest by ``fused``.

    Raises:
        UnsupportedError: no compiler, or a model that it cannot run.
    """

    def __init__(self, fused: FusedForward) -> None:
        if why := why_not(fused.model):
            raise UnsupportedError(why)
        self._library = library()
        self.fused, self.model = fused, fused.model
        self.attention: Attention = fused.attention
        self.layers, self.like = fused.layers, fused.like
        self._weights = _held(fused.model, fused.sublayers)
        self._scratch = _Scratch()

    @property
    def held(self) -> str:
        """How its weights are held."""
        model = self._weights.model
        matrices = [model.head, *(getattr(one, name) for one in self._weights.layers for name in _MAPS)]
        lossless = sum(one.half for one in matrices)
        return f"{lossless} of {len(matrices)} matrices as bfloat16 without loss, the others as float32"

    def without(self, skipped: Sublayers) -> Forward:
        """The same weights with some sublayers left out; caches keep their numbers."""
        return self._twin(self.fused.without(skipped), _lessened(self._weights, skipped))

    def with_linear(self, make: MakeLinear) -> Forward:
        """The same formulas with other linear maps, made of the same weights."""
        return self.fused.with_linear(make)

    def observing(self, watch: Watch) -> Forward:
        """The model's own modules, watched."""
        return self.fused.observing(watch)

    def reaching(self, positions: int) -> Forward:
        """The same, for passes that name up to ``positions`` positions."""
        return self._twin(self.fused.reaching(positions), self._weights)

    def _twin(self, fused: FusedForward, weights: _Weights) -> NativeForward:
        twin = copy.copy(self)
        twin.fused, twin._weights = fused, weights
        return twin

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers: in C where there are few symbols and the cache is there already."""
        held = cache.ragged[0].is_initialized and cache.ragged[-1].is_initialized
        columns = ids.numel() if step.real is None else len(step.real)
        if keep is not None or step.prefill or not held or columns > MOST_COLUMNS:
            return self.fused(ids, step, cache, keep)
        if len(ids) == 1 and step.table is None:
            return self._chain(ids, step, cache)
        return self._ragged(ids, step, cache)

    def _chain(self, ids: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """One row, symbol behind symbol: each sees what is before it."""
        start, count = cache.ledger.lengths[0], ids.shape[1]
        cos, sin = self.fused.rotations(max(cache.ledger.end, step.end))
        places = range(start, start + count)
        numbers = torch.tensor([[0] * count, places, [place + 1 for place in places]])
        rows = (ids[0].contiguous(), numbers, cos[step.start : step.end], sin[step.start : step.end])
        return self._run(*rows, cache, None)[None]

    def _ragged(self, ids: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """Rows that stand at different places, or trees: what a symbol sees is told by the masks."""
        rows, width = ids.shape
        ledger = cache.ledger
        if step.table is not None:
            table = step.table.expand(rows, -1)
        else:
            table = torch.arange(step.start, step.end).expand(rows, -1)
        behind = torch.arange(ledger.lengths[0], ledger.lengths[0] + width)
        slots = behind.expand(rows, -1) if ledger.slots is None else ledger.slots
        chosen = torch.arange(rows * width) if step.real is None else step.real
        cos, sin = self.fused.rotations(max(ledger.end, int(table.max()) + 1))
        at = table.flatten()[chosen]
        places = slots.flatten()[chosen]
        numbers = torch.stack([chosen // width, places, places + 1])
        masks = {kind: self._mask(mask, chosen, rows, width, ledger.end) for kind, mask in step.masks.items()}
        found = self._run(ids.flatten()[chosen], numbers, cos[at], sin[at], cache, masks)
        logits = found if step.real is None else found.new_zeros((rows * width, found.shape[-1]))
        if step.real is not None:
            logits[chosen] = found
        return logits.view(rows, width, -1)

    def _mask(self, mask: Tensor | None, chosen: Tensor, rows: int, width: int, end: int) -> Tensor | None:
        if mask is None:
            return None
        return mask.expand(rows, 1, width, end).reshape(rows * width, end)[chosen].contiguous()

    def _run(
        self,
        ids: Tensor,
        numbers: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: RaggedCache,
        masks: dict[str, Tensor | None] | None,
    ) -> Tensor:
        """Logits ``[n, V]`` of n columns; ``numbers`` are their rows, places and counts."""
        count, end, cos, sin = len(ids), cache.ledger.end, cos.contiguous(), sin.contiguous()
        model = self._weights.model
        logits = torch.empty(count, model.vocab)
        scratch = self._scratch.of(self._library.room_for(model, count, end))
        at, wide = numbers.data_ptr(), 8 * count
        columns = _Columns(ids.data_ptr(), at, at + wide, at + 2 * wide, cos.data_ptr(), sin.data_ptr())
        seen = self._masks(masks)
        keys, values = self._caches(cache)
        pointers = [None if one is None else ctypes.addressof(one) for one in (keys, values, seen)]
        held = _Cache(pointers[0], pointers[1], cache.ragged[0].keys.shape[2], pointers[2], end)
        threads = torch.get_num_threads()
        outside = 3 if len(cos) != count else 0
        outside = outside or self._library.forward(
            model, columns, count, held, scratch.data_ptr(), logits.data_ptr(), threads
        )
        if outside:
            raise IndexError(f"{_OUTSIDE[outside]} of a pass over {count} symbols is out of range")
        return logits

    def _masks(self, masks: dict[str, Tensor | None] | None) -> Any:
        """For every layer where its mask is; None where there are none."""
        if masks is None or all(mask is None for mask in masks.values()):
            return None
        return _table([masks[kind] for kind in self._weights.kinds])

    def _caches(self, cache: RaggedCache) -> tuple[Any, Any]:
        """For every layer where its keys and values are."""
        layers = [cache.ragged[number] for number in self._weights.numbers]
        return _table([one.keys for one in layers]), _table([one.values for one in layers])


def _table(tensors: Sequence[Tensor | None]) -> Any:
    """Where tensors are, for C; lives as long as it is held."""
    return (c_void_p * len(tensors))(*(None if one is None else one.data_ptr() for one in tensors))


def attempted(model: Any, attention: Attention, positions: int = 0) -> NativeForward | None:
    """Passes in C where this machine and this model have them, for passes that name so many positions."""
    try:
        return NativeForward(FusedForward(model, attention, positions=positions))
    except UnsupportedError:
        return None
