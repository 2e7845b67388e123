"""What the tokenizers of picture models make of a caption."""

from __future__ import annotations

from typing import Any

from multispec.errors import ModelLoadError, PromptError
from multispec.protocols import Target
from multispec.stream import Prompt


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


def check_caption(tokenizer: Any, caption: str) -> None:
    """Refuse a caption that means nothing to a tokenizer, or something else than words.

    Raises:
        PromptError: nothing in it can be read, or it holds a control symbol of the model.
    """
    ids: list[int] = tokenizer(caption, add_special_tokens=False)["input_ids"]
    read = [one for one in ids if one != tokenizer.unk_token_id]
    control = sorted(set(read) & set(tokenizer.all_special_ids))
    if control:
        raise PromptError(
            f"A caption is words: got {caption!r}, which holds the control symbol "
            f"{tokenizer.convert_ids_to_tokens(control[0])!r}. Take it out."
        )
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
