"""Which codes of a codebook lie near each other: tables of the nearest, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multispec.errors import UsageError

# Entries of one block of distances: 32 MiB in float64, whatever the codebook.
_BLOCK = 2**22
# Codebooks of so many codes keep all their distances: 16 MiB.
_WHOLE = 2048
_VERSION = "multispec neighbours 1"


class Nearest(NamedTuple):
    """Of every code its k nearest others, nearest first, and how far they are (squared L2)."""

    codes: Int[Tensor, "N k"]
    squared: Float[Tensor, "N k"]


class _Symbols(NamedTuple):
    """The symbol of each code, and the code of each symbol up to the last of them; -1 for the others."""

    ids: Int[Tensor, " N"]
    codes: Int[Tensor, " V"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """Neighbourhoods in ``codebook [N, C]``, whose code ``c`` is symbol ``offset + c`` of the stream.

    Where codes are no segment of the ids, ``symbols`` names the one of each code instead. Symbols outside
    the codebook have no neighbour but themselves. A table of neighbours is computed when it is first
    asked for, and kept in the cache folder (``cache_folder``) under a hash of the codebook.

    Raises:
        UsageError: a codebook that is no matrix of finite numbers with two codes or more; symbols that are
            not one for each code.

    >>> line = Neighbours(codebook=torch.tensor([[0.0], [1.0], [3.0]]), offset=10)
    >>> line.nearest(2).codes.tolist()
    [[1, 2], [0, 2], [1, 0]]
    >>> line.of(torch.tensor([10, 12, 5]), 1).tolist()
    [[11], [11], [5]]
    """

    codebook: Tensor
    offset: int = 0
    symbols: Sequence[int] | None = None
    _tables: dict[tuple[int, torch.device], Nearest] = field(init=False, default_factory=dict, repr=False)
    _books: dict[torch.device, Tensor] = field(init=False, default_factory=dict, repr=False)
    _wholes: dict[torch.device, Tensor] = field(init=False, default_factory=dict, repr=False)
    _symbols: dict[torch.device, _Symbols] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shape = tuple(self.codebook.shape)
        if len(shape) != 2 or shape[0] < 2 or not bool(self.codebook.isfinite().all()):
            raise UsageError(
                f"A codebook is a matrix [N, C] of finite numbers with N >= 2: got shape {shape}. Pass the "
                "embedding weight of the quantiser."
            )
        if self.offset < 0:
            raise UsageError(f"The offset of a codebook must be >= 0: got {self.offset}.")
        if self.symbols is not None:
            self._check_symbols(self.symbols)

    def _check_symbols(self, symbols: Sequence[int]) -> None:
        count, different = len(symbols), len(set(symbols))
        if self.offset or not count == different == self.size or min(symbols) < 0:
            raise UsageError(
                f"Each code is one symbol of its own: got {count} symbols, {different} different ones, for "
                f"{self.size} codes, and offset={self.offset}. Pass the id of each code, or an offset."
            )

    @property
    def size(self) -> int:
        """The number of codes."""
        return len(self.codebook)

    @cached_property
    def span(self) -> range:
        """The ids from the first code's symbol to the last one's."""
        given = range(self.offset, self.offset + self.size) if self.symbols is None else self.symbols
        return range(min(given), max(given) + 1)

    def check(self, vocab_size: int) -> Neighbours:
        """Itself, if all its codes are symbols of such a vocabulary.

        Raises:
            UsageError: the codebook reaches past the vocabulary.
        """
        if self.span.stop > vocab_size:
            raise UsageError(
                f"A codebook must lie within the vocabulary: got {self.size} codes from id {self.span.start} "
                f"on, for {vocab_size} symbols. Pass the codebook of this model, and the id of its first one."
            )
        return self

    def nearest(self, k: int) -> Nearest:
        """The k nearest others of every code (all others, where they are fewer), on the CPU.

        Raises:
            UsageError: k is less than 1.
        """
        if k < 1:
            raise UsageError(f"The number of neighbours must be >= 1: got {k}.")
        return self._table(min(k, self.size - 1), torch.device("cpu"))

    def of(self, ids: Int[Tensor, " n"], k: int) -> Int[Tensor, "n k"]:
        """The k nearest symbols of each symbol, nearest first; itself in every place where it has none."""
        table = self._table(min(k, self.size - 1), ids.device)
        symbols, codes = self._symbols_on(ids.device).ids, self._codes(ids)
        near = symbols[table.codes[codes.clamp(min=0)].long()]
        return torch.where(codes[:, None] >= 0, near, ids[:, None])

    def squared_distances(self, ids: Int[Tensor, " n"], others: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Squared L2 distance of each symbol to some others; inf where one of them is no code."""
        centres, around = self._codes(ids), self._codes(others)
        # The places of what is no code are overwritten below.
        if self.size <= _WHOLE:
            found = self._distances(ids.device)[centres[:, None], around]
        else:
            found = self._between(self._codebook_on(ids.device), centres, around)
        found = found.masked_fill((around < 0) | (centres < 0)[:, None], torch.inf)
        return found.masked_fill(others == ids[:, None], 0.0)

    @staticmethod
    def _between(book: Tensor, centres: Tensor, around: Tensor) -> Tensor:
        found = torch.full(around.shape, torch.inf, device=book.device)
        rows = max(_BLOCK // max(around.shape[1] * book.shape[1], 1), 1)
        for start in range(0, len(centres), rows):
            here = slice(start, start + rows)
            found[here] = (book[around[here]] - book[centres[here]][:, None]).square().sum(-1)
        return found

    def _distances(self, device: torch.device) -> Tensor:
        """Of every code to every other."""
        if device not in self._wholes:
            every = torch.arange(self.size, device=device)
            around = every.expand(self.size, -1)
            self._wholes[device] = self._between(self._codebook_on(device), every, around)
        return self._wholes[device]

    def _codes(self, ids: Tensor) -> Tensor:
        """The code of each symbol; -1 where it has none."""
        codes = self._symbols_on(ids.device).codes
        return codes[ids.clamp(max=len(codes) - 1)]

    def _symbols_on(self, device: torch.device) -> _Symbols:
        if device not in self._symbols:
            given = range(self.offset, self.offset + self.size) if self.symbols is None else self.symbols
            ids = torch.tensor(list(given))
            codes = torch.full((int(ids.max()) + 2,), -1)
            codes[ids] = torch.arange(self.size)
            self._symbols[device] = _Symbols(ids.to(device), codes.to(device))
        return self._symbols[device]

    def _codebook_on(self, device: torch.device) -> Tensor:
        if device not in self._books:
            self._books[device] = self.codebook.detach().to(device=device, dtype=torch.float32)
        return self._books[device]

    def _table(self, k: int, device: torch.device) -> Nearest:
        if (k, device) not in self._tables:
            table = self._on_cpu(k)
            self._tables[k, device] = Nearest(table.codes.to(device), table.squared.to(device))
        return self._tables[k, device]

    def _on_cpu(self, k: int) -> Nearest:
        """The table of k, or the first columns of a wider one that is at hand."""
        cpu = torch.device("cpu")
        wider = next(
            (one for (width, where), one in self._tables.items() if width >= k and where == cpu), None
        )
        if wider is not None:
            return Nearest(wider.codes[:, :k], wider.squared[:, :k])
        self._tables[k, cpu] = self._read(k) or self._write(_compute(self._codebook_on(cpu), k))
        return self._tables[k, cpu]

    @cached_property
    def _hash(self) -> str:
        book = self._codebook_on(torch.device("cpu")).contiguous()
        return hashlib.sha256(repr(tuple(book.shape)).encode() + book.numpy().tobytes()).hexdigest()

    def _file(self, k: int) -> Path:
        return cache_folder() / f"neighbours-{self._hash[:32]}-{k}.safetensors"

    def _read(self, k: int) -> Nearest | None:
        """The table in the cache, if there is one and it is whole and of this codebook."""
        try:
            with safe_open(self._file(k), "pt") as file:
                told = file.metadata() or {}
                table = Nearest(file.get_tensor("codes"), file.get_tensor("squared"))
        except (OSError, SafetensorError):
            return None
        size = (self.size, k)
        fits = table.codes.shape == size == table.squared.shape
        fits &= table.codes.dtype == torch.int32 and table.squared.dtype == torch.float32
        known = told.get("version") == _VERSION and told.get("codebook") == self._hash
        if not fits or not known or not 0 <= int(table.codes.min()) <= int(table.codes.max()) < self.size:
            return None
        return table

    def _write(self, table: Nearest) -> Nearest:
        """Keep the table; where the folder cannot be written, do without."""
        path = self._file(table.codes.shape[1])
        told = {"version": _VERSION, "codebook": self._hash}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written beside it and then renamed: nobody ever reads half a file.
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                save_file(table._asdict(), Path(folder) / path.name, told)
                (Path(folder) / path.name).replace(path)
        except (OSError, SafetensorError):
            pass
        return table


@runtime_checkable
class UsesNeighbours(Protocol):
    """A rule that looks at the neighbours of a code; None until somebody gives it a codebook."""

    @property
    def neighbours(self) -> Neighbours | None:
        """What it was given."""
        ...

    @property
    def needs_neighbours(self) -> bool:
        """True where it cannot do without."""
        ...


def needed(neighbours: Neighbours | None, rule: str, vocab_size: int) -> Neighbours:
    """The neighbours a rule was given, if it was given any that fit.

    Raises:
        UsageError: none, or those of another vocabulary.
    """
    if neighbours is None:
        raise UsageError(
            f"{rule} compares codes of a codebook and was given none. Pass neighbours=Neighbours(codebook="
            "weights [N, C], offset=id of the first code), or a rule that needs none (cool_sd, budget)."
        )
    return neighbours.check(vocab_size)


def cache_folder() -> Path:
    """Where tables are kept: ``MULTISPEC_CACHE``, else ``multispec`` in the platform's cache folder."""
    chosen = os.environ.get("MULTISPEC_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        usual = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        usual = "~/Library/Caches"
    else:
        usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(usual).expanduser() / "multispec"


def _compute(codebook: Tensor, k: int) -> Nearest:
    """By blocks of rows, in float64: near codes differ in the last digits of float32."""
    book = codebook.to(torch.float64)
    norms = book.square().sum(-1)
    table = Nearest(torch.empty((len(book), k), dtype=torch.int32), torch.empty((len(book), k)))
    step = max(_BLOCK // len(book), 1)
    for start in range(0, len(book), step):
        rows = book[start : start + step]
        squared = (rows @ book.T).mul_(-2).add_(norms).add_(rows.square().sum(-1, keepdim=True))
        own = torch.arange(len(rows))
        squared[own, start + own] = torch.inf
        values, codes = squared.topk(k, largest=False)
        table.codes[start : start + step] = codes
        table.squared[start : start + step] = values.clamp_(min=0)
    return table
