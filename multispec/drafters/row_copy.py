"""Row copy: a picture repeats the row above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.drafters.starts import Tail
from multispec.drafters.window import check_window, each_stream
from multispec.history import Prefix
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class RowCopy:
    """Draft the symbols one row up, ``StreamSpec.row_length`` before, any number of them.

    The spatial prior that speculative Jacobi decoding starts its windows from (Teng et al. 2024), as a
    drafter of its own, which computes nothing. Where there is
    no row above, or its symbol is not allowed, the symbol to the left; where the grammar leaves one
    symbol, that one. A stream without rows repeats its last frame, of one symbol in a text.

    Raises:
        UsageError: nothing to draft.

    >>> RowCopy(num_draft_tokens=24).num_draft_tokens
    24
    """

    name: ClassVar[str] = "row_copy"
    paper: ClassVar[str] = "Teng et al. 2024, arXiv 2410.01699"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 8

    def __post_init__(self) -> None:
        check_window(self.name, self.num_draft_tokens, "copy_above")

    def begin(self, context: Context) -> DraftSession:
        """Nothing to keep but the streams."""
        size, device = context.vocab_size, context.device
        return each_stream(context, lambda spec: _Copy(Tail("copy_above", spec, size, device)))


@dataclass(frozen=True)
class _Copy:
    tail: Tail

    def propose(self, request: Request) -> Draft:
        """Copy up to the first place that has nothing to be copied."""
        copied: list[int] = []
        prefix = Prefix(request.history, copied)
        for _ in range(self.tail.room(request)):
            options = self.tail.options(prefix, request.round_start)
            if len(options) > 1:
                break
            copied.append(options[0])
        return Draft.chain(copied)

    def observe(self, observation: Observation) -> None:
        """The row above is in the history."""
