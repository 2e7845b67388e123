"""Exactness on a user's own model: every promise that can be tested there, one row each.

* ``seed`` rules: the very tokens of plain decoding, for many prompts, settings, drafters and batches;
* ``law`` rules: the joint law of the first tokens, computed from the model's logits, by a G-test;
* plain decoding: the tokens of the model's own ``generate``;
* chains, trees and roll-back: the logits of a fresh run.

Two ways of computing the same logits round differently, so tokens that differ count only where the
margin between them exceeds that noise; the row says how many near-ties were set aside.
"""

from multispec.checking.drafters import default_drafters
from multispec.checking.laws import g_test
from multispec.checking.prompts import default_prompts
from multispec.checking.results import CheckResult
from multispec.checking.rows import check_model, iter_checks, left_out

__all__ = [
    "CheckResult",
    "check_model",
    "default_drafters",
    "default_prompts",
    "g_test",
    "iter_checks",
    "left_out",
]
