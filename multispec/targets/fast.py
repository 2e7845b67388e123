"""Linear maps made ready for the processor once, in any model: reordered for oneDNN, or in fewer bits.

Weights reordered for oneDNN make a pass over a few symbols cost little more than one symbol costs, which is
what scoring a draft needs. They are copies: a model keeps its own, and each of its modules its own forward,
to which ``restored`` goes back. What does not fit stays as it is, and ``Prepared`` counts it with the reason.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import getclosurevars
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from multispec.errors import UnknownNameError, UnsupportedError
from multispec.protocols import Target
from multispec.targets.views import Linear

FAST = ("auto", "off", "bfloat16", "int8")
# Smaller weights sit in the processor's cache, where a plain product is faster (measured).
_FROM = {"auto": 2**18, "bfloat16": 2**17, "int8": 2**17}
# Maps of one module that read the same input, where they do: one product for all of them.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_MEMORY = Path("/proc/meminfo")


def check_fast(fast: str) -> str:
    """The name itself, if it names a way of ``FAST``.

    Raises:
        UnknownNameError: another name; the message has the nearest.
    """
    if fast not in FAST:
        raise UnknownNameError("fast", str(fast), FAST)
    return fast


# ---- what there is ----


def can_pack(weight: Tensor) -> bool:
    """True where oneDNN takes reordered float32 weights."""
    usable = weight.device.type == "cpu" and weight.dtype == torch.float32
    return usable and torch.backends.mkldnn.is_available()


def wide_vectors() -> bool:
    """True where the processor, and this torch on it, has vectors of 512 bits."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def packs_bfloat16() -> bool:
    """True where oneDNN multiplies bfloat16: processors with instructions for it, or with AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def int8_kernels() -> bool:
    """True where this torch was built with products of 8-bit numbers."""
    return any(engine != "none" for engine in torch.backends.quantized.supported_engines)


def free_memory() -> int | None:
    """Bytes that programs may still take, or None where the system does not say."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def processor() -> str:
    """The processor as far as speed depends on it: instructions, cores, and what that means here."""
    level = str(torch.backends.cpu.get_cpu_capability())
    cores = os.cpu_count() or 1
    found = [f"{level}, {cores} core{'s' * (cores > 1)}"]
    if not torch.backends.mkldnn.is_available():
        found.append("no oneDNN: linear maps with weights as they are")
    elif not wide_vectors():
        found.append("no AVX-512: weights reordered for oneDNN from two symbols on, one by those as they are")
    if not packs_bfloat16():
        found.append('no products of bfloat16: fast="bfloat16" is slower than float32 from two symbols on')
    if not int8_kernels():
        found.append('no 8-bit kernels: fast="int8" is refused')
    if cores == 1:
        found.append("draft and target share the core")
    return "; ".join(found)


# ---- one linear map ----


def packed(weight: Tensor, bias: Tensor | None, plain: Linear | None = None) -> Linear:
    """The product with a copy of the weight ``[out, in]`` as oneDNN likes it best.

    Without AVX-512 one row is faster by the weight as it is (measured): by ``plain``, where that is given.
    """
    again, row = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 8), weight.shape[1]
    run: Any = torch.ops.mkldnn._linear_pointwise.default
    if wide_vectors():
        return lambda x: run(x, again, bias, "none", [], "")
    single = partial(F.linear, weight=weight, bias=bias) if plain is None else plain
    return lambda x: single(x) if x.numel() == row else run(x, again, bias, "none", [], "")


def bfloat16(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights and what comes in rounded to bfloat16, sums in float32; gives back the dtype that came."""
    small, own = weight.detach().bfloat16(), None if bias is None else bias.detach().bfloat16()
    if small.device.type == "cpu" and packs_bfloat16():
        run = packed(small, own)
    else:
        run = partial(F.linear, weight=small, bias=own)
    return lambda x: run(x.bfloat16()).to(x.dtype)


def int8(weight: Tensor, bias: Tensor | None, *, together: bool = False) -> Linear:
    """Weights to 8 bits per output; activations to 7 bits and a sign per symbol, as large as they are there.

    What a symbol gives does not depend on what else is in the pass: sums of whole numbers are exact. With
    ``together`` all symbols of a pass share a scale, which is faster for small maps.
    """
    scales = weight.detach().float().abs().amax(1).clamp(min=1e-12) / 127
    own = None if bias is None else bias.detach().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its quantised tensors will move elsewhere
        zeros = torch.zeros(len(scales), dtype=torch.long)
        small = torch.quantize_per_channel(weight.detach().float(), scales, zeros, 0, torch.qint8)
        held = torch.ops.quantized.linear_prepack(small, own if together else None)
    return _per_pass(held) if together else _per_symbol(held, own)


def _per_pass(held: Any) -> Linear:
    run: Any = torch.ops.quantized.linear_dynamic

    def linear(x: Tensor) -> Tensor:
        # reduce_range: processors without 8-bit dot products would overflow their 16-bit sums.
        out: Tensor = run(x.float(), held, True)
        return out.to(x.dtype)

    return linear


def _per_symbol(held: Any, bias: Tensor | None) -> Linear:
    run: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def linear(x: Tensor) -> Tensor:
        wide = x.float()
        scale = wide.abs().amax(-1, keepdim=True).clamp_(min=1e-12)
        # 1 to 127 around 64, for the same reason.
        out: Tensor = run(wide / scale, 1 / 63, 64, held).mul_(scale)
        return (out if bias is None else out.add_(bias)).to(x.dtype)

    return linear


# How far a map may be from its own, in the largest number that comes out of it; a map farther off stays.
_LIMITS = {"auto": 1e-4, "bfloat16": 0.05, "int8": 0.2}
_FEWER_BITS = {"bfloat16": bfloat16, "int8": int8}
_BYTES = {"auto": 4, "bfloat16": 2, "int8": 1}
_WORDS = {"auto": "packed for oneDNN", "bfloat16": "in bfloat16", "int8": "in int8"}


@dataclass
class Prepared:
    """What became of the linear maps of a model: how many are ``done``, and why others were ``kept``."""

    fast: str
    done: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    note: str = ""

    def clear(self) -> None:
        """Count anew."""
        self.done = 0
        self.kept.clear()

    def __str__(self) -> str:
        """One line.

        >>> str(Prepared("auto", 3, Counter(small=2)))
        '3 of 5 linear maps packed for oneDNN, others as they are (2 small)'
        """
        if self.fast == "off":
            return f"linear maps as they are{self.note}"
        total, why = self.done + self.kept.total(), [f"{n} {reason}" for reason, n in self.kept.items()]
        rest = f", others as they are ({', '.join(why)})" if why else ""
        return f"{self.done} of {total} linear maps {_WORDS[self.fast]}{rest}{self.note}"


class Maker:
    """A ``MakeLinear`` that makes linear maps ready the way ``fast`` and counts them.

    Raises:
        UnknownNameError: no such way.
        UnsupportedError: ``int8`` where this torch has no kernels for it.
    """

    def __init__(self, fast: str) -> None:
        self.fast = check_fast(fast)
        if fast == "int8" and not int8_kernels():
            raise UnsupportedError(
                'fast="int8" needs a torch that was built with 8-bit kernels: got the engines '
                f'{torch.backends.quantized.supported_engines}. Use fast="auto".'
            )
        self.prepared = Prepared(fast)
        self._free = free_memory()

    @property
    def exact(self) -> bool:
        """True where nothing changes but the rounding."""
        return self.fast in ("auto", "off")

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """The map made ready, or as it is."""
        found = self.make(weight, bias)
        if isinstance(found, str):
            self.prepared.kept[found] += 1
            return partial(F.linear, weight=weight, bias=bias)
        self.prepared.done += 1
        return found

    def make(self, weight: Tensor, bias: Tensor | None, plain: Linear | None = None) -> Linear | str:
        """The map of a weight ``[out, in]`` made ready, or why it stays as it is; nothing is counted.

        ``plain`` does the same without a copy of the weight, where there is such a thing.
        """
        reason = "asked for" if self.fast == "off" else self._trouble(weight)
        if reason is not None:
            return reason
        try:
            fewer = _FEWER_BITS.get(self.fast)
            found = packed(weight, bias, plain) if fewer is None else fewer(weight, bias)
            return _differs(found, weight, bias, _LIMITS[self.fast]) or found
        except (RuntimeError, MemoryError) as error:
            return f"refused: {(str(error) or 'MemoryError').splitlines()[0][:80]}"

    def _trouble(self, weight: Tensor) -> str | None:
        """Why a weight is left as it is, from what it is."""
        cpu = weight.device.type == "cpu"
        if weight.layout != torch.strided or weight.is_quantized or not weight.is_floating_point():
            return "quantised"
        if not cpu and self.fast != "bfloat16":
            return f"on {weight.device.type}"
        if weight.dtype != torch.float32:
            return str(weight.dtype).removeprefix("torch.")
        if self.fast == "auto" and not can_pack(weight):
            return "without oneDNN"
        if weight.numel() < _FROM[self.fast]:
            return "small"
        return None if self._room(weight) or not cpu else "without memory for a copy"

    def _room(self, weight: Tensor) -> bool:
        """Take the memory for a copy, if what is left would still be as much again."""
        if self._free is None:
            return True
        size = weight.numel() * _BYTES[self.fast]
        if 2 * size > self._free:
            return False
        self._free -= size
        return True


@torch.inference_mode()
def _differs(found: Linear, weight: Tensor, bias: Tensor | None, limit: float) -> str | None:
    """Why a map is not the product with its weight; None where it is, up to rounding."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(2, weight.shape[1], generator=noise).to(weight)
    expected = F.linear(x, weight, bias)
    far = (found(x) - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    return None if bool(far <= limit) else "computed otherwise"  # NaN is no agreement


# ---- the modules of a model ----


class _Forward:
    """The forward of a module whose linear map is made ready; its own wherever that would be wrong."""

    def __init__(self, module: Any, run: Linear) -> None:
        self._weight, self._run = module.weight, run
        self._plain: Callable[[Tensor], Tensor] = partial(type(module).forward, module)
        self._version = _version(module.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """The map; by the module's own weights while training, and once they have changed."""
        if torch.is_grad_enabled() or _version(self._weight) != self._version:
            return self._plain(x)
        return self._run(x)


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


class _Together:
    """Several maps of one input: the first that is asked computes all, the others take their part.

    One is asked with the very tensor that the first was given, or it computes anew.
    """

    def __init__(self, run: Linear, sizes: Sequence[int]) -> None:
        self._run, self._sizes = run, list(sizes)
        self._last: tuple[Tensor, Sequence[Tensor]] | None = None

    def part(self, number: int, x: Tensor) -> Tensor:
        """What one map makes of ``x``."""
        last = self._last
        if number == 0 or last is None or last[0] is not x:
            last = self._last = x, self._run(x).split(self._sizes, -1)
        if number == len(self._sizes) - 1:
            self._last = None
        return last[1][number]


def replaced(
    roots: Iterable[nn.Module], maker: Maker, groups: Sequence[Sequence[nn.Module]] = ()
) -> list[nn.Module]:
    """Give the linear maps below ``roots`` the forwards that ``maker`` makes; the modules that were changed.

    Everything else about a module stays, its weights too. Modules of a class of their own, with hooks, or
    whose forward was replaced before are left alone. Those of a group become one product.
    """
    changed: list[nn.Module] = []
    for group in groups:
        changed += _merged(group, maker)
    done = set(map(id, changed))
    for module in _linears(roots):
        own: Any = module
        if id(module) in done:
            continue
        if (reason := _special(module)) is not None:
            maker.prepared.kept[reason] += 1
            continue
        weight, plain = own.weight, partial(type(own).forward, own)
        run = maker.make(weight.T.contiguous() if isinstance(module, Conv1D) else weight, own.bias, plain)
        if isinstance(run, str):
            maker.prepared.kept[run] += 1
            continue
        maker.prepared.done += 1
        own.forward = _Forward(module, run)
        changed.append(module)
    return changed


def _merged(group: Sequence[nn.Module], maker: Maker) -> list[nn.Module]:
    """Make one product of modules with one input; none of them where it does not fit."""
    members: list[Any] = list(group)
    weight = torch.cat([one.weight.detach() for one in members])
    biases = [weight.new_zeros(len(one.weight)) if one.bias is None else one.bias.detach() for one in members]
    run = maker.make(weight, None if all(one.bias is None for one in members) else torch.cat(biases))
    if isinstance(run, str):
        return []
    whole = _Together(run, [len(one.weight) for one in members])
    for number, one in enumerate(members):
        one.forward = _Forward(one, partial(whole.part, number))
    maker.prepared.done += len(members)
    return members


def sharing(root: nn.Module, run: Callable[[], object]) -> list[list[nn.Module]]:
    """Linear maps of one module that were given the very same tensor whenever ``run`` ran them."""
    found = [
        [module._modules.get(name) for name in names] for module in root.modules() for names in _TOGETHER
    ]
    groups: list[list[nn.Module]] = [
        [one for one in group if type(one) is nn.Linear and not _special(one)] for group in found
    ]
    groups = [group for group, all_ in zip(groups, found, strict=True) if len(group) == len(all_)]
    seen: dict[int, list[Tensor]] = {id(module): [] for group in groups for module in group}
    hooks = [
        module.register_forward_pre_hook(lambda module, given: seen[id(module)].append(given[0]))
        for group in groups
        for module in group
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [group for group in groups if _same([seen[id(module)] for module in group])]


def _same(inputs: Sequence[Sequence[Tensor]]) -> bool:
    first = inputs[0]
    pairs = [zip(first, other, strict=False) for other in inputs[1:]]
    return (
        len(first) > 0
        and all(len(one) == len(first) for one in inputs)
        and all(a is b for pair in pairs for a, b in pair)
    )


def restored(modules: Iterable[nn.Module]) -> None:
    """Give modules that ``replaced`` changed their own forwards back, for all who use them."""
    for module in modules:
        if is_replaced(module):
            del module.forward


def is_replaced(module: nn.Module) -> bool:
    """True for a module that ``replaced`` changed."""
    return isinstance(vars(module).get("forward"), _Forward)


def _linears(roots: Iterable[nn.Module]) -> list[nn.Module]:
    found = {id(module): module for root in roots for module in root.modules()}
    return [module for module in found.values() if isinstance(module, (nn.Linear, Conv1D))]


def _special(module: nn.Module) -> str | None:
    """What says that somebody else has a hand in this module."""
    if type(module) not in (nn.Linear, Conv1D):
        return f"of class {type(module).__name__}"
    if "forward" in vars(module) or not isinstance(vars(module)["_parameters"].get("weight"), nn.Parameter):
        return "changed by others"
    return "with hooks" if module._forward_hooks or module._forward_pre_hooks else None


# ---- a target ----


@runtime_checkable
class Preparable(Protocol):
    """A target that makes itself ready its own way."""

    def prepare(self, fast: str, /) -> None:
        """Run the way ``fast`` from now on; the model is ours to change."""
        ...


def prepare(target: Target, fast: str) -> Target:
    """The target, its linear maps made ready; ``capabilities.weights`` says what became of them.

    Targets that do not do this themselves have the modules of their models changed in place.

    Raises:
        UnknownNameError: no such way.
        UnsupportedError: no kernels for it.
    """
    check_fast(fast)
    if isinstance(target, Preparable):
        target.prepare(fast)
        return target
    modules = list(modules_of(target))
    if not modules:
        return target
    maker = Maker(fast)
    restored(_linears(modules))
    if fast != "off":
        replaced(modules, maker)
    changes = "" if maker.exact or not maker.prepared.done else f"weights in {fast}"
    changed: Any = target
    changed.capabilities = dataclasses.replace(
        target.capabilities, weights=str(maker.prepared), changes=changes
    )
    return target


def modules_of(target: object) -> Iterator[nn.Module]:
    """The modules that a target runs: what its parts hold, in attributes or in closures."""
    seen: dict[int, object] = {}
    todo: list[object] = [target]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, nn.Module):
            yield one
        else:
            todo += _held(one, one is target)


def _held(one: object, outermost: bool) -> Sequence[object]:
    if isinstance(one, FunctionType):
        return list(getclosurevars(one).nonlocals.values())
    if isinstance(one, MethodType):
        return [one.__self__]
    if isinstance(one, partial):
        return [one.func, *one.args, *one.keywords.values()]
    if isinstance(one, (list, tuple)):
        return one
    if isinstance(one, dict):
        return list(one.values())
    ours = outermost or type(one).__module__.partition(".")[0] == "multispec"
    return list(getattr(one, "__dict__", {}).values()) if ours else []
