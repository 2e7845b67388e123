"""What a tokenizer can read: the scripts and signs that its vocabulary has ever met."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from multispec.errors import PromptError

_BROKEN = "\ufffd"


def script(character: str) -> str:
    """The script of a letter, by the first word of its Unicode name.

    >>> script("a"), script("я")
    ('LATIN', 'CYRILLIC')
    """
    return unicodedata.name(character, "UNKNOWN").split()[0]


@dataclass(frozen=True)
class Alphabet:
    """The ``scripts`` of the letters in a vocabulary, and its other ``signs``.

    A tokenizer of bytes reads every character, and a model that never saw a script still draws
    something for it. That is refused here, as nobody would know.
    """

    scripts: frozenset[str]
    signs: frozenset[str]

    @staticmethod
    def of(tokenizer: Any) -> Alphabet:
        """The alphabet of a transformers tokenizer; special symbols do not count."""
        special = set(tokenizer.all_special_ids)
        ids = [one for one in sorted(tokenizer.get_vocab().values()) if one not in special]
        # Single bytes of longer characters decode to a sign of their own, which says nothing.
        characters = set().union(*(tokenizer.decode([one]) for one in ids)) - {_BROKEN}
        return Alphabet(
            scripts=frozenset(script(one) for one in characters if one.isalpha()),
            signs=frozenset(one for one in characters if not one.isalpha()),
        )

    def check(self, caption: str) -> None:
        """Refuse what was never met.

        Raises:
            PromptError: names the character and what can be read.
        """
        for character in caption:
            if not self._reads(character):
                kind = script(character).lower() if character.isalpha() else "sign"
                raise PromptError(
                    f"This model has never seen {character!r} ({kind}): it reads {self}. "
                    f"Write the caption in that, instead of {caption!r}."
                )

    def _reads(self, character: str) -> bool:
        if character.isascii() or character.isspace() or unicodedata.category(character)[0] in "PM":
            return True  # punctuation and accents say little, and tokenizers fold most of them
        return script(character) in self.scripts if character.isalpha() else character in self.signs

    def __str__(self) -> str:
        return f"{', '.join(sorted(self.scripts)).lower() or 'no'} letters"
