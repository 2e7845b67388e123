"""The families of speech models, one file each, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from multispec.modalities.speech.family import SpeechFamily


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One family: its ``module`` here, and a first look that needs no import.

    The module has ``fits(config)``, which decides, and ``load(name_or_path, *, device, dtype,
    trust_remote_code)``. It is imported for a config whose ``model_type`` is one of
    ``model_types``, or which has the key ``key``.
    """

    module: str
    model_types: tuple[str, ...] = ()
    key: str = ""

    def fits(self, config: Any) -> bool:
        """True where this family runs a model of that config."""
        kind = getattr(config, "model_type", None)
        hinted = kind in self.model_types or (self.key != "" and getattr(config, self.key, None) is not None)
        return hinted and bool(self._module.fits(config))

    @property
    def _module(self) -> Any:
        return import_module(f"{__name__}.{self.module}")

    def load(
        self,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        trust_remote_code: bool = False,
    ) -> SpeechFamily:
        """The model of a folder or hub id.

        Raises:
            ModelLoadError: it cannot be read.
        """
        found: SpeechFamily = self._module.load(
            name_or_path, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        return found


# One line a family; the first that fits runs the model.
FAMILIES: tuple[Entry, ...] = (
    Entry(module="aligned_llama", key="multispec"),
    Entry(module="orpheus", model_types=("llama",)),
    Entry(module="llasa", model_types=("llama",)),
    Entry(module="neutts", model_types=("llama", "qwen2")),
    Entry(module="spark", model_types=("qwen2",)),
    Entry(module="outetts", model_types=("llama", "qwen3")),
    Entry(module="qwen2_5_omni", model_types=("qwen2_5_omni",)),
    Entry(module="dia", model_types=("dia",)),
    Entry(module="higgs_audio_v2", model_types=("higgs_audio_v2",)),
    Entry(module="parler", model_types=("parler_tts",)),
    Entry(module="musicgen", model_types=("musicgen", "musicgen_melody")),
    Entry(module="csm", model_types=("csm",)),
    Entry(module="moshi", model_types=("moshi",)),
    Entry(module="qwen3_omni", model_types=("qwen3_omni_moe",)),
)


def family_of(config: Any) -> Entry | None:
    """The family that runs a model of that config, or None."""
    return next((entry for entry in FAMILIES if entry.fits(config)), None)
