"""A corpus of ids in one file, sorted by its suffixes and mapped into memory: what REST looks into."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from multispec.errors import ModelLoadError, OutputError, UsageError

_MAGIC = b"MSPECDS\n"
_VERSION = 1
_ALIGNMENT = 4096
# Suffixes are in order by so many symbols: a match of 16 and a continuation of 16.
_SORTED = 32


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Which tokenizer the ids belong to: a hash of its vocabulary, ``tokenizer.get_vocab()``.

    >>> fingerprint({"a": 0, "b": 1}) == fingerprint({"b": 1, "a": 0})
    True
    """
    known = json.dumps(sorted(vocabulary.items()), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(known.encode()).hexdigest()[:32]


def build_datastore(
    texts: Iterable[Sequence[int]], path: str | Path, *, vocab_size: int, tokenizer: str = ""
) -> Path:
    """Write the datastore of some texts of ids, each in ``[0, vocab_size)``, to ``path``.

    Suffixes are sorted by prefix doubling (Manber and Myers 1993) with numpy's sort: a few sorts of one
    machine word per symbol. ``tokenizer`` is the ``fingerprint`` of the tokenizer that made the ids; drafters
    that are told theirs refuse another one. The file appears when it is whole.

    Raises:
        UsageError: no texts, an empty one, or ids outside the vocabulary.
        OutputError: the file cannot be written.

    >>> build_datastore([[5, 6, 7]], "corpus.datastore", vocab_size=8)         # doctest: +SKIP
    """
    joined = _joined(texts, vocab_size)
    order = _suffix_order(joined, vocab_size)
    width = 2 if vocab_size < 2**16 else 4
    header = {
        "version": _VERSION,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer,
        "symbols": len(joined),
        "width": width,
        "sorted": _SORTED,
    }
    # Big-endian symbols compare as bytes just as they do as numbers.
    parts = (joined.astype(f">u{width}"), order.astype("<u4"))
    target = Path(path)
    try:
        return _write(target, header, parts)
    except OSError as error:
        raise OutputError(
            f"The datastore {target} cannot be written: {error}. Choose another folder, or make room."
        ) from error


def _write(target: Path, header: Mapping[str, Any], parts: Sequence[NDArray[Any]]) -> Path:
    words = json.dumps(header).encode()
    front = _MAGIC + struct.pack("<I", len(words)) + words
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(front.ljust(_ALIGNMENT, b"\0"))
            for part in parts:
                part.tofile(file)
        return partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _joined(texts: Iterable[Sequence[int]], vocab_size: int) -> NDArray[np.int64]:
    """All texts, each closed by the id ``vocab_size``."""
    if vocab_size < 1:
        raise UsageError(f"A datastore needs vocab_size >= 1: got {vocab_size}. Pass that of the model.")
    parts: list[NDArray[np.int64]] = []
    for number, text in enumerate(texts):
        ids = np.asarray(text)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise UsageError(
                f"A datastore is built from texts of ids: got {ids.dtype} of shape {ids.shape} as text "
                f"{number}. "
                "Pass lists of ids, leave out empty ones, and turn words into ids with the model's tokenizer."
            )
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise UsageError(
                f"Ids of a datastore lie in [0, {vocab_size}): got {ids.min()} to {ids.max()} in text "
                f"{number}. Pass the vocab_size of the model that the ids are for."
            )
        parts += [ids.astype(np.int64), np.array([vocab_size])]
    if not parts:
        raise UsageError("A datastore needs texts: got none. Pass lists of ids, one per document.")
    joined = np.concatenate(parts)
    if len(joined) >= 2**31:
        raise UsageError(f"A datastore holds fewer than 2**31 symbols: got {len(joined)}. Make several.")
    return joined


def _suffix_order(ids: NDArray[np.int64], vocab_size: int) -> NDArray[np.int64]:
    """Where the suffixes start, in the order of their first symbols; what is behind the end comes first."""
    bits = int(vocab_size + 1).bit_length()
    covered = max(62 // bits, 1)
    padded = np.concatenate([ids + 1, np.zeros(covered, dtype=np.int64)])
    key = np.zeros(len(ids), dtype=np.int64)
    for offset in range(covered):
        key = (key << bits) | padded[offset : offset + len(ids)]
    while True:
        order = np.argsort(key, kind="stable")
        if covered >= _SORTED:
            return order
        ranked = key[order]
        rank = np.empty(len(ids), dtype=np.int64)
        rank[order] = np.concatenate([[0], np.cumsum(ranked[1:] != ranked[:-1])]) + 1
        behind = np.zeros(len(ids), dtype=np.int64)
        behind[: max(len(ids) - covered, 0)] = rank[covered:]
        key = (rank << 32) | behind
        covered *= 2


@dataclass(frozen=True)
class Datastore:
    """A datastore that was written by ``build_datastore``, mapped into memory.

    Raises:
        ModelLoadError: no such file, another kind of file, a newer version, a truncated or an empty one.
    """

    path: Path
    vocab_size: int = field(init=False)
    tokenizer: str = field(init=False)
    symbols: int = field(init=False)
    _width: int = field(init=False, repr=False)
    _map: mmap.mmap = field(init=False, repr=False, compare=False)
    _ids: NDArray[Any] = field(init=False, repr=False, compare=False)
    _order: memoryview = field(init=False, repr=False, compare=False)

    todo: ClassVar[str] = "Build it anew with multispec.drafters.datastore.build_datastore."

    def __post_init__(self) -> None:
        try:
            with self.path.open("rb") as file:
                header = self._header(file.read(_ALIGNMENT))
                size = os.fstat(file.fileno()).st_size
                self._check_size(header, size)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if isinstance(error, ModelLoadError):
                raise
            raise ModelLoadError(f"The datastore {self.path} cannot be read: {error}. {self.todo}") from error
        count, width = header["symbols"], header["width"]
        found = {
            "vocab_size": header["vocab_size"],
            "tokenizer": header["tokenizer"],
            "symbols": count,
            "_width": width,
            "_map": mapped,
            "_ids": np.frombuffer(mapped, f">u{width}", count, _ALIGNMENT),
            "_order": memoryview(mapped)[_ALIGNMENT + count * width :].cast("I"),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def _header(self, front: bytes) -> dict[str, Any]:
        if not front.startswith(_MAGIC):
            raise ModelLoadError(
                f"{self.path} is no datastore of multispec: it begins {front[:8]!r}. {self.todo}"
            )
        try:
            (length,) = struct.unpack_from("<I", front, len(_MAGIC))
            start = len(_MAGIC) + 4
            header = json.loads(front[start : start + length])
            version = header["version"]
            sound = all(
                isinstance(header[name], int) for name in ("vocab_size", "symbols", "width", "sorted")
            )
            sound = sound and isinstance(header["tokenizer"], str) and header["width"] in (2, 4)
        except (struct.error, ValueError, KeyError, TypeError):
            sound, version, header = False, None, {}
        if not sound and version in (None, _VERSION):
            raise ModelLoadError(
                f"The datastore {self.path} is truncated: its header cannot be read. {self.todo}"
            )
        if version != _VERSION:
            raise ModelLoadError(
                f"The datastore {self.path} is of version {version!r}, and this is for version {_VERSION}. "
                f"{self.todo}"
            )
        checked: dict[str, Any] = header
        return checked

    def _check_size(self, header: Mapping[str, Any], size: int) -> None:
        if header["symbols"] < 1:
            raise ModelLoadError(f"The datastore {self.path} is empty: it holds no symbols. {self.todo}")
        whole = _ALIGNMENT + header["symbols"] * (header["width"] + 4)
        if size != whole:
            raise ModelLoadError(
                f"The datastore {self.path} is truncated or was added to: {size} bytes, where its header "
                f"says {whole}. {self.todo}"
            )

    def texts(self) -> tuple[tuple[int, ...], ...]:
        """The texts that it was built from, for drafters that take references."""
        ends = np.flatnonzero(self._ids == self.vocab_size)
        starts = np.concatenate([[0], ends[:-1] + 1])
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        return tuple(tuple(self._ids[start:end].tolist()) for start, end in pairs)

    def longest_suffix(self, ids: Sequence[int], least: int) -> tuple[int, int, int]:
        """(n, first, last): the last n of ``ids``, the most that occur, and their rows in the order.

        n is 0 where not even the last ``least`` occur. Occurrences of a suffix are occurrences of every
        shorter one, so n is bisected.
        """
        low, high = least, len(ids)
        found = (0, 0, 0)
        n = high
        while low <= high:
            rows = self._rows(ids[len(ids) - n :])
            if rows[0] < rows[1]:
                found, low = (n, *rows), n + 1
            else:
                high = n - 1
            n = (low + high + 1) // 2
        return found

    def _rows(self, pattern: Sequence[int]) -> tuple[int, int]:
        width = self._width
        if not all(0 <= x < self.vocab_size for x in pattern):
            return 0, 0
        code = np.asarray(pattern).astype(f">u{width}").tobytes()
        size, order, text = len(code), self._order, self._map
        limit = _ALIGNMENT + self.symbols * width

        def key(row: int) -> bytes:
            at = _ALIGNMENT + order[row] * width
            return text[at : min(at + size, limit)]

        rows = range(self.symbols)
        first = bisect_left(rows, code, key=key)
        if first == self.symbols or key(first) != code:
            return 0, 0
        # One more than all that begin so: the next larger code of that size.
        following = (int.from_bytes(code, "big") + 1).to_bytes(size, "big")
        return first, bisect_left(rows, following, lo=first, key=key)

    def behind(self, n: int, first: int, last: int, length: int, most: int) -> NDArray[np.int64]:
        """``[N, length]`` symbols behind ``most`` of these matches of n, sorted; ``vocab_size`` ends a text.

        Of more matches, evenly spaced ones are taken, so that shares stay what they are.
        """
        count = last - first
        rows = np.arange(first, last) if count <= most else first + np.arange(most) * count // most
        starts = np.asarray(self._order)[rows].astype(np.int64) + n
        places = starts + np.arange(length)[:, None]
        symbols: NDArray[np.int64] = self._ids[np.minimum(places, self.symbols - 1)].astype(np.int64)
        # The last symbol of all ends a text, so what would lie behind it ends one too.
        ended = symbols == self.vocab_size
        for before, now in zip(ended, ended[1:], strict=False):
            now |= before
        symbols[ended] = self.vocab_size
        return symbols.T
