"""Images: grids of vector-quantized codes.

The names of this package need pillow, and reading pictures diffusers; both come with
``pip install 'multispec[image]'``. They are imported on first use, so that ``load`` can ask the
table of families without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multispec.modalities.image.adapter import Images, to_image, to_pixels
    from multispec.modalities.image.codec import VQCodec
    from multispec.modalities.image.family import Family, PictureCodec
    from multispec.modalities.image.seeing import animate, contact_sheet, heat_map

__all__ = [
    "Family",
    "Images",
    "PictureCodec",
    "VQCodec",
    "animate",
    "contact_sheet",
    "heat_map",
    "to_image",
    "to_pixels",
]

_HOMES = {
    **dict.fromkeys(("Images", "to_image", "to_pixels"), "adapter"),
    "VQCodec": "codec",
    **dict.fromkeys(("Family", "PictureCodec"), "family"),
    **dict.fromkeys(("animate", "contact_sheet", "heat_map"), "seeing"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
