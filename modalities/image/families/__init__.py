"""The families of image models, one file each, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from multispec.modalities.image.family import Family


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
    ) -> Family:
        """The model of a folder or hub id.

        Raises:
            ModelLoadError: it cannot be read.
        """
        found: Family = self._module.load(
            name_or_path, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        return found


# Endings of the authors' own checkpoint files.
_WEIGHTS = (".pt", ".pth", ".safetensors")
FAMILIES: tuple[Entry, ...] = (
    Entry(module="raster_llama", key="multispec"),
    Entry(module="janus", model_types=("janus",)),
    Entry(module="emu3", model_types=("emu3",)),
    Entry(module="glm_image", model_types=("glm_image",)),
    Entry(module="imagegpt", model_types=("imagegpt",)),
    Entry(module="chameleon", model_types=("chameleon",)),
    Entry(module="llamagen", model_types=("llamagen",)),
)


def family_of(config: Any) -> Entry | None:
    """The family that runs a model of that config, or None."""
    return next((entry for entry in FAMILIES if entry.fits(config)), None)


def family_of_file(name_or_path: str | Path) -> Entry | None:
    """The family that reads a bare weight file, or a folder with one beside its picture tokenizer, or None.

    Such checkpoints have no config that says what they are.
    """
    path = Path(name_or_path)
    if path.is_dir():
        bare = not (path / "config.json").is_file() and any(
            one.name.startswith("vq") for one in path.iterdir()
        )
    else:
        bare = path.suffix in _WEIGHTS
    return next(entry for entry in FAMILIES if entry.module == "llamagen") if bare else None
