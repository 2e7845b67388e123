"""``multispec bench``: what speculation gains here, beside what else could be used, in one run."""

from multispec.bench.cases import Case, Run, System
from multispec.bench.run import Cell, measure

__all__ = ["Case", "Cell", "Run", "System", "measure"]
