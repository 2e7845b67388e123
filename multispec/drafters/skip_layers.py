"""The target drafts with some of its own attention blocks and perceptrons left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from multispec.drafters.self_draft import Itself, SelfDraftSession
from multispec.errors import UnsupportedError, UsageError
from multispec.protocols import Context, DraftSession
from multispec.targets.views import Sublayers


@dataclass(frozen=True)
class SkipLayers:
    """Draft with the target itself, less these layers; verify with all of them.

    Zhang et al. (2023), Draft & Verify, section 3.1: y = M(x | z) with z the sublayers left out, which
    ``search_layers`` finds for a model once and for all. ``attention`` and ``mlp`` are numbers of layers.
    Where both are empty, ``share`` of the layers between the first and the last are left out whole, evenly
    spread. The draft reads the target's exact entries of everything committed.

    Raises:
        UsageError: nothing to draft, a share outside (0, 1).

    >>> SkipLayers(attention=(2, 4), mlp=(4,)).skipped(6) == Sublayers(frozenset({2, 4}), frozenset({4}))
    True
    >>> sorted(SkipLayers(share=0.5).skipped(8).mlp)
    [2, 4, 6]
    """

    name: ClassVar[str] = "skip_layers"
    paper: ClassVar[str] = "Zhang et al. 2023 (Draft & Verify), arXiv 2309.08168"
    trained: ClassVar[bool] = False
    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()
    share: float = 0.45
    num_draft_tokens: int = 5

    def __post_init__(self) -> None:
        check_length(self.num_draft_tokens)
        check_share(self.share)

    def skipped(self, layers: int) -> Sublayers:
        """What is left out of a model of so many layers.

        Raises:
            UsageError: layers that it does not have, or nothing left.
        """
        if not self.attention and not self.mlp:
            inner = between(layers, self.name)
            count = max(1, round(self.share * len(inner)))
            step = len(inner) / count
            return Sublayers.whole(inner[int((place + 0.5) * step)] for place in range(count))
        check_layers("attention", self.attention, layers)
        check_layers("mlp", self.mlp, layers)
        found = Sublayers(frozenset(self.attention), frozenset(self.mlp))
        if len(found) == 2 * layers:
            raise UsageError(
                f"skip_layers has to leave something: got all {layers} attention blocks and perceptrons. "
                "Name fewer of them."
            )
        return found

    def begin(self, context: Context) -> DraftSession:
        """Make the lighter target.

        Raises:
            UsageError: layers that the target does not have.
            UnsupportedError: a target whose layers cannot be left out.
        """
        itself = Itself(context, self.name)
        skipped = self.skipped(itself.layers)
        lighter = itself.forward.without(skipped)
        return SelfDraftSession(itself, self.num_draft_tokens, lambda _: skipped, lambda _: lighter)


def between(layers: int, name: str) -> list[int]:
    """The layers that may be left out: all between the first and the last, of two layers the second.

    Raises:
        UnsupportedError: one layer alone.
    """
    if layers < 2:
        raise UnsupportedError(
            f"{name} leaves out some of several layers, and this target has {layers}. Use prompt_lookup, or "
            "draft_model with a smaller model."
        )
    return list(range(1, layers - 1)) or [1]


def check_layers(what: str, numbers: Iterable[int], layers: int) -> None:
    """Refuse numbers of layers that a target does not have.

    Raises:
        UsageError: names them.
    """
    wrong = sorted({number for number in numbers if not 0 <= number < layers})
    if wrong:
        raise UsageError(
            f"{what} names layers of the target, 0 to {layers - 1}: got {wrong}. Name layers that it has."
        )


def check_length(num_draft_tokens: int) -> None:
    """Refuse to draft nothing.

    Raises:
        UsageError: fewer than one symbol.
    """
    if num_draft_tokens < 1:
        raise UsageError(f"num_draft_tokens must be >= 1: got {num_draft_tokens}.")


def check_share(share: float) -> None:
    """Refuse to leave out nothing or everything.

    Raises:
        UsageError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise UsageError(f"share must lie between 0 and 1: got {share}. Of 0.45, 45 % are left out.")
