"""What flows through the core: streams of symbols, drafts, verdicts, steps, results.

The shape alphabet, used in every module: ``B`` rows (requests), ``S`` stream positions, ``D`` draft
nodes, ``V`` symbols, ``K`` codebooks (slots per frame), ``T`` frames, ``H W`` grid, ``C`` channels,
``N`` samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import DraftError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.report import Report
from multispec.sampling import Law, Sampling
from multispec.tree import chain_parents, is_chain

DraftKind = Literal["point", "sampled", "without_replacement"]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One codebook of a frame: ``size`` symbols whose model ids start at ``offset``."""

    size: int
    offset: int = 0


@dataclass(frozen=True)
class Forced:
    """The grammar leaves one symbol: it costs no randomness and counts as no acceptance."""

    symbol: int


@dataclass(frozen=True)
class Allowed:
    """The grammar leaves these symbols; a ``range`` for a segment of a large vocabulary."""

    symbols: tuple[int, ...] | range


@runtime_checkable
class Grammar(Protocol):
    """A pure function of the symbols generated so far; None leaves every symbol."""

    def __call__(self, generated: Sequence[int], /) -> Forced | Allowed | None: ...


@runtime_checkable
class Ending(Protocol):
    """A pure function of the symbols generated so far; True ends the stream behind them."""

    def __call__(self, generated: Sequence[int], /) -> bool: ...


class Drawn(NamedTuple):
    """How the symbols of a row are drawn: by these settings, behind these logits processors."""

    sampling: Sampling
    processors: tuple[Any, ...] = ()


@runtime_checkable
class Drawing(Protocol):
    """What a model's own generation makes of settings: rules that it always goes by.

    Raises:
        UnsupportedError: settings that cannot go with these rules.
    """

    def __call__(self, sampling: Sampling, /) -> Drawn: ...


@dataclass(frozen=True)
class EverySlot:
    """Ends a stream with the frame whose ``slots`` all hold one of ``ids`` (Parler; CSM's frame of zeros).

    >>> EverySlot(ids=(9,), slots=2)([1, 9, 9, 9])
    True
    """

    ids: tuple[int, ...]
    slots: int

    def __call__(self, generated: Sequence[int], /) -> bool:
        """True behind such a frame."""
        whole = len(generated) > 0 and len(generated) % self.slots == 0
        return whole and all(symbol in self.ids for symbol in generated[-self.slots :])


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """What each stream position may hold, and how the stream ends.

    Positions are flat: with ``K`` slots, position ``s`` is slot ``s % K`` of frame ``s // K``.
    ``parallel`` slots do not see each other within a frame (delay patterns); sequential ones do
    (depth transformers, flattened codes). A text stream has one slot. ``row_length`` is the way
    from a symbol of a picture to the one beneath it, row-end symbols included. ``prompt_size`` is
    the vocabulary of prompts where it is not that of the stream: then prompt ids mean something
    else, and what looks back (penalties, look-ups) sees generated symbols only.

    A stream ends behind ``fixed_length`` symbols, and behind an id of ``end_ids`` in any slot, or where
    ``ended`` says so: then that decides alone, and ``end_ids`` are only what ``min_new_tokens`` bans. It
    is asked behind every symbol, of parallel slots behind every whole step.

    Where nobody says otherwise, ``usual_length`` symbols are the most that a stream without a length of its
    own is given: one that has not ended by then never will.

    ``drawing`` are rules of drawing that belong to the model, such as Dia's for its end.

    Parallel slots move on in whole steps of K symbols (``multispec.frames``): an end within a step lets
    the step be finished. Their grammar sees -1 for the symbols of the very step that it speaks of.

    >>> StreamSpec(slots=(Slot(size=8),) * 4).coordinates(6)
    (1, 2)
    """

    slots: tuple[Slot, ...]
    parallel: bool = False
    delays: tuple[int, ...] = ()
    order: Literal["raster", "flattened", "delayed"] = "flattened"
    end_ids: tuple[int, ...] = ()
    ended: Ending | None = None
    fixed_length: int | None = None
    usual_length: int | None = None
    grammar: Grammar | None = None
    drawing: Drawing | None = None
    row_length: int | None = None
    prompt_size: int | None = None

    @cached_property
    def vocab_size(self) -> int:
        """The number of symbols of the widest slot, ids of earlier segments included."""
        return max(slot.offset + slot.size for slot in self.slots)

    @property
    def step(self) -> int:
        """The symbols that a plain call of the model emits: K where slots are parallel, else 1."""
        return len(self.slots) if self.parallel else 1

    def coordinates(self, position: int) -> tuple[int, int]:
        """(frame, slot) of a flat position."""
        return divmod(position, len(self.slots))

    def drawn(self, sampling: Sampling) -> Drawn:
        """What these settings mean for this stream.

        Raises:
            UnsupportedError: settings that cannot go with the model's own rules.
        """
        return Drawn(sampling) if self.drawing is None else self.drawing(sampling)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What one row starts from: ids ``[S]``, and what else conditions the model (encoder inputs).

    ``encoded [1, S, C]`` is what the target's own encoder has made of them already; drafters never see it.
    ``unconditional`` is the prompt of the other branch of ``guidance``. ``spec`` is what this row's
    stream holds, where that depends on the prompt (the grid of a picture); ``text`` the words that it
    was made from, where there were any.
    """

    ids: Int[Tensor, " S"]
    conditioning: Mapping[str, Tensor] = field(default_factory=dict)
    encoded: Tensor | None = None
    unconditional: Prompt | None = None
    guidance: Guidance | None = None
    spec: StreamSpec | None = None
    text: str | None = None

    @property
    def guided(self) -> bool:
        """True when two branches have to be run."""
        return self.guidance is not None and not self.guidance.neutral


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A tree of drafted symbols.

    ``tokens [D]``; ``parents[i]`` is the node before node ``i``, -1 for the last committed symbol,
    always less than ``i``. ``kind`` says how the symbols came about: ``point`` (deterministic, q
    is 1), ``sampled`` (independently from the rows of ``q [D, V]``), ``without_replacement``
    (siblings drawn one after the other from ``q``, which all hold the law of the first). ``settled``
    nodes at the front of a chain count as decided by the drafter's own schedule (ZipAR); verifiers that
    promise anything look at them like at any others.

    >>> Draft.chain([5, 7, 9]).parents
    (-1, 0, 1)
    """

    tokens: Int[Tensor, " D"]
    parents: tuple[int, ...]
    q: Float[Tensor, "D V"] | None = None
    kind: DraftKind = "point"
    settled: int = 0

    def __len__(self) -> int:
        return len(self.parents)

    @cached_property
    def ids(self) -> list[int]:
        """The tokens as a list: read once, since on an accelerator reading waits for it."""
        found: list[int] = self.tokens.tolist()
        return found

    @property
    def is_chain(self) -> bool:
        """True when no node branches."""
        return is_chain(self.parents)

    @staticmethod
    def chain(tokens: Sequence[int] | Tensor, q: Tensor | None = None) -> Draft:
        """A draft that does not branch; a point mass unless ``q [D, V]`` is given."""
        ids = torch.as_tensor(tokens, dtype=torch.long)
        kind: DraftKind = "point" if q is None else "sampled"
        return Draft(tokens=ids, parents=chain_parents(len(ids)), q=q, kind=kind)

    @staticmethod
    def empty() -> Draft:
        """No symbols: the next round is a plain step."""
        return _EMPTY

    def check(self, vocab_size: int) -> Draft:
        """The draft itself, if it keeps its contract.

        Raises:
            DraftError: parents that are no tree, ids out of range, a q that is missing or no law.
        """
        if self.tokens.ndim != 1 or len(self.tokens) != len(self.parents):
            shape = f"{tuple(self.tokens.shape)} tokens for {len(self.parents)} parents"
            raise DraftError(f"A draft needs one parent per token: got {shape}. Return tokens [D].")
        if not self.is_chain and any(not -1 <= parent < node for node, parent in enumerate(self.parents)):
            raise DraftError(
                f"A draft is a tree whose parents come before their children (-1 is the root): "
                f"got parents {self.parents}. Number the nodes from the root outwards."
            )
        if len(self) and not 0 <= min(self.ids) <= max(self.ids) < vocab_size:
            got = sorted({*self.ids})
            raise DraftError(f"Draft ids must lie in [0, {vocab_size}): got {got}. Map them first.")
        if self.settled and not (self.is_chain and 0 < self.settled <= len(self)):
            raise DraftError(
                f"settled counts nodes at the front of a chain: got {self.settled} of {len(self)} nodes with "
                f"parents {self.parents}. Draft a chain, and settle none of its last symbols."
            )
        self._check_q(vocab_size)
        return self

    def _check_q(self, vocab_size: int) -> None:
        if self.kind == "point" or not len(self):
            return
        if self.q is None or self.q.shape != (len(self), vocab_size):
            raise DraftError(
                f"A draft of kind {self.kind!r} needs q [D, V], the law each node was drawn from: "
                f"got {None if self.q is None else tuple(self.q.shape)} for {len(self)} nodes and "
                f"{vocab_size} symbols."
            )
        total = self.q.sum(-1)
        fair = torch.isclose(total, torch.ones_like(total), atol=1e-4) & (self.q.amin(-1) >= 0)
        drawn = self.q.gather(-1, self.tokens.to(self.q.device)[:, None])[:, 0] > 0
        if not bool((fair & drawn).all()):
            raise DraftError(
                f"Each row of q must sum to 1 and not go below 0: got sums {total.tolist()}, and mass on the "
                f"drafted symbols {drawn.tolist()}. Apply softmax to the processed scores, and give the "
                "very law the token was drawn from."
            )


_EMPTY = Draft(tokens=torch.empty(0, dtype=torch.long), parents=())


class Verdict(NamedTuple):
    """What a verifier decided: ``path`` of accepted nodes, and the symbols to emit.

    ``tokens`` are the accepted symbols and then one more, the correction or the bonus. ``spent``
    is the total variation that a lossy rule spent on each of them; () for exact rules.
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]
    spent: tuple[float, ...] = ()


class Observation(NamedTuple):
    """What a drafter may learn from a round: the target's view of every scored node.

    ``emitted`` are the symbols committed (after trimming), ``path`` the accepted nodes among them;
    ``logits [D + 1, V]`` are the raw logits after the last committed symbol and after every node, and
    ``law`` is p there, all rules applied (for K parallel slots ``D + K`` rows, one for each position of
    the drafted steps and of the one behind them); ``hidden [D + 1, C]`` the last hidden states where the
    target exposes them. ``start`` is the position of the first symbol of the round.
    """

    draft: Draft
    path: tuple[int, ...]
    emitted: tuple[int, ...]
    logits: Float[Tensor, "D1 V"]
    law: Law
    start: int
    hidden: Tensor | None = None


class Step(NamedTuple):
    """One symbol of a stream: its id, whether it was drafted, what it adds to the output, its row."""

    token: int
    from_draft: bool
    delta: Any = None
    row: int = 0
    position: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """The symbols of this step."""
        return (self.token,)


@runtime_checkable
class Savable(Protocol):
    """An output that knows how to write itself: a PIL image, an Audio."""

    def save(self, path: Path, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one row produced: ``tokens [S]`` without the prompt, the output, the report.

    ``from_draft [S]`` says which symbols were drafted. ``logits [S, V]`` (raw),
    ``scores [S, V]`` (processed, as transformers names them) and ``log_probs [S]`` (the log-softmax of
    ``scores`` at the emitted symbols) are there when they were asked for.
    ``finish_reason`` is one of ``stop``, ``length`` or ``interrupted``.
    """

    tokens: Int[Tensor, " S"] | Int[Tensor, "T K"]
    output: Any
    report: Report
    from_draft: tuple[bool, ...] = ()
    logits: Tensor | None = None
    scores: Tensor | None = None
    log_probs: Tensor | None = None
    finish_reason: str = "length"

    def save(self, path: str | Path) -> Path:
        """Write the output to ``path``: text as UTF-8, media by their own ``save``.

        Raises:
            UnsupportedError: the output is of a kind that has no file form.
            UsageError: a name whose ending stands for no format of such media.
        """
        target = Path(path)
        if isinstance(self.output, str):
            target.write_text(self.output, encoding="utf-8")
        elif isinstance(self.output, Savable):
            try:
                self.output.save(target)
            except ValueError as error:
                raise UsageError(
                    f"{target.name!r} cannot be written: {error}. End the name in a format of this kind of "
                    "output, such as .png for pictures and .wav for sounds."
                ) from error
        else:
            raise UnsupportedError(
                f"Only text and media can be saved: got {type(self.output).__name__}. "
                "Load the generator with a tokenizer or a codec, or store result.tokens yourself."
            )
        return target
