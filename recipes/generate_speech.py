"""Say a text: the shortest useful program.

    python recipes/generate_speech.py --text "the quick brown fox" --out fox.wav
    python recipes/generate_speech.py --model my-model --draft my-draft --voice anna --text "..."

The same seed gives the same sound with any drafter, and with `--drafter none`. Texts may be of any length.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import multispec as ms
from multispec.modalities.speech import speaking


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe; every field is a command-line flag of the same name."""

    text: str = "The quick brown fox jumps over the lazy dog."
    model: str = "speech"  # the embedded model, a folder or a hub id
    draft: str = ""  # a folder or hub id; empty: what comes with the model
    drafter: str = "auto"  # `multispec methods` lists them; none: plain decoding
    voice: str = ""  # empty: the model's own
    temperature: float = -1.0  # 0 is greedy; below 0: the model's own
    seed: int = 0
    out: str = "speech.wav"  # or .flac, .ogg


def parse(arguments: Sequence[str] | None) -> Settings:
    """Settings from flags."""
    parser = argparse.ArgumentParser(description="Say a text.")
    for one in fields(Settings):
        flag = f"--{one.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(one.default), default=one.default)
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sound, then print what it cost."""
    asked = parse(arguments)
    generator = ms.load(asked.model, draft=asked.draft or None, modality="speech")
    sampling = replace(generator.modality.sampling, seed=asked.seed)
    if asked.temperature >= 0:
        sampling = replace(sampling, temperature=asked.temperature)
    chunks = speaking(
        generator, asked.text, voice=asked.voice or None, drafter=asked.drafter, sampling=sampling
    )
    for chunk in chunks:
        print(f"{chunks.delivery.seconds:6.2f} s: {chunk.duration:.2f} s of sound")
    said = chunks.result
    for utterance, one in zip(said.utterances, said.results, strict=True):
        print(f"\n{utterance.text}\n{one.report}")
    print(f"\n{said.save(asked.out)}: {said.audio.duration:.2f} s")


if __name__ == "__main__":
    main()
