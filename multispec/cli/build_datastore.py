"""``multispec build-datastore``: a corpus of texts or codes as the file that REST looks into."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from multispec.cli._console import Debug, Json, console, running
from multispec.errors import ModelLoadError, UsageError


def build_datastore(
    files: Annotated[
        list[Path], typer.Argument(help="Text files, or .npy files of ids: [S], or [T, K] frame by frame.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    model: Annotated[
        str | None,
        typer.Option(help='Whose tokenizer reads the texts: a folder, a hub id, or "text" for the embedded.'),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Symbols of the stream; that of the model where one is named.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Build the datastore of FILES for the drafter rest; one file is one text."""
    with running(debug):
        from multispec.drafters.datastore import Datastore
        from multispec.drafters.datastore import build_datastore as build

        begun = time.perf_counter()
        words = _words(model)
        size = vocab_size if vocab_size is not None else words.vocab_size if words else None
        if size is None:
            raise UsageError(
                "A datastore needs to know the symbols of its stream: name the model with --model, or for "
                ".npy files of codes their number with --vocab-size."
            )
        texts = [_ids(file, words) for file in files]
        path = build(texts, output, vocab_size=size, tokenizer=words.fingerprint if words else "")
        store, seconds = Datastore(path), time.perf_counter() - begun
        megabytes = path.stat().st_size / 1e6
        found = {
            "path": str(path),
            "texts": len(texts),
            "symbols": store.symbols - len(texts),
            "vocab_size": store.vocab_size,
            "tokenizer": store.tokenizer,
            "bytes": path.stat().st_size,
            "seconds": round(seconds, 3),
        }
        if as_json:
            typer.echo(json.dumps(found, ensure_ascii=False))
            return
        console().print(
            f"{path}: {found['symbols']} symbols of {len(texts)} texts, {megabytes:.1f} MB, "
            f'{seconds:.1f} s. Use it with drafter=multispec.drafters.Rest("{path}").',
            markup=False,
        )


@dataclass(frozen=True)
class _Words:
    """A tokenizer, and how many symbols its model has."""

    tokenizer: Any
    vocab_size: int

    @property
    def fingerprint(self) -> str:
        from multispec.drafters.datastore import fingerprint

        return fingerprint(self.tokenizer.get_vocab())


def _words(model: str | None) -> _Words | None:
    if model is None:
        return None
    from multispec.loading import EMBEDDED, assets
    from multispec.modalities.text import load_tokenizer
    from multispec.targets.loading import load_config

    place = assets() / model / "target" if model in EMBEDDED else model
    config = load_config(place)
    tokenizer = load_tokenizer(place)
    if tokenizer is None:
        raise ModelLoadError(
            f"{model!r} has no tokenizer files, so it reads no texts. Name the model of the texts, or build "
            "from .npy files of ids with --vocab-size."
        )
    known = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return _Words(tokenizer, int(known) if known else len(tokenizer))


def _ids(file: Path, words: _Words | None) -> Sequence[int]:
    """One text of ids.

    Raises:
        UsageError: a file that cannot be read, holds nothing, or is neither text nor ids.
    """
    try:
        found = _codes(file) if file.suffix == ".npy" else _tokens(file, words)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{file} cannot be read as {'ids' if file.suffix == '.npy' else 'text'}: {error}. Pass UTF-8 "
            "text files, or whole numbers written with numpy.save."
        ) from error
    if not len(found):
        raise UsageError(f"{file} is empty. Leave it out.")
    return found


def _codes(file: Path) -> Sequence[int]:
    import numpy as np

    array = np.load(file, allow_pickle=False)
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise UsageError(
            f"{file} holds {array.dtype} of shape {array.shape}, and ids are whole numbers [S] or [T, K]. "
            "Save the codes as the stream holds them, offsets included."
        )
    # A view that counts as a sequence of numbers, without a list of them.
    return memoryview(array.reshape(-1).astype(np.int64))


def _tokens(file: Path, words: _Words | None) -> list[int]:
    if words is None:
        raise UsageError(f"{file} is a text, and texts need a tokenizer: name its model with --model.")
    text = file.read_text(encoding="utf-8")
    ids: list[int] = words.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
