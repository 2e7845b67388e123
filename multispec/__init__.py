"""Speculative generation in every modality: the same seed gives the same output, sooner."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multispec import drafters, errors, policies, structures, targets, testing, verifiers
    from multispec.errors import MultispecError
    from multispec.generator import Generator
    from multispec.guidance import Guidance
    from multispec.hook import speculative
    from multispec.loading import load
    from multispec.methods import catalog
    from multispec.modalities.speech.audio import Audio
    from multispec.report import Report
    from multispec.sampling import Sampling
    from multispec.stream import Draft, Generation, Prompt, Step, StreamSpec, Verdict

try:
    __version__ = version("multispec")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"

__all__ = [
    "Audio",
    "Draft",
    "Generation",
    "Generator",
    "Guidance",
    "MultispecError",
    "Prompt",
    "Report",
    "Sampling",
    "Step",
    "StreamSpec",
    "Verdict",
    "catalog",
    "drafters",
    "errors",
    "load",
    "policies",
    "speculative",
    "structures",
    "targets",
    "testing",
    "verifiers",
]

# Where each name lives. Read on first use: torch and transformers take seconds to import.
_FOLDERS = {"drafters", "errors", "policies", "structures", "targets", "testing", "verifiers"}
_HOMES = {
    "Audio": "modalities.speech.audio",
    "catalog": "methods",
    "MultispecError": "errors",
    "Generator": "generator",
    "Guidance": "guidance",
    "speculative": "hook",
    "load": "loading",
    "Report": "report",
    "Sampling": "sampling",
    **dict.fromkeys(("Draft", "Generation", "Prompt", "Step", "StreamSpec", "Verdict"), "stream"),
}


def __getattr__(name: str) -> object:
    if name in _FOLDERS:
        return import_module(f"multispec.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"multispec.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'multispec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
