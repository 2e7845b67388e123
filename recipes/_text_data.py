"""Text corpus of the demo models: cleaning, tokenizer training and packed token windows."""

from __future__ import annotations

import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
KINDS = ("books", "code")
PARTS = ("train", "held_out")
HELD_OUT_PERCENT = 2

# Newlines and indentation are tokens of their own, so that a prompt which ends in "\n" or in
# "\n    " splits exactly where the training text splits.
_PIECES = (
    r"\n+|\r+|\t+| {2,}|'(?:[sdmt]|ll|ve|re)(?!\p{L})"
    r"| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s"
)
_ASCII = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "…": "...", "£": "L", "æ": "ae"}
)
_CONTENTS = re.compile(r"^(table of )?contents\W*$", re.IGNORECASE)
# Platform shims, generated tables and GUI programs: little of them reads like ordinary Python.
_SKIPPED_PACKAGES = frozenset(
    "site-packages test tests idle_test encodings pydoc_data idlelib lib2to3 tkinter turtledemo "
    "distutils ensurepip msilib lib-dynload __phello__ curses dbm".split()
)
_SKIPPED_MODULES = frozenset(
    "_pydecimal.py locale.py entities.py turtle.py pickletools.py this.py antigravity.py "
    "token.py opcode.py keyword.py stringprep.py nntplib.py _osx_support.py _aix_support.py "
    "windows_events.py windows_utils.py popen_spawn_win32.py nturl2path.py sre_constants.py".split()
)


@dataclass(frozen=True)
class Document:
    """One training document: its kind, its name and the text held out from training."""

    kind: str
    name: str
    train: str
    held_out: str


def plain(text: str) -> str:
    """Return text in ASCII: straight quotes, double hyphens for dashes, accents removed."""
    folded = unicodedata.normalize("NFKD", text.translate(_ASCII))
    return folded.encode("ascii", "ignore").decode("ascii")


def _is_prose(lines: Sequence[str]) -> bool:
    """Whether a block of lines is a hard-wrapped paragraph rather than a heading or a list."""
    full = [line for line in lines[:-1] if 55 <= len(line) <= 80 and not line.startswith("   ")]
    chapter_list = lines[0].upper().startswith("CHAPTER") or "".join(lines).count("--") > 3
    return len(lines) > 1 and len(full) == len(lines) - 1 and not chapter_list


def _flow(lines: Sequence[str]) -> str:
    """Join the lines of a paragraph; keep the lines of a verse (all of them indented)."""
    if len(lines) > 1 and all(line.startswith("  ") for line in lines):
        margin = min(len(line) - len(line.lstrip()) for line in lines)
        return "\n".join("    " + line[margin:].rstrip() for line in lines)
    return re.sub(r"\s+", " ", " ".join(lines)).strip()


def _body_start(blocks: Sequence[Sequence[str]]) -> int:
    """Index of the heading that opens the story, after title page and table of contents."""
    listed = [i for i, b in enumerate(blocks[:60]) if _CONTENTS.match(b[0].strip())]
    first = max(listed, default=0)
    prose = next((i for i in range(first, len(blocks)) if _is_prose(blocks[i])), 0)
    headings = [i for i in range(max(prose - 2, 0), prose) if len(blocks[i]) == 1]
    chapters = [i for i in headings if blocks[i][0].strip().upper().startswith("CHAPTER")]
    return min(chapters or headings, default=prose)


def clean_book(text: str) -> str:
    """Return a book with one line per paragraph, blank lines between, front matter dropped."""
    text = plain(text).replace("\r", "").replace("\t", "    ")
    text = re.sub(r"\[Illustration[^\]]*\]|\|", "", text)
    text = re.sub(r"(?<!\w)_([^_]+)_(?!\w)", r"\1", text)
    parts = [part.strip("\n").split("\n") for part in re.split(r"\n\s*\n", text)]
    blocks = [part for part in parts if any(line.strip(" *") for line in part)]
    return "\n\n".join(_flow(block) for block in blocks[_body_start(blocks) :]) + "\n"


def _book(path: Path) -> Document:
    text = clean_book(path.read_text(encoding="utf-8"))
    cut = text.rfind("\n\n", 0, len(text) * (100 - HELD_OUT_PERCENT) // 100)
    return Document("books", path.stem, text[:cut] + "\n", text[cut + 2 :])


def _readable(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    generated = parts[-1].startswith("_sysconfigdata") or parts[0].startswith("config-")
    skipped = parts[-1] in _SKIPPED_MODULES or not _SKIPPED_PACKAGES.isdisjoint(parts)
    return not generated and not skipped and path.stat().st_size > 1500


def load_documents(books: Path, code: Path | None, limit: int | None) -> list[Document]:
    """Return the books in a folder and the readable modules of the standard library.

    `limit` caps the documents per kind (for a smoke run). Every book gives its end, and every
    fiftieth module all of its text, to the held-out set.
    """
    root = code or Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(path for path in root.rglob("*.py") if _readable(path, root))[:limit]
    documents = [_book(path) for path in sorted(books.glob("*.txt"))[:limit]]
    every = 100 // HELD_OUT_PERCENT
    for i, path in enumerate(modules):
        text = plain(path.read_text(encoding="utf-8", errors="ignore")).expandtabs().strip() + "\n"
        pair = ("", text) if i % every == min(every // 2, len(modules) - 1) else (text, "")
        documents.append(Document("code", str(path.relative_to(root)), *pair))
    return documents


def train_tokenizer(documents: Sequence[Document], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the documents; decoding inverts encoding."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.train for d in documents), trainer)
    create: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return create(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


class Windows:
    """Fixed-length windows over one packed stream: each epoch is a fresh permutation.

    A window is a pure function of its running number, so resuming needs only that number.
    With `jitter` every epoch shifts the windows; without, they start at multiples of the length.
    """

    def __init__(self, stream: NDArray[np.integer[Any]], seed: int, jitter: bool = True) -> None:
        self.values = stream
        self.seed = seed
        self.jitter = jitter

    def starts(self, epoch: int, length: int) -> NDArray[np.int64]:
        """Return the shuffled window starts of one epoch."""
        if (spare := len(self.values) - length) < 0:
            raise ValueError(f"the stream has {len(self.values)} tokens, fewer than {length}")
        rng = np.random.default_rng((self.seed, epoch))
        first = int(rng.integers(min(length, spare + 1))) if self.jitter else 0
        return rng.permutation(np.arange(first, spare + 1, length))

    def at(self, start: int, length: int) -> Tensor:
        """Return the window `[length]` that begins at `start`."""
        return torch.from_numpy(self.values[start : start + length].astype(np.int64))

    def random(self, length: int, rng: np.random.Generator) -> Tensor:
        """Return a window `[length]` from anywhere."""
        return self.at(int(rng.integers(len(self.values) - length + 1)), length)

    def stream(self, length: int, skip: int) -> Iterator[Tensor]:
        """Yield windows for ever, leaving out about the first `skip` tokens."""
        epoch, skip = divmod(skip, len(self.values))
        while True:
            for start in self.starts(epoch, length)[skip // length :]:
                yield self.at(int(start), length)
            epoch, skip = epoch + 1, 0


def encode_documents(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast
) -> dict[str, NDArray[np.uint16]]:
    """Return packed tokens under "<kind>.train" and "<kind>.held_out", documents ended by END."""
    backend = tokenizer.backend_tokenizer
    streams: dict[str, list[int]] = {f"{k}.{part}": [] for k in KINDS for part in PARTS}
    for document in documents:
        for part in PARTS:
            if text := getattr(document, part):
                ids = backend.encode(text, add_special_tokens=False).ids
                streams[f"{document.kind}.{part}"] += [*ids, tokenizer.eos_token_id]
    return {name: np.asarray(ids, dtype=np.uint16) for name, ids in streams.items()}
