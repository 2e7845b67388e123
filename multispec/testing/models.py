"""Models whose law is a function of the prefix; strict about the target protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multispec.protocols import MAX_NODES, Capabilities, Scores, walk
from multispec.stream import Draft, Prompt, Slot, StreamSpec
from multispec.tree import path_to

# The logits [V] after a prefix, whose first symbols (so many) are the prompt; [K, V] for parallel slots.
After = Callable[[Sequence[int], int], Tensor]


def require(holds: bool, message: str) -> None:
    """Hold the caller to its contract."""
    if not holds:
        raise AssertionError(message)


@dataclass(frozen=True)
class Call:
    """One ``score`` of a session."""

    rows: tuple[int, ...]
    roots: tuple[int, ...]
    drafts: tuple[Draft, ...]


class FakeSession:
    """A target session that keeps the ids themselves and refuses whatever the protocol forbids.

    ``cached`` is what each open row holds, ``kept`` what the dropped rows held: the prompt and all symbols
    emitted but the last. ``calls`` records every ``score``, ``joined`` the rows that came later, together.
    """

    def __init__(self, model: FakeModel, prompts: Sequence[Prompt], capacity: Sequence[int]):
        self._model = model
        self._starts = {number: prompt.ids.tolist() for number, prompt in enumerate(prompts)}
        self._capacity = dict(enumerate(capacity))
        self._step = model.spec.step
        self._scored: dict[int, tuple[list[int], Draft]] = {}
        self._marks: dict[int, int] = {}
        self.cached: dict[int, list[int]] = {}
        self.kept: dict[int, list[int]] = {}
        self.calls: list[Call] = []
        self.joined: list[tuple[int, ...]] = []

    def prefill(self) -> Scores:
        """The logits behind each prompt."""
        require(not self.cached and not self.kept, "prefill runs once, before anything else")
        self.cached = {number: list(ids) for number, ids in self._starts.items()}
        return Scores(logits=[self._after(number, ()) for number in self.cached])

    def join(self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int], /) -> Scores:
        """The logits behind the prompts of new rows.

        Raises:
            AssertionError: a number that was given before, or a round that is not over.
        """
        require(self._starts.keys().isdisjoint(rows), f"rows {list(rows)} join under numbers that are taken")
        require(not self._scored, f"rows join while {list(self._scored)} are not committed")
        self._starts |= {number: prompt.ids.tolist() for number, prompt in zip(rows, prompts, strict=True)}
        self._capacity |= dict(zip(rows, capacity, strict=True))
        self.cached |= {number: list(self._starts[number]) for number in rows}
        self.joined.append(tuple(rows))
        return Scores(logits=[self._after(number, ()) for number in rows])

    def _after(self, number: int, drafted: Sequence[int]) -> Tensor:
        """Logits ``[1, V]``, ``[K, V]`` for parallel slots."""
        prefix = [*self.cached[number], *drafted]
        found = self._model.after(prefix, len(self._starts[number]))
        return found if found.ndim == 2 else found[None]

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Logits after each root and each node.

        Raises:
            AssertionError: an unknown, dropped or uncommitted row, a root that was never possible.
        """
        require(len(set(rows)) == len(rows), f"rows are scored once per pass: got {list(rows)}")
        self.calls.append(Call(tuple(rows), tuple(roots), tuple(drafts)))
        own = [list(roots[n : n + self._step]) for n in range(0, len(roots), self._step)]
        triples = zip(rows, own, drafts, strict=True)
        return Scores(logits=[self._score(number, root, draft) for number, root, draft in triples])

    def _score(self, number: int, root: list[int], draft: Draft) -> Tensor:
        spec, can = self._model.spec, self._model.capabilities
        require(number in self.cached, f"row {number} is not open (dropped, or never prefilled)")
        require(number not in self._scored, f"row {number} was scored and not committed")
        final = spec.ended is None and not {*root}.isdisjoint(spec.end_ids)
        require(not final, f"row {number} goes on behind its end, symbol {root}")
        free = not self._model.strict or spec.grammar is not None
        require(
            free or self._likely(number, root),
            f"root {root} of row {number} has no mass after {self.cached[number]}",
        )
        require(can.supports_tree or draft.is_chain, "a tree for a model that scores chains only")
        draft.check(spec.vocab_size)
        self._scored[number] = (root, draft)
        tokens = draft.tokens.tolist()
        require(len(draft) % self._step == 0, f"a draft of {len(draft)} symbols in steps of {self._step}")
        paths = [path_to(draft.parents, node) for node in range(-1, len(draft), self._step)]
        return torch.cat([self._after(number, [*root, *(tokens[node] for node in path)]) for path in paths])

    def _likely(self, number: int, root: Sequence[int]) -> bool:
        before = self._after(number, ())
        return all(float(before[slot, symbol]) > -torch.inf for slot, symbol in enumerate(root))

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep each row's root and path.

        Raises:
            AssertionError: a path that was not scored, or that goes on behind an end.
        """
        for number, path in zip(rows, paths, strict=True):
            require(number in self._scored, f"row {number} is committed without being scored")
            root, draft = self._scored.pop(number)
            known = not path or path == path_to(draft.parents, path[-1])
            require(known, f"{path} is no path of the draft {draft.parents}")
            tokens = [draft.tokens.tolist()[node] for node in path]
            spec = self._model.spec
            require(spec.ended is not None or not {*tokens} & {*spec.end_ids}, "kept symbols behind an end")
            require(len(path) % self._step == 0, f"{len(path)} symbols kept in steps of {self._step}")
            self.cached[number] += [*root, *tokens]
            room = self._capacity[number]
            require(len(self.cached[number]) <= room, f"row {number} outgrew its {room} places")

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
        """Score and commit one symbol per row."""
        found = self.score(rows, tokens, [Draft.empty()] * len(rows))
        self.commit(rows, [()] * len(rows))
        return list(found.logits)

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Run and commit symbol after symbol."""
        return walk(self, row, tokens, choose)

    def checkpoint(self, number: int) -> None:
        """Remember how much a row holds."""
        self._marks[number] = len(self.cached[number])

    def rewind(self, number: int, length: int) -> int:
        """Back to ``length``, or to the checkpoint where the model cannot be cropped."""
        if length < len(self.cached[number]):
            goal = length if self._model.croppable else self._marks[number]
            require(goal <= length, f"row {number} has no checkpoint at or before {length}")
            del self.cached[number][goal:]
        return len(self.cached[number])

    def length(self, number: int) -> int:
        """Symbols that a row holds."""
        return len(self.cached[number])

    def drop(self, rows: Sequence[int]) -> None:
        """Close rows; what they held stays readable in ``kept``."""
        for number in rows:
            require(number in self.cached, f"row {number} is dropped, but not open")
            self.kept[number] = self.cached.pop(number)


class FakeModel:
    """A target made of one function of the prefix, ``after``; strict about the protocol.

    ``croppable=False`` rewinds to checkpoints only, as recurrent models do. ``strict=False`` is for a draft
    model, which is shown symbols that it would never emit. ``sessions`` are those begun.
    """

    def __init__(
        self,
        after: After,
        spec: StreamSpec,
        *,
        supports_tree: bool = True,
        croppable: bool = True,
        context_length: int | None = None,
        strict: bool = True,
    ) -> None:
        self.after = after
        self.spec = spec
        why = "" if supports_tree else "this fake scores chains"
        self.capabilities = Capabilities(supports_tree=supports_tree, why=why)
        self.device = torch.device("cpu")
        self.context_length = context_length
        self.croppable = croppable
        self.strict = strict
        self.sessions: list[FakeSession] = []

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> FakeSession:
        """Open a session and remember it."""
        self.sessions.append(FakeSession(self, prompts, capacity))
        return self.sessions[-1]

    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Its cache is the ids themselves, of eight bytes each."""
        return 8 * (capacity + MAX_NODES)


def _spec(vocab_size: int, end_ids: tuple[int, ...]) -> StreamSpec:
    return StreamSpec(slots=(Slot(size=vocab_size),), end_ids=end_ids)


class TableModel(FakeModel):
    """Logits ``[V]`` in float64 that depend on the last ``order`` symbols alone, drawn once from ``seed``.

    ``support`` keeps the best so many symbols of each law and gives the others none. A ``table``
    ``[(V + 1) ** order, V]`` may be given; symbol V stands for places before the prompt.
    """

    def __init__(
        self,
        vocab_size: int = 12,
        *,
        order: int = 1,
        seed: int = 0,
        scale: float = 1.5,
        support: int | None = None,
        table: Tensor | None = None,
        end_ids: tuple[int, ...] = (),
        spec: StreamSpec | None = None,
        **abilities: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = ((vocab_size + 1) ** order, vocab_size)
        drawn = torch.randn(size, generator=generator, dtype=torch.float64) * scale
        if support is not None:
            drawn = drawn.masked_fill(drawn < drawn.topk(support).values[:, -1:], -torch.inf)
        self.table = drawn if table is None else table
        self.order = order
        super().__init__(self._look_up, spec or _spec(vocab_size, end_ids), **abilities)

    def _look_up(self, prefix: Sequence[int], prompt_length: int) -> Tensor:
        vocab_size = self.table.shape[1]
        index = 0
        for place in range(len(prefix) - self.order, len(prefix)):
            index = index * (vocab_size + 1) + (prefix[place] if place >= 0 else vocab_size)
        return self.table[index]


class SlotTableModel(FakeModel):
    """K parallel slots: logits ``[K, V]`` in float64 that depend on the last step's symbols, from ``seed``.

    ``table [(V + 1) ** K, K, V]`` may be given; symbol V stands for what is before the prompt. The K slots of
    a step do not see each other. ``spec`` may have a grammar, sizes and offsets of its own.

    >>> SlotTableModel(2, 3).after([], 0).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        slots: int = 2,
        vocab_size: int = 3,
        *,
        seed: int = 0,
        scale: float = 1.5,
        table: Tensor | None = None,
        spec: StreamSpec | None = None,
        **abilities: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = ((vocab_size + 1) ** slots, slots, vocab_size)
        drawn = torch.randn(size, generator=generator, dtype=torch.float64) * scale
        self.table = drawn if table is None else table
        plain = StreamSpec(slots=(Slot(size=vocab_size),) * slots, parallel=True)
        super().__init__(self._look_up, spec or plain, **abilities)

    def _look_up(self, prefix: Sequence[int], prompt_length: int) -> Tensor:
        slots, vocab_size = self.table.shape[1:]
        last = [vocab_size] * slots + list(prefix)
        index = 0
        for symbol in last[-slots:]:
            index = index * (vocab_size + 1) + symbol
        return self.table[index]


class ScriptedModel(FakeModel):
    """Emits ``script``, again and again, whatever came before: all mass on one symbol."""

    def __init__(self, script: Sequence[int], vocab_size: int = 12, **abilities: Any) -> None:
        self.script = tuple(script)
        self._one_hot = torch.eye(vocab_size, dtype=torch.float64).log()
        end_ids = abilities.pop("end_ids", ())
        super().__init__(self._next, _spec(vocab_size, end_ids), **abilities)

    def _next(self, prefix: Sequence[int], prompt_length: int) -> Tensor:
        return self._one_hot[self.script[(len(prefix) - prompt_length) % len(self.script)]]
