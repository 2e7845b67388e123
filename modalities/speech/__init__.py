"""Speech: frames of neural codec codes.

The names of this package are imported on first use, so that ``load`` can ask the table of families
without them. Files of sounds need soundfile, which comes with ``pip install 'multispec[speech]'``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multispec.modalities.speech.adapter import Speech
    from multispec.modalities.speech.audio import Audio, Player, joined
    from multispec.modalities.speech.family import FrameLayout, SpeechCodec, SpeechFamily
    from multispec.modalities.speech.long_texts import Spoken, speak, speaking
    from multispec.modalities.speech.reading import read_out, utterances
    from multispec.modalities.speech.seeing import draw, spectrogram
    from multispec.modalities.speech.streaming import Delivery, Windows

__all__ = [
    "Audio",
    "Delivery",
    "FrameLayout",
    "Player",
    "Speech",
    "SpeechCodec",
    "SpeechFamily",
    "Spoken",
    "Windows",
    "draw",
    "joined",
    "read_out",
    "speak",
    "speaking",
    "spectrogram",
    "utterances",
]

_HOMES = {
    "Speech": "adapter",
    **dict.fromkeys(("Audio", "Player", "joined"), "audio"),
    **dict.fromkeys(("FrameLayout", "SpeechCodec", "SpeechFamily"), "family"),
    **dict.fromkeys(("read_out", "utterances"), "reading"),
    **dict.fromkeys(("draw", "spectrogram"), "seeing"),
    **dict.fromkeys(("Spoken", "speak", "speaking"), "long_texts"),
    **dict.fromkeys(("Delivery", "Windows"), "streaming"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
