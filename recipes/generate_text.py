"""Generate text: the shortest useful program.

    python recipes/generate_text.py --prompt "def fibonacci(n):"
    python recipes/generate_text.py --model my-model --draft my-draft --drafter draft_model

The same seed gives the same text with any drafter, and with `--drafter none`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields

import multispec as ms


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe; every field is a command-line flag of the same name."""

    prompt: str = "Once upon a time"
    model: str = "text"  # the embedded model, a folder or a hub id
    draft: str = ""  # a folder or hub id; empty: what comes with the model
    drafter: str = "auto"  # `multispec methods` lists them; none: plain decoding
    temperature: float = 0.8  # 0 is greedy
    seed: int = 0
    max_new_tokens: int = 200


def parse(arguments: Sequence[str] | None) -> Settings:
    """Settings from flags."""
    parser = argparse.ArgumentParser(description="Generate text.")
    for one in fields(Settings):
        flag = f"--{one.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(one.default), default=one.default)
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the text, then what it cost."""
    asked = parse(arguments)
    generator = ms.load(asked.model, draft=asked.draft or None)
    result = generator.generate(
        asked.prompt,
        drafter=asked.drafter,
        sampling=ms.Sampling(temperature=asked.temperature, seed=asked.seed),
        max_new_tokens=asked.max_new_tokens,
    )
    print(f"{asked.prompt}{result.output}\n\n{result.report}")


if __name__ == "__main__":
    main()
