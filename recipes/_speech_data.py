"""Speech of the demo: short sentences from books, spoken by espeak-ng, with their phonemes.

Debian and Ubuntu: apt-get install espeak-ng. Its voices are formant synthesis: clear and mechanical.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from multispec.modalities.speech.numerals import cardinal, ordinal
from recipes._text_data import clean_book, plain

RATE = 16000
HOP = 320  # samples of a frame: 50 a second
WORDS_PER_MINUTE = 160
HELD_OUT_EVERY = 40
SHARD = 500
Wave: TypeAlias = NDArray[np.int16]  # [N]

_SENTENCE = re.compile(r"[^.!?;]+[.!?;]")
_PLAIN = re.compile(r"[A-Z]?[A-Za-z' ,-]+(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?;]")
_NUMBERS = (*range(21), *range(30, 100, 10), 100, 10**3, 10**6, 10**9, 10**12)
_NAMED = """
    monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december mister missis miz doctor professor captain percent degrees celsius
    fahrenheit dollar dollars cents pound pounds pence euro euros yen point minus plus equals times hash slash
    number section copyright trademark kilometre kilometres metres centimetres millimetres kilogram kilograms
    grams litres miles hour hours minute minutes second seconds hertz kilohertz megahertz gigahertz kilobytes
    megabytes gigabytes terabytes computer internet email website video audio software hello okay phone
"""
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
# Marks that stand for no sound: pauses, palatal marks, syllable bars, names of languages.
_SILENT = frozenset(("", ";", "|", "||", "%"))
_STRESS = "',"


@dataclass(frozen=True)
class Spoken:
    """One sentence as it was spoken."""

    text: str
    voice: str
    phonemes: str  # by espeak-ng, separated by spaces, without stress
    samples: int

    @property
    def frames(self) -> int:
        """Codes that it takes."""
        return self.samples // HOP


def sentences(books: Path, least: int = 3, most: int = 12) -> list[str]:
    """The sentences of a folder of books that have few and plain words, each once."""
    found: dict[str, None] = {}
    for path in sorted(books.glob("*.txt")):
        for line in clean_book(path.read_text(encoding="utf-8")).splitlines():
            for sentence in _SENTENCE.findall(line.replace('"', "").replace("--", ", ")):
                text = " ".join(sentence.split()).strip(" ',-")
                if _PLAIN.fullmatch(text) and least <= len(text.split()) <= most:
                    found[text] = None
    return list(found)


def chosen(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """So many of them, in an order that does not depend on how many."""
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[int(i)] for i in (order[:count] if count else order)]


def held_out(text: str) -> bool:
    """Whether a sentence is kept for evaluation; the same in every run."""
    return sum(text.encode()) % HELD_OUT_EVERY == 0


def require_espeak() -> str:
    """The program.

    Raises:
        SystemExit: it is not installed; says how to mend that.
    """
    found = shutil.which("espeak-ng")
    if found is None:
        raise SystemExit(
            "Speech for training is made by espeak-ng, which is not installed. Debian, Ubuntu: apt-get "
            "install espeak-ng; Fedora: dnf install espeak-ng; macOS: brew install espeak-ng. Or give a "
            "folder of prepared speech by --speech."
        )
    return found


def parsed(marked: str) -> list[str]:
    """Phonemes of what ``espeak-ng -x --sep=_`` prints, stress in front of its vowel.

    The glottal stop "?" is called "q", since "?" is a sign of ours.

    >>> parsed("_:D_@2 ,oU_v_3")
    ['D', '@2', ',oU', 'v', '3']
    """
    plain = re.sub(r"\([^)]*\)|_:", "_", marked).replace(" ", "_").replace("\n", "_")
    found: list[str] = []
    for name in plain.split("_"):
        bare = name.strip()
        if bare not in _SILENT:
            found.append(bare.replace("''", "'").replace("?", "q").replace("!", ""))
    return [name for name in found if name.strip(_STRESS)]


def without_stress(phonemes: Sequence[str]) -> list[str]:
    """The same sounds, stressed or not."""
    return [name.lstrip(_STRESS) for name in phonemes]


def speak(text: str, variant: str) -> tuple[Wave, list[str]]:
    """A sentence at 16 kHz, silence at its ends cut down, and its phonemes."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = [require_espeak(), "-v", variant, "-s", str(WORDS_PER_MINUTE), "-x", "--sep=_"]
        made = subprocess.run(
            [*command, "-w", file.name, "--", text], capture_output=True, text=True, check=True
        )
        samples, rate = soundfile.read(file.name, dtype="float32")
    return trimmed(resample_poly(samples, RATE // 50, rate // 50)), parsed(made.stdout)


def trimmed(samples: NDArray[np.floating], margin: int = 2 * HOP) -> Wave:
    """Whole frames with little silence before and behind."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    first, last = (max(int(loud[0]) - margin, 0), int(loud[-1]) + margin) if len(loud) else (0, margin)
    kept = samples[first:last]
    whole = np.pad(kept, (0, -len(kept) % HOP))
    return np.asarray((whole * 32767).clip(-32768, 32767), dtype=np.int16)


def words_of(*folders: Path) -> list[str]:
    """The words in folders of texts, and those that numbers and units are read as, in alphabetical order."""
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.glob("*.txt"))]
    named = " ".join(
        [*ascii_lowercase, *(cardinal(n) for n in _NUMBERS), *map(ordinal, range(1, 32)), _NAMED]
    )
    return sorted({word for text in (*texts, named) for word in _WORD.findall(plain(text).lower())})


def pronounced(words: Sequence[str], variant: str) -> dict[str, str]:
    """How espeak-ng says each word alone; words that it takes for several clauses are left out."""
    found: dict[str, str] = {}
    for start in range(0, len(words), 400):
        some = words[start : start + 400]
        command = [require_espeak(), "-v", variant, "-q", "-x", "--sep=_", "--stdin"]
        text = "".join(f"{word}.\n\n" for word in some)
        made = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        lines = [line for line in made.stdout.splitlines() if line.strip()]
        if len(lines) == len(some):
            found |= {w: " ".join(parsed(line)) for w, line in zip(some, lines, strict=True)}
        else:
            for word in some:
                made = subprocess.run(command, input=word, capture_output=True, text=True, check=True)
                found[word] = " ".join(parsed(made.stdout))
    return {word: said for word, said in found.items() if said}


def write_shard(
    folder: Path, number: int, texts: Sequence[str], voices: Mapping[str, str], seed: int,
    pool: ThreadPoolExecutor,
) -> None:  # fmt: skip
    """Speak some sentences, each in one of the voices, and write them as one file of samples."""
    rng = np.random.default_rng((seed, number))
    names = [str(name) for name in rng.choice(list(voices), len(texts))]
    made = list(pool.map(speak, texts, [voices[name] for name in names]))
    told = [
        Spoken(text, name, " ".join(without_stress(said)), len(wave))
        for text, name, (wave, said) in zip(texts, names, made, strict=True)
    ]
    partial = folder / "partial.npy"
    np.save(partial, np.concatenate([wave for wave, _ in made]))
    partial.rename(folder / f"speech-{number:03}.npy")
    text = json.dumps([asdict(one) for one in told], indent=0)
    (folder / f"speech-{number:03}.json").write_text(text, encoding="utf-8")


class Speech:
    """All sentences of a folder; samples stay on the disk until they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.sentences: list[Spoken] = []
        self._places: list[tuple[int, int]] = []
        self._files: list[Wave] = []
        for path in sorted(folder.glob("speech-*.json")):
            told = [Spoken(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
            ends = np.cumsum([0, *[one.samples for one in told]]).tolist()
            self._places += [(len(self._files), start) for start in ends[:-1]]
            self._files.append(np.load(path.with_suffix(".npy"), mmap_mode="r"))
            self.sentences += told
        kept = [i for i, one in enumerate(self.sentences) if held_out(one.text)]
        self.held_out = np.array(kept or [len(self.sentences) - 1])  # never none
        self.train = np.setdiff1d(np.arange(len(self.sentences)), self.held_out)

    def __len__(self) -> int:
        return len(self.sentences)

    def wave(self, i: int) -> NDArray[np.float32]:
        """Samples ``[N]`` in [-1, 1] of one sentence."""
        file, start = self._places[i]
        found = self._files[file][start : start + self.sentences[i].samples]
        return np.asarray(found, dtype=np.float32) / np.float32(32768)
