"""``multispec build-datastore``: files in, a datastore that rest opens; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from multispec.cli import app
from multispec.drafters import Rest
from multispec.drafters.datastore import Datastore, fingerprint
from multispec.errors import IncompatibleModelsError
from multispec.loading import assets
from multispec.modalities.text import load_tokenizer
from multispec.targets.loading import load_config


def build(*words: Any) -> Result:
    return CliRunner().invoke(app, ["build-datastore", *map(str, words)])


def test_texts_with_the_tokenizer_of_a_model(tmp_path: Path) -> None:
    """The ids, the vocabulary and the fingerprint of the embedded text model."""
    for name, words in (("a.txt", "Once upon a time."), ("b.md", "There was a small dog.")):
        (tmp_path / name).write_text(words, encoding="utf-8")
    out = tmp_path / "corpus.datastore"
    result = build(tmp_path / "a.txt", tmp_path / "b.md", "-o", out, "--model", "text", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    tokenizer = load_tokenizer(assets() / "text" / "target")
    texts = [tokenizer(words)["input_ids"] for words in ("Once upon a time.", "There was a small dog.")]
    store = Datastore(out)
    assert [list(text) for text in store.texts()] == texts
    assert found["symbols"] == sum(map(len, texts)) == store.symbols - 2
    assert store.vocab_size == load_config(assets() / "text" / "target").vocab_size
    assert store.tokenizer == fingerprint(tokenizer.get_vocab()) == found["tokenizer"]
    assert Rest(out, tokenizer=store.tokenizer).num_draft_tokens == 32
    with pytest.raises(IncompatibleModelsError, match="built with another tokenizer"):
        Rest(out, tokenizer=fingerprint({"a": 0}))


def test_codes_of_frames(tmp_path: Path) -> None:
    """Frame by frame, as the stream holds them; no tokenizer is named."""
    np.save(tmp_path / "flat.npy", np.array([5, 6, 7], dtype=np.int16))
    np.save(tmp_path / "frames.npy", np.array([[1, 2], [3, 4]]))
    out = tmp_path / "codes.datastore"
    result = build(tmp_path / "flat.npy", tmp_path / "frames.npy", "-o", out, "--vocab-size", 8)
    assert result.exit_code == 0, result.output
    assert "7 symbols of 2 texts" in result.stdout
    assert Datastore(out).texts() == ((5, 6, 7), (1, 2, 3, 4))
    assert Datastore(out).tokenizer == ""


def wrong(folder: Path) -> dict[str, tuple[list[Any], str]]:
    """Arguments, and what is said."""
    files = {
        "empty.txt": b"",
        "latin.txt": "\u00e9".encode("latin-1"),
        "cut.npy": b"\x93NUMPY\x01\x00",
        "words.npy": b"no array at all",
        "good.txt": b"words",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    np.save(folder / "floats.npy", np.ones(3))
    np.save(folder / "none.npy", np.ones(0, dtype=np.int64))
    np.save(folder / "ids.npy", np.arange(9))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    codes = ["--vocab-size", 8]
    return {
        "empty.txt": (["--model", "text"], "is empty. Leave it out"),
        "latin.txt": (["--model", "text"], "cannot be read as text"),
        "cut.npy": (codes, "cannot be read as ids"),
        "words.npy": (codes, "cannot be read as ids"),
        "objects.npy": (codes, "cannot be read as ids"),
        "missing.npy": (codes, "cannot be read as ids"),
        "floats.npy": (codes, "holds float64 of shape (3,)"),
        "none.npy": (codes, "is empty. Leave it out"),
        "ids.npy": (codes, "lie in [0, 8): got 0 to 8"),
        "good.txt": (codes, "texts need a tokenizer"),
    }


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    """In one line, and nothing is written."""
    for name, (words, said) in wrong(tmp_path).items():
        result = build(tmp_path / name, "-o", tmp_path / "out", *words)
        assert result.exit_code == 2, (name, result.output)
        assert said in " ".join(result.stderr.split()), (name, result.stderr)
    unknown = build(tmp_path / "ids.npy", "-o", tmp_path / "out")
    assert unknown.exit_code == 2 and "--vocab-size" in unknown.stderr
    mute = tmp_path / "mute"
    mute.mkdir()
    (mute / "config.json").write_text('{"model_type": "llama", "vocab_size": 8}', encoding="utf-8")
    silent = build(tmp_path / "good.txt", "-o", tmp_path / "out", "--model", mute)
    assert silent.exit_code == 1 and "has no tokenizer files" in silent.stderr
    assert not (tmp_path / "out").exists()
