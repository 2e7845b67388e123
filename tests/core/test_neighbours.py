"""Tables of near codes: right, kept on disk, and rebuilt when what is there cannot be trusted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multispec import neighbours as module
from multispec.errors import UsageError
from multispec.neighbours import Nearest, Neighbours, UsesNeighbours, cache_folder
from multispec.verifiers.cool_sd import CoolSD
from multispec.verifiers.lantern import Lantern


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTISPEC_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def codebook() -> Tensor:
    return torch.randn(37, 5, generator=torch.Generator().manual_seed(3))


def expected(codebook: Tensor, k: int) -> Nearest:
    """By the definition, code by code."""
    squared = (codebook.double()[:, None] - codebook.double()[None]).square().sum(-1)
    squared.fill_diagonal_(torch.inf)
    ordered = squared.sort(-1)
    return Nearest(ordered.indices[:, :k].int(), ordered.values[:, :k].float())


@pytest.mark.parametrize("block", [1, 100, 2**22])
def test_the_nearest_of_every_code(codebook: Tensor, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits in memory at a time."""
    monkeypatch.setattr(module, "_BLOCK", block)
    found = Neighbours(codebook=codebook).nearest(6)
    assert torch.equal(found.codes, expected(codebook, 6).codes)
    torch.testing.assert_close(found.squared, expected(codebook, 6).squared)


def test_more_neighbours_than_there_are(codebook: Tensor) -> None:
    """All others, and never the code itself."""
    codes = Neighbours(codebook=codebook).nearest(1000).codes
    assert codes.shape == (37, 36)
    assert all(sorted([*row, code]) == list(range(37)) for code, row in enumerate(codes.tolist()))


def test_codes_in_one_place_are_neighbours_of_each_other() -> None:
    found = Neighbours(codebook=torch.tensor([[1.0, 1.0], [5.0, 5.0], [1.0, 1.0]])).nearest(1)
    assert found.codes.tolist() == [[2], [0], [0]] or found.codes.tolist() == [[2], [2], [0]]
    assert found.squared.tolist() == [[0.0], [32.0], [0.0]]


def test_near_codes_far_from_the_origin_keep_their_order() -> None:
    """In float32, distances by the binomial formula would all be rounding."""
    line = torch.tensor([[4096.0], [4096.25], [4096.75], [4099.0]])
    assert Neighbours(codebook=line).nearest(3).codes.tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]


def test_ids_of_a_larger_vocabulary(codebook: Tensor) -> None:
    """Codes by their offset; what is no code is its own only neighbour."""
    near = Neighbours(codebook=codebook, offset=100)
    found = near.of(torch.tensor([100, 136, 99, 137, 0]), 3)
    codes = expected(codebook, 3).codes.long() + 100
    assert found[:2].tolist() == codes[[0, 36]].tolist()
    assert found[2:].tolist() == [[99] * 3, [137] * 3, [0] * 3]


@pytest.mark.parametrize("whole", [0, 2048])
def test_distances_of_a_larger_vocabulary(
    codebook: Tensor, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All distances at once, or those that are asked for in blocks."""
    monkeypatch.setattr(module, "_BLOCK", 1)
    monkeypatch.setattr(module, "_WHOLE", whole)
    near = Neighbours(codebook=codebook, offset=100)
    found = near.squared_distances(torch.tensor([100, 5]), torch.tensor([[101, 100, 7], [5, 101, 136]]))
    between = float((codebook[0] - codebook[1]).square().sum())
    assert found[0].tolist() == pytest.approx([between, 0.0, torch.inf])
    assert found[1].tolist() == [0.0, torch.inf, torch.inf]


# ---- the cache ----


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def forbidden(codebook: Tensor, k: int) -> Nearest:
    raise AssertionError("the table was computed again")


def test_computed_once(codebook: Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one object, and by the next one that has the same codebook; one file, nothing left beside it."""
    first = Neighbours(codebook=codebook).nearest(4)
    monkeypatch.setattr(module, "_compute", forbidden)
    again = Neighbours(codebook=codebook.clone(), offset=9)
    assert all(map(torch.equal, again.nearest(4), first))
    assert again.nearest(4) is again.nearest(4)
    assert len(files(folder)) == 1
    with pytest.raises(AssertionError, match="computed again"):
        again.nearest(5)
    with pytest.raises(AssertionError, match="computed again"):
        Neighbours(codebook=codebook + 1).nearest(4)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def foreign(path: Path) -> None:
    save_file({"weights": torch.zeros(3)}, path)


def unsigned(path: Path) -> None:
    save_file(load_file(path), path)


def of_another(path: Path) -> None:
    save_file(load_file(path), path, {"version": module._VERSION, "codebook": "0" * 64})


def told(codebook: Tensor) -> dict[str, str]:
    return {"version": module._VERSION, "codebook": Neighbours(codebook=codebook)._hash}


def out_of_range(path: Path) -> None:
    codebook = torch.randn(37, 5, generator=torch.Generator().manual_seed(3))
    table = load_file(path)
    table["codes"][0, 0] = 37
    save_file(table, path, told(codebook))


def misshapen(path: Path) -> None:
    codebook = torch.randn(37, 5, generator=torch.Generator().manual_seed(3))
    table = {name: one[:, :3].contiguous() for name, one in load_file(path).items()}
    save_file(table, path, told(codebook))


DAMAGE = [emptied, cut, foreign, unsigned, of_another, out_of_range, misshapen]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_file_that_cannot_be_trusted_is_rebuilt(
    codebook: Tensor, folder: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Neighbours(codebook=codebook).nearest(4)
    damage(files(folder)[0])
    assert all(map(torch.equal, Neighbours(codebook=codebook).nearest(4), first))
    monkeypatch.setattr(module, "_compute", forbidden)
    assert all(map(torch.equal, Neighbours(codebook=codebook).nearest(4), first))


def test_a_folder_that_cannot_be_written_is_no_error(
    codebook: Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here because a file stands in its place."""
    (folder / "taken").write_text("")
    monkeypatch.setenv("MULTISPEC_CACHE", str(folder / "taken" / "cache"))
    assert torch.equal(Neighbours(codebook=codebook).nearest(4).codes, expected(codebook, 4).codes)
    assert len(files(folder)) == 1


@pytest.mark.parametrize(
    ("platform", "variable", "value", "usual"),
    [
        ("linux", "XDG_CACHE_HOME", "/x", Path("/x/multispec")),
        ("linux", "XDG_CACHE_HOME", None, Path("~/.cache/multispec")),
        ("darwin", "XDG_CACHE_HOME", "/x", Path("~/Library/Caches/multispec")),
        ("win32", "LOCALAPPDATA", "/x", Path("/x/multispec")),
        ("win32", "LOCALAPPDATA", None, Path("~/AppData/Local/multispec")),
    ],
)
def test_the_usual_cache_folder(
    platform: str, variable: str, value: str | None, usual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MULTISPEC_CACHE")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    assert cache_folder() == usual.expanduser()


# ---- what is refused ----


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(1, 3), torch.full((3, 2), torch.nan)])
def test_no_codebook(wrong: Tensor) -> None:
    with pytest.raises(UsageError, match=r"matrix \[N, C\] of finite numbers"):
        Neighbours(codebook=wrong)


def test_an_offset_below_zero(codebook: Tensor) -> None:
    with pytest.raises(UsageError, match=r"offset of a codebook must be >= 0: got -1"):
        Neighbours(codebook=codebook, offset=-1)


def test_no_neighbours_asked_for(codebook: Tensor) -> None:
    with pytest.raises(UsageError, match=r"number of neighbours must be >= 1: got 0"):
        Neighbours(codebook=codebook).nearest(0)


def test_a_codebook_past_the_vocabulary(codebook: Tensor) -> None:
    near = Neighbours(codebook=codebook, offset=4)
    assert near.check(41) is near
    with pytest.raises(UsageError, match=r"got 37 codes from id 4 on, for 40 symbols"):
        near.check(40)


def test_codes_may_be_anywhere_in_the_vocabulary(codebook: Tensor) -> None:
    """Scattered symbols have the neighbours that the same codes have in a row."""
    symbols = [(7 * code) % 41 + 3 for code in range(37)]
    row, scattered = Neighbours(codebook=codebook), Neighbours(codebook=codebook, symbols=symbols)
    ids = torch.tensor(symbols)
    assert scattered.of(ids, 5).equal(ids[row.of(torch.arange(37), 5)])
    assert scattered.of(torch.tensor([0, 99]), 2).tolist() == [[0, 0], [99, 99]]
    found = scattered.squared_distances(ids[:4], ids[None, :].expand(4, -1))
    assert found.equal(row.squared_distances(torch.arange(4), torch.arange(37).expand(4, -1)))
    assert scattered.squared_distances(ids[:1], torch.tensor([[0, 99]])).tolist() == [[torch.inf] * 2]
    assert scattered.check(max(symbols) + 1) is scattered
    with pytest.raises(UsageError, match="got 37 codes from id 3 on"):
        scattered.check(max(symbols))


@pytest.mark.parametrize(
    ("symbols", "offset"), [(range(36), 0), ([*range(36), 3], 0), (range(-1, 36), 0), (range(37), 1)]
)
def test_symbols_that_are_not_one_per_code(codebook: Tensor, symbols: Sequence[int], offset: int) -> None:
    with pytest.raises(UsageError, match="Each code is one symbol of its own"):
        Neighbours(codebook=codebook, symbols=symbols, offset=offset)


def test_rules_say_whether_they_want_a_codebook() -> None:
    assert isinstance(Lantern(), UsesNeighbours)
    assert not isinstance(CoolSD(), UsesNeighbours)
