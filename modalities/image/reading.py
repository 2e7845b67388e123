"""What the tokenizers of picture models make of a caption, and what they cannot read."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from multispec.errors import ModelLoadError, PromptError
from multispec.protocols import Target
from multispec.stream import Prompt

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


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor; a tokenizer is returned as it is."""
    return getattr(processor, "tokenizer", processor)


def token_id(tokenizer: Any, name: str) -> int:
    """The id of a named special symbol, ``boi_token`` for example.

    Raises:
        ModelLoadError: the tokenizer has no such symbol.
    """
    found = getattr(tokenizer, f"{name}_id", None)
    if not isinstance(found, int):
        raise ModelLoadError(
            f"The tokenizer {type(tokenizer).__name__} names no {name}, which pictures need: got {found!r}. "
            "Load the tokenizer that belongs to the model, or name it in extra_special_tokens."
        )
    return found


def caption_ids(tokenizer: Any, caption: str, reserved: Collection[int] = ()) -> list[int]:
    """The symbols of a caption, which is made of words alone.

    Raises:
        PromptError: it holds a control symbol of the model, or one of ``reserved``.
    """
    ids: list[int] = tokenizer(caption, add_special_tokens=False)["input_ids"]
    control = (set(tokenizer.all_special_ids) | set(reserved)) - {tokenizer.unk_token_id}
    found = next((one for one in ids if one in control), None)
    if found is not None:
        raise PromptError(
            f"A caption is words: got {caption!r}, which holds the control symbol "
            f"{tokenizer.convert_ids_to_tokens(found)!r}. Take it out."
        )
    return ids


def check_caption(tokenizer: Any, caption: str) -> None:
    """Refuse a caption that means nothing to a tokenizer, or something else than words.

    Raises:
        PromptError: nothing in it can be read, or it holds a control symbol of the model.
    """
    ids = caption_ids(tokenizer, caption)
    read = [one for one in ids if one != tokenizer.unk_token_id]
    if not tokenizer.decode(read).strip():
        raise PromptError(
            f"The tokenizer of this model reads nothing in the caption {caption!r}: it gives "
            f"{len(ids)} symbols, {len(ids) - len(read)} of them unknown. Write some words, in a script "
            "that the model was trained on."
        )


def with_room(prompt: Prompt, length: int, target: Target) -> Prompt:
    """The prompt itself, if a picture of ``length`` symbols fits behind it.

    Raises:
        PromptError: says what the model's context holds.
    """
    limit, size = target.context_length, len(prompt.ids)
    if limit is not None and size + length > limit:
        raise PromptError(
            f"A picture of this size needs {length} symbols of the model's context of {limit}: got a prompt "
            f"of {size}. Shorten the caption, or ask for a smaller picture where the model draws those."
        )
    return prompt


def as_chat(processor: Any, caption: str) -> str:
    """The caption in the chat template of the checkpoint; as it is where there is none."""
    if not getattr(processor, "chat_template", None):
        return caption
    messages = [{"role": "user", "content": [{"type": "text", "text": caption}]}]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text
