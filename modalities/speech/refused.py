"""Speech models whose output is no stream of symbols, and why: so that nobody takes them for unknown."""

from __future__ import annotations

from typing import Any

from multispec.errors import UnsupportedError

_CONTINUOUS = (
    "draws continuous vectors from a {}, so there is no vocabulary and no probability of a symbol that "
    "drafts could be verified by"
)
# model_type -> what the model is, and why it is not run here.
REFUSED: dict[str, tuple[str, str]] = {
    "vibevoice": ("VibeVoice", _CONTINUOUS.format("diffusion head")),
    "pocket_tts": ("Pocket TTS", _CONTINUOUS.format("flow")),
    "gradium_phonon_tts": ("Gradium Phonon", _CONTINUOUS.format("flow")),
    "bark": (
        "Bark",
        "ends with a fine stage that fills in all frames of a codebook at once, without an order in which "
        "codes could be drafted, and before that starts anew every 60 codes of a sliding window",
    ),
    "vits": ("VITS", "makes the whole waveform in one pass, so there is nothing to draft"),
    "fastspeech2_conformer": (
        "FastSpeech 2",
        "makes the whole spectrogram in one pass, so there is nothing to draft",
    ),
    "speecht5": ("SpeechT5", "speaks frames of a spectrogram, so there is no vocabulary"),
}


def refuse(config: Any) -> None:
    """Refuse a speech model that can never be run here; any other config passes.

    Raises:
        UnsupportedError: says why.

    >>> from transformers import LlamaConfig
    >>> refuse(LlamaConfig())
    """
    known = REFUSED.get(str(getattr(config, "model_type", None)))
    if known is not None:
        name, why = known
        raise UnsupportedError(
            f"{name} cannot be run here: it {why}. Use its own generate, or a model that speaks codes of a "
            "codec, such as Orpheus, Llasa, CSM or Dia."
        )
