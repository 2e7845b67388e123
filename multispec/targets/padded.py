"""Every pass in one shape, row by row, so that plain and speculative decoding give the same bits.

Kernels choose their way by the shape of what they multiply, and ways round differently: a symbol scored alone
and the same symbol scored within a draft are a rounding apart, which in half precision changes one argmax in
some hundreds. Here each pass runs one row, ``columns`` symbols, padded where there are fewer, and looks at a
number of cache entries that is a multiple of ``BUCKET``, those behind the row masked: they add exact zeros.
Whether that is enough is tried out when a target is made: ``unsteady``.

What it costs is printed by ``multispec doctor --measure``. For the embedded text model on one core with AVX2,
against the same model without it, a pass over 1, 4 and 8 symbols took 1.5 to 2.3, 1.3 to 1.7 and 1.1 times as
long in float32, and 4.0 to 4.8, 1.9 and 1.0 times in bfloat16 (three runs): plain decoding pays for its
padding, full drafts do not. A batch pays more, since its rows are run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.protocols import Scores, walk
from multispec.stream import Draft, Prompt
from multispec.targets.masks import padded
from multispec.targets.ragged import Forward, RaggedSession, entries

COLUMNS = 8
# Keys are looked at in blocks of so many: those of a row that ends within one are masked.
BUCKET = 64


def padded_entries(capacity: int, nodes: int, columns: int) -> int:
    """Entries of a cache for a row of up to ``capacity`` symbols, whole buckets of them."""
    return -(-(entries(capacity, nodes) + columns) // BUCKET) * BUCKET


class PaddedSession:
    """Rows of one batch, each in a cache and in passes of its own; drafts are chains.

    A draft that does not fit into a pass beside its root takes several. ``limit`` is the most positions that
    the model has.
    """

    def __init__(
        self,
        forward: Forward,
        prompts: Sequence[Prompt],
        capacity: Sequence[int],
        nodes: int,
        columns: int = COLUMNS,
        chunk: int | None = None,
        limit: int | None = None,
    ) -> None:
        self._forward, self._nodes, self._columns = forward, nodes, columns
        self._chunk, self._limit = chunk, limit
        self._rows: dict[int, RaggedSession] = {}
        self._add(range(len(prompts)), prompts, capacity)

    def _add(self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int]) -> None:
        for row, prompt, room in zip(rows, prompts, capacity, strict=True):
            whole = padded_entries(room, self._nodes, self._columns) - entries(0, 0)
            self._rows[row] = RaggedSession(self._forward, [prompt], [whole], 0, chunk=self._chunk)

    def prefill(self) -> Scores:
        """Run each prompt by itself."""
        return self._prefill(list(self._rows))

    def _prefill(self, rows: Sequence[int]) -> Scores:
        return Scores(logits=[self._rows[row].prefill().logits[0] for row in rows])

    def join(self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int], /) -> Scores:
        """Run each new prompt by itself."""
        self._add(rows, prompts, capacity)
        return self._prefill(rows)

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run each row's root and its draft.

        Raises:
            UnsupportedError: a draft that branches, since its symbols would stand elsewhere among the keys.
        """
        logits: list[Tensor] = []
        for row, root, draft in zip(rows, roots, drafts, strict=True):
            if not draft.is_chain:
                raise UnsupportedError(
                    "A deterministic target scores chains, whose symbols stand in the cache as plain "
                    f"decoding puts them there: got the parents {draft.parents}. Use a drafter that drafts "
                    "chains."
                )
            logits.append(self._run(row, [root, *draft.ids]))
        return Scores(logits=logits, calls=[-(-len(one) // self._columns) for one in logits])

    def _run(self, row: int, ids: Sequence[int]) -> Tensor:
        """Logits ``[n, V]`` behind each of these symbols of a row, in passes of one shape."""
        session, width = self._rows[row], self._columns
        ledger, like, found = session.cache.ledger, self._forward.like, []
        for first in range(0, len(ids), width):
            part = ids[first : first + width]
            start = ledger.lengths[0] + first
            step = padded(start, width, BUCKET, self._forward.attention, like, self._limit)
            ledger.slots, ledger.end = torch.arange(start, start + width, device=like.device)[None], step.end
            run = torch.tensor([[*part, *[0] * (width - len(part))]], device=like.device)
            found.append(self._forward(run, step, session.cache, None)[0, : len(part)])
        return torch.cat(found)

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep the root and the path of each row."""
        for row, path in zip(rows, paths, strict=True):
            self._rows[row].commit([0], [path])

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> Sequence[Tensor]:
        """Run and commit one symbol per row."""
        found = self.score(rows, tokens, [Draft.empty()] * len(rows))
        self.commit(rows, [()] * len(rows))
        return found.logits

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Run and commit symbol after symbol."""
        return walk(self, row, tokens, choose)

    def checkpoint(self, row: int) -> None:
        """Nothing to remember: these caches can go back anywhere."""

    def rewind(self, row: int, length: int) -> int:
        """Forget everything behind the first ``length`` symbols of a row."""
        return self._rows[row].rewind(0, length)

    def length(self, row: int) -> int:
        """Symbols of a row that are in its cache."""
        return self._rows[row].length(0)

    def drop(self, rows: Sequence[int]) -> None:
        """Free the caches of rows that are done."""
        for row in rows:
            del self._rows[row]


@torch.inference_mode()
def unsteady(forward: Forward, size: int, columns: int, limit: int | None) -> str | None:
    """Why passes of one shape do not give the same bits here; None where they do.

    A few symbols one by one and in pieces, over the end of a bucket where the model has so many positions.
    """
    count = columns + 5
    before = min(BUCKET - columns - 4, (limit or BUCKET) - count - columns)
    if before < 1:
        return f"its context of {limit} symbols is too short to try it"
    ids = [(7 * n + 3) % size for n in range(before + count)]
    prompt = Prompt(ids=torch.tensor(ids[:before]))

    def logits(pieces: Sequence[int]) -> Tensor:
        session = PaddedSession(forward, [prompt], [before + count], columns, columns)
        found, place = [session.prefill().logits[0]], before
        for piece in pieces:
            part = ids[place : place + piece]
            found += session.score([0], part[:1], [Draft.chain(part[1:])]).logits
            session.commit([0], [tuple(range(piece - 1))])
            place += piece
        return torch.cat(found)

    alone = logits([1] * count)
    for piece in (3, columns, columns + 3):
        pieces = [piece] * (count // piece)
        other = logits([*pieces, *[1] * (count - sum(pieces))])
        if not torch.equal(alone, other):
            far = float((alone.float() - other.float()).abs().max())
            return f"pieces of {piece} symbols give logits that are {far:.2g} from those of one by one"
    return None
