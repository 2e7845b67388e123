"""Tiny models in folders, as the commands read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import zoo

SPECIAL = ("<pad>", "<eos>", "<bos>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte, after the special ones."""
    symbols = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {symbol: place for place, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def save(folder: Path, seed: int) -> Path:
    """A random Llama over bytes."""
    size = len(SPECIAL) + 256
    zoo.build("llama", seed, vocab_size=size, eos_token_id=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model with a tokenizer."""
    return str(save(tmp_path_factory.mktemp("models") / "target", seed=0))


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of another model of the same vocabulary."""
    return str(save(tmp_path_factory.mktemp("models") / "draft", seed=1))
