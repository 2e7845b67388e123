"""Views of a transformers model: the same weights, with sublayers left out, replaced or watched.

A view copies the modules on the way to what it changes, as shells that share everything else. The model
itself is never touched, and layers keep their numbers, so that a view reads and writes the model's own
key/value cache.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from multispec.errors import UnsupportedError

Linear = Callable[[Tensor], Tensor]
# A linear map made of a weight [out, in] and a bias [out].
MakeLinear = Callable[[Tensor, Tensor | None], Linear]
_ATTENTION: tuple[str, ...] = ("self_attn", "attn", "attention", "self_attention")
_PERCEPTRON: tuple[str, ...] = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
_WATCHED = "multispec_watched"


@dataclass(frozen=True)
class Sublayers:
    """Attention blocks and perceptrons of a model, by the numbers of their layers.

    >>> Sublayers.whole([3, 1]).attention == frozenset({1, 3})
    True
    """

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    @staticmethod
    def whole(layers: Any) -> Sublayers:
        """Both sublayers of these layers."""
        numbers = frozenset(int(number) for number in layers)
        return Sublayers(numbers, numbers)

    def __len__(self) -> int:
        """How many sublayers these are."""
        return len(self.attention) + len(self.mlp)


@dataclass
class Watch:
    """What a watched pass saw, by layer.

    ``queries [B, heads, Q, C]``, ``entering [B, Q, C]`` what each layer was given, and ``attended [B, Q, C]``
    what its attention gave back.
    """

    queries: dict[int, Tensor] = field(default_factory=dict)
    entering: dict[int, Tensor] = field(default_factory=dict)
    attended: dict[int, Tensor] = field(default_factory=dict)


def shell(module: nn.Module, forward: Callable[..., Any] | None = None, **children: nn.Module) -> nn.Module:
    """A twin that shares all of ``module`` but these children, and its forward where one is given."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    if forward is not None:
        object.__setattr__(twin, "forward", forward)
    return twin


def replaced(module: nn.Module, changes: Mapping[str, nn.Module]) -> nn.Module:
    """A twin with other modules at these dotted paths."""
    below: dict[str, dict[str, nn.Module]] = {}
    children: dict[str, nn.Module] = {}
    for path, change in changes.items():
        head, _, rest = path.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = change
        else:
            children[head] = change
    for name, deeper in below.items():
        inside = children.get(name) or module.get_submodule(name)
        children[name] = replaced(inside, deeper)
    return shell(module, **children)


class Modules:
    """The layers of a model of transformers and how they are built.

    Raises:
        UnsupportedError: no list of ``layers`` layers in it.
    """

    def __init__(self, model: Any, layers: int) -> None:
        self.model, self.layers = model, layers
        self._stack = self._find()

    def _find(self) -> str:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.layers:
                if all(_child(layer, _ATTENTION) for layer in module):
                    return str(name)
        raise UnsupportedError(
            f"{type(self.model).__name__} has no list of {self.layers} layers with an attention block each, "
            "so none can be left out or looked at. Use a smaller model as draft_model, or prompt_lookup."
        )

    def _layer(self, number: int) -> nn.Module:
        found: nn.Module = self.model.get_submodule(f"{self._stack}.{number}")
        return found

    @cached_property
    def _shapes(self) -> _Shapes:
        return _shapes(self.model, f"{self._stack}.0", self._layer(0))

    def without(self, skipped: Sublayers) -> Any:
        """The model with these sublayers left out.

        Raises:
            UnsupportedError: a sublayer that cannot be left out without the other one.
        """
        whole = skipped.attention & skipped.mlp
        changes = {f"{self._stack}.{n}": _passing(self._layer(n), self._shapes.layer) for n in whole}
        for kind, numbers, names in (
            ("attention", skipped.attention - whole, _ATTENTION),
            ("mlp", skipped.mlp - whole, _PERCEPTRON),
        ):
            for number in numbers:
                name = self._separate(number, names, kind)
                changes[f"{self._stack}.{number}.{name}"] = _nothing(
                    self._layer(number).get_submodule(name), getattr(self._shapes, kind)
                )
        return replaced(self.model, changes)

    def _separate(self, number: int, names: tuple[str, ...], kind: str) -> str:
        name = _child(self._layer(number), names)
        if name is None or not self._shapes.separate:
            raise UnsupportedError(
                f"The {kind} of layer {number} of {type(self.model).__name__} cannot be left out alone: this "
                "layer does not add up its attention and its perceptron. Leave out whole layers (for swift: "
                "whole=True)."
            )
        return name

    def with_linear(self, make: MakeLinear) -> Any:
        """The model with other linear maps in its layers and at its head."""
        inside = {
            f"{self._stack}.{name}": module
            for name, module in self.model.get_submodule(self._stack).named_modules()
        }
        head = self.model.get_output_embeddings()
        inside |= {name: module for name, module in self.model.named_modules() if module is head}
        maps = {name: module for name, module in inside.items() if isinstance(module, (nn.Linear, Conv1D))}
        return replaced(self.model, {name: _linear(module, make) for name, module in maps.items()})

    def share(self, skipped: Sublayers) -> float:
        """The share of the parameters of layers and head that is still read without these sublayers."""
        head = self.model.get_output_embeddings()
        total = _size(self.model.get_submodule(self._stack)) + _size(head)
        gone = 0
        for number in skipped.attention | skipped.mlp:
            layer, parts = self._layer(number), []
            parts += [_ATTENTION] if number in skipped.attention else []
            parts += [_PERCEPTRON] if number in skipped.mlp else []
            names = [name for names in parts if (name := _child(layer, names)) is not None]
            gone += _size(layer) if len(parts) == 2 else sum(_size(layer.get_submodule(n)) for n in names)
        return 1 - gone / total

    def observing(self, watch: Watch) -> Any:
        """The model with its queries and hidden states shown to ``watch``."""
        changes: dict[str, nn.Module] = {}
        for number in range(self.layers):
            layer = self._layer(number)
            name = str(_child(layer, _ATTENTION))
            seen = _watched_attention(layer.get_submodule(name), number, watch)
            changes[f"{self._stack}.{number}"] = _watched_layer(shell(layer, **{name: seen}), number, watch)
        return replaced(self.model, changes)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _child(layer: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in layer._modules), None)


@dataclass
class _Shapes:
    """How many things the forwards of a layer and its parts return (0: a tensor alone).

    ``separate`` says that a layer gives back what it was given where both parts give zeros.
    """

    layer: int = 0
    attention: int = 0
    mlp: int = 0
    separate: bool = False


@torch.inference_mode()
def _shapes(model: Any, path: str, layer: nn.Module) -> _Shapes:
    """Run one symbol through the first layer, first as it is and then without its parts."""
    found = _Shapes()
    parts = {"attention": _child(layer, _ATTENTION), "mlp": _child(layer, _PERCEPTRON)}
    names = {kind: name for kind, name in parts.items() if name is not None}
    ids = torch.tensor([[1]], device=next(model.parameters()).device)

    def run(changes: dict[str, nn.Module], note: Callable[[Any, Any], None]) -> None:
        inner = replaced(layer, changes) if changes else layer
        seen = shell(inner, _noting(inner, note))
        replaced(model, {path: seen})(input_ids=ids, use_cache=False)

    def counts(kind: str) -> Callable[[Any, Any], None]:
        return lambda given, out: setattr(found, kind, len(out) if isinstance(out, tuple) else 0)

    def compare(given: Any, out: Any) -> None:
        got = out[0] if isinstance(out, tuple) else out
        found.separate = bool(torch.allclose(got, given, atol=1e-4 * float(given.abs().max())))

    spies = {
        name: shell(layer.get_submodule(name), _noting(layer.get_submodule(name), counts(kind)))
        for kind, name in names.items()
    }
    run(spies, counts("layer"))
    if len(names) == 2:
        silent = {
            name: _nothing(layer.get_submodule(name), getattr(found, kind)) for kind, name in names.items()
        }
        run(silent, compare)
    return found


def _noting(module: nn.Module, note: Callable[[Any, Any], None]) -> Callable[..., Any]:
    """The forward of a module, whose first input and output are shown to ``note``."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = module(*args, **kwargs)
        note(_first(args, kwargs), out)
        return out

    return forward


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _wrapped(first: Tensor, count: int) -> Any:
    """A tensor alone, or in front of ``count - 1`` times None."""
    return (first, *[None] * (count - 1)) if count else first


def _passing(layer: nn.Module, count: int) -> nn.Module:
    """A layer that hands on what it is given."""
    return shell(layer, lambda *args, **kwargs: _wrapped(_first(args, kwargs), count))


def _nothing(part: nn.Module, count: int) -> nn.Module:
    """An attention block or a perceptron that adds nothing."""
    return shell(part, lambda *args, **kwargs: _wrapped(torch.zeros_like(_first(args, kwargs)), count))


def _linear(module: nn.Module, make: MakeLinear) -> nn.Module:
    weight: Any = module.weight
    bias: Any = module.bias
    straight = weight.T.contiguous() if isinstance(module, Conv1D) else weight
    return shell(module, make(straight, bias))


def _watched_layer(layer: nn.Module, number: int, watch: Watch) -> nn.Module:
    return shell(layer, _noting(layer, lambda given, out: watch.entering.__setitem__(number, given)))


def _watched_attention(attention: nn.Module, number: int, watch: Watch) -> nn.Module:
    """An attention block whose queries go through our own function on their way to torch's."""
    twin: Any = shell(attention)
    config: Any = vars(attention).get("config")
    if config is not None:
        way = _way(attention, str(config._attn_implementation))
        twin.config = copy.copy(config)
        twin.config._attn_implementation = _WATCHED
        twin.multispec_watch = (watch, number, way)

    def note(given: Any, out: Any) -> None:
        watch.attended[number] = out[0] if isinstance(out, tuple) else out

    return shell(twin, _noting(twin, note))


def _way(attention: nn.Module, name: str) -> Callable[..., Any]:
    """The attention function that a block would call by itself; the plain one stands beside its class."""
    if name != "eager":
        found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
        return found
    plain: Callable[..., Any] = vars(sys.modules[type(attention).__module__])["eager_attention_forward"]
    return plain


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    noted: Any = module
    watch, number, way = noted.multispec_watch
    watch.queries[number] = query
    return way(module, query, key, value, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(_WATCHED, _attend)
