"""Speculative generation in every modality: the same seed gives the same output, sooner."""

from importlib.metadata import PackageNotFoundError, version

from multispec import drafters, errors, policies, targets, verifiers
from multispec.catalog import catalog
from multispec.errors import MultispecError
from multispec.generator import Generator
from multispec.hook import speculative
from multispec.loading import load
from multispec.report import Report
from multispec.sampling import Sampling
from multispec.stream import Draft, Generation, Prompt, Step, StreamSpec, Verdict

try:
    __version__ = version("multispec")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"

__all__ = [
    "Draft",
    "Generation",
    "Generator",
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
    "targets",
    "verifiers",
]
