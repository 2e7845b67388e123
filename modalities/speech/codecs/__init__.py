"""Neural codecs, one file each, and the table of them: codes to sound and back."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from multispec.errors import ModelLoadError, UnsupportedError
from multispec.modalities.speech.codecs._reach import UNBOUNDED, measured
from multispec.modalities.speech.family import SpeechCodec

__all__ = ["CODECS", "CONTINUOUS", "UNBOUNDED", "codec_class", "load", "measured"]

# model_type of config.json -> the module here and its class.
CODECS: dict[str, tuple[str, str]] = {
    "encodec": ("encodec", "EncodecCodec"),
    "dac": ("dac", "DacCodec"),
    "mimi": ("mimi", "MimiCodec"),
    "xcodec": ("xcodec", "XcodecCodec"),
    "xcodec2": ("xcodec2", "Xcodec2Codec"),
    "neucodec": ("neucodec", "NeuCodec"),
    "higgs_audio_v2_tokenizer": ("higgs_audio", "HiggsAudioCodec"),
    "snac": ("snac", "SnacCodec"),
}
# What has no codes at all.
CONTINUOUS = {
    "vibevoice_acoustic_tokenizer": "the acoustic tokenizer of VibeVoice",
    "pocket_tts_audio_tokenizer": "the audio tokenizer of Pocket TTS",
}


def codec_class(model_type: str) -> Any:
    """The class of a codec by the ``model_type`` of its config.

    Raises:
        UnsupportedError: no codec of that type, or one whose frames are no codes.
    """
    if model_type in CONTINUOUS:
        raise UnsupportedError(
            f"{CONTINUOUS[model_type].capitalize()} makes continuous vectors, no codes: there is no "
            f"vocabulary that a stream of symbols could be of. Codecs with one: {', '.join(sorted(CODECS))}."
        )
    if model_type not in CODECS:
        raise UnsupportedError(
            f"No codec of type {model_type!r} is known. Those that are: {', '.join(sorted(CODECS))}."
        )
    module, name = CODECS[model_type]
    return getattr(import_module(f"{__name__}.{module}"), name)


def load(
    name_or_path: str | Path, *, device: str | torch.device = "cpu", num_codebooks: int | None = None
) -> SpeechCodec:
    """The codec of a folder or hub id, whichever it is; its first ``num_codebooks`` where it may use fewer.

    Raises:
        ModelLoadError: it cannot be read.
        UnsupportedError: a kind that is not known, or whose frames are no codes.
        UsageError: a number of codebooks that it cannot be used with.

    >>> load("kyutai/mimi", num_codebooks=8).hop                               # doctest: +SKIP
    1920
    """
    found = codec_class(_model_type(name_or_path))
    codec: SpeechCodec = found.load(name_or_path, device=device, num_codebooks=num_codebooks)
    return codec


def _model_type(name_or_path: str | Path) -> str:
    try:
        folder = Path(name_or_path)
        path = (
            folder / "config.json"
            if folder.is_dir()
            else Path(hf_hub_download(str(name_or_path), "config.json"))
        )
        found = json.loads(path.read_text("utf-8"))
    except Exception as error:  # no file, no such hub id, no JSON: the hub raises many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"No codec can be read from {str(name_or_path)!r}: {first} Expected a folder with config.json "
            "and its weights, or a hub id that is reachable."
        ) from error
    # SNAC's own files name no type, but nobody else has strides of codebooks.
    return str(found.get("model_type") or ("snac" if "vq_strides" in found else None))
