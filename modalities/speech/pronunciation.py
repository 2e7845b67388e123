"""English text to phonemes: a list of words, and a small model of spelling for those that are not in it.

Phonemes are espeak-ng's own names, stress in front of its vowel. The list is made by training, so no
espeak-ng is needed to speak.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multispec.errors import ModelLoadError, PromptError

LETTERS = "'abcdefghijklmnopqrstuvwxyz"
GAP = "|"  # between words
SIGNS = (",", ".", "?", "!")
SLOTS = 3  # phonemes that one letter can stand for ("x" is k s)
_SAME = str.maketrans({"’": "'", "‘": "'", "—": ",", "–": ",", ";": ",", ":": ",", "…": "."})
_IGNORED = frozenset('"“”()[]*_')
_PIECE = re.compile(r"[a-z]+(?:'[a-z]+)*'?|[,.?!]")
WORDS_FILE, SPELLING_FILE = "words.json", "spelling.safetensors"


class Spelling(nn.Module):
    """Phonemes of a word from its letters: a recurrent network read by connectionist temporal classification.

    Graves et al. (2006), section 3. Each letter has ``SLOTS`` slots; class 0 is the blank.
    """

    def __init__(self, phonemes: int, width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS) + 1, 32)
        self.mixing = nn.GRU(32, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, SLOTS * (phonemes + 1))

    def forward(self, letters: Int[Tensor, "B S"], sizes: Sequence[int]) -> Float[Tensor, "B slots V"]:
        """Log-probabilities of the slots of words of ``sizes`` letters, padded with any others."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(letters), torch.tensor(sizes), batch_first=True, enforce_sorted=False
        )
        mixed, _ = nn.utils.rnn.pad_packed_sequence(self.mixing(packed)[0], batch_first=True)
        found: Tensor = self.head(mixed).unflatten(-1, (SLOTS, -1)).flatten(1, 2)
        return found.log_softmax(-1)


def letters_of(word: str) -> list[int]:
    """The letters of a word as ids; 0 is for none."""
    return [1 + LETTERS.index(letter) for letter in word]


def collapsed(classes: Sequence[int]) -> list[int]:
    """What the best class of each slot spells: runs count once, blanks not at all."""
    return [one for one, before in zip(classes, (0, *classes[:-1]), strict=True) if one not in (0, before)]


def pieces(text: str) -> list[str]:
    """Words in small letters, and the signs that are heard, of an English text.

    Raises:
        PromptError: a character that cannot be spoken, or no word at all.

    >>> pieces("Well: don't go!")
    ['well', ',', "don't", 'go', '!']
    """
    plain = unicodedata.normalize("NFKD", text.translate(_SAME)).lower()
    kept = "".join(c for c in plain if c not in _IGNORED and not unicodedata.combining(c))
    for character in kept:
        if character not in LETTERS and character not in SIGNS and character not in " \t\n-":
            raise PromptError(
                f"This model speaks English words and cannot read {character!r} in {text!r}. "
                "Write out numbers and signs in letters from a to z."
            )
    found = _PIECE.findall(kept.replace("--", ","))
    if not any(piece[0].isalpha() for piece in found):
        raise PromptError(f"There is nothing to speak in {text!r}: it has no word.")
    return found


@dataclass(frozen=True)
class Pronunciation:
    """The phonemes of ``words`` that are known, and the ``spelling`` of others in ``phonemes``.

    >>> Pronunciation({"go": "g 'oU"}, Spelling(2), ("g", "'oU")).symbols("Go, go")
    ['g', "'oU", ',', 'g', "'oU", '.']
    """

    words: Mapping[str, str]
    spelling: Spelling
    phonemes: tuple[str, ...]

    @staticmethod
    def load(folder: str | Path) -> Pronunciation:
        """What the training wrote into a folder.

        Raises:
            ModelLoadError: a file that is missing or broken.
        """
        where = Path(folder)
        try:
            known = json.loads((where / WORDS_FILE).read_text(encoding="utf-8"))
            weights = load_file(where / SPELLING_FILE)
            phonemes = tuple(known["phonemes"])
            model = Spelling(len(phonemes), weights["head.weight"].shape[1] // 2)
            model.load_state_dict({name: one.float() for name, one in weights.items()})
            return Pronunciation(known["words"], model.eval(), phonemes)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelLoadError(
                f"No pronunciation can be read from {str(where)!r}: {str(error).splitlines()[0]} "
                f"Expected {WORDS_FILE} and {SPELLING_FILE}, as recipes/train_speech.py writes them."
            ) from error

    def symbols(self, text: str) -> list[str]:
        """Phonemes of a text with ``GAP`` between words, its signs, and one at the end.

        Raises:
            PromptError: a text that cannot be read.
        """
        found: list[str] = []
        for piece in pieces(text):
            if piece in SIGNS:
                found = [*found[: len(found) - (found[-1:] == [GAP])], piece]
                continue
            found += [GAP] if found and found[-1] not in SIGNS else []
            found += self.of_word(piece)
        return found if found[-1] in SIGNS else [*found, "."]

    def of_word(self, word: str) -> list[str]:
        """The phonemes of a word in small letters."""
        known = self.words.get(word) or self.words.get(word.strip("'"))
        if known:
            return known.split()
        owner, _, ending = word.rpartition("'")
        if ending == "s" and owner in self.words:
            said = self.words[owner].split()
            return said + self._possessive(said[-1].lstrip("',"))
        return self.spelled(word)

    def _possessive(self, last: str) -> list[str]:
        hissing, voiceless = {"s", "z", "S", "Z", "tS", "dZ"}, {"p", "t", "k", "f", "T"}
        ending = ["I#", "z"] if last in hissing else ["s"] if last in voiceless else ["z"]
        return [one for one in ending if one in self.phonemes]

    def save(self, folder: str | Path) -> None:
        """Write it for ``load``: half precision, in a folder that is made where it is missing."""
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        known = {"phonemes": self.phonemes, "words": dict(self.words)}
        (where / WORDS_FILE).write_text(json.dumps(known, separators=(",", ":")), encoding="utf-8")
        weights = {name: one.half().contiguous() for name, one in self.spelling.state_dict().items()}
        save_file(weights, where / SPELLING_FILE)

    @torch.inference_mode()
    def spelled(self, word: str) -> list[str]:
        """The phonemes of a word by its spelling alone."""
        letters = letters_of(word)
        classes = self.spelling(torch.tensor([letters]), [len(letters)])[0].argmax(-1).tolist()
        return [self.phonemes[one - 1] for one in collapsed(classes)]
