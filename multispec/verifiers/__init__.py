"""Rules of acceptance; each declares the promise it keeps."""

from multispec.verifiers.coupled import Coupled
from multispec.verifiers.rejection import Rejection

__all__ = ["Coupled", "Rejection"]
