"""Every method of the catalog that fits a stream, each in the company that it is made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multispec import drafters as d
from multispec import verifiers as v
from multispec.drafters.datastore import build_datastore
from multispec.errors import UsageError
from multispec.generator import Generator
from multispec.methods import KINDS, Entry
from multispec.policies import UCB
from multispec.structures import StaticTree, expansion
from recipes._ways import PLAIN, Way, draft_model, fitting, relaxed_rules

# Windows have laws of their own, which only a ratio test makes use of.
_WINDOWS = (d.SJD, d.ScdMaximal, d.SjdPac)
# Rules for siblings, and what grows them: how many at each depth, and how they are drawn.
_SIBLINGS: Mapping[Any, Any] = {
    v.KSeq: ((3, 2, 1, 1), "independent"),
    v.SpecHub: ((2, 2, 1, 1), "without_replacement"),
    v.Traversal: ((3, 2, 1, 1), "without_replacement"),
}
_STORES = (d.Rest, d.LLMA, d.NgramModel)
_NO_DRAFT = "It needs a draft model, and the model came without one."
_RECYCLED = "prompt_lookup, token_recycling"


@dataclass(frozen=True)
class Entrant:
    """One method: its kind, its name, what goes with it; ``make`` makes the way that it is run in."""

    kind: str
    method: str
    beside: str
    make: Callable[[], Way]

    @property
    def name(self) -> str:
        """Kind and method: a drafter and a rule may have the same name."""
        return f"{self.kind} {self.method}".strip()


@dataclass(frozen=True)
class LeftOut:
    """One method that is not run, and why."""

    kind: str
    method: str
    why: str

    @property
    def name(self) -> str:
        """As of an entrant."""
        return f"{self.kind} {self.method}"


@dataclass(frozen=True)
class References:
    """Texts of ids for the drafters that look into some; read or made when the first of them is."""

    read: Callable[[], Sequence[Sequence[int]]]
    vocab_size: int
    path: Path  # of their datastore

    def drafter(self, method: Any) -> Any:
        """The drafter with these texts."""
        texts = self.read()
        if method is d.Rest:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return d.Rest(build_datastore(texts, self.path, vocab_size=self.vocab_size))
        return method(texts) if method is d.LLMA else method(texts, vocab_size=self.vocab_size)


def entrants(generator: Generator, stream: str, references: References) -> list[Entrant | LeftOut]:
    """Plain decoding first, then every drafter, verifier, policy and structure of the catalog in turn."""
    catalog = _Catalog(generator, stream, references)
    found: list[Entrant | LeftOut] = [Entrant("", PLAIN.name, "", lambda: PLAIN)]
    for kind in KINDS:
        for entry in fitting(stream):
            if entry.kind == kind:
                found.extend(catalog.of(entry))
    return found


class _Catalog:
    def __init__(self, generator: Generator, stream: str, references: References) -> None:
        self._generator, self._stream, self._references = generator, stream, references
        self._draft = draft_model(generator)
        self._rules = {name: rules for name, rules in _rules(generator).items()}

    def of(self, entry: Entry) -> Iterator[Entrant | LeftOut]:
        """The ways that show what it does, or why there is none."""
        if entry.base and not entry.settings:
            yield LeftOut(entry.kind, entry.name, f"It is {entry.base} under another name.")
            return
        makers = {"drafter": self._drafter, "verifier": self._verifier, "policy": self._policy}
        yield from makers.get(entry.kind, self._structure)(entry)

    # ---- drafters: with the exact rule that is natural ----

    def _drafter(self, entry: Entry) -> Iterator[Entrant | LeftOut]:
        method = entry.method
        rule = v.Rejection() if issubclass(method, _WINDOWS) else v.Coupled()
        if method in _STORES and not entry.base:
            yield self._entrant(entry, rule.name, lambda: Way("", "", self._references.drafter(method), rule))
        elif method in (d.Among, d.BestGain, d.Fallback, d.HorizontalCascade, d.Merged, d.Cascade):
            yield self._composed(entry)
        elif method is d.DraftModel and self._draft is not None:
            yield self._entrant(entry, rule.name, lambda: Way("", "", self._draft, rule, trained=True))
        elif entry.by_name and not entry.trained:
            yield self._entrant(entry, rule.name, lambda: Way("", "", self._named(entry.name), rule))
        else:
            yield LeftOut(entry.kind, entry.name, f"It needs {entry.needs}.")

    def _named(self, name: str) -> Any:
        return self._generator.methods.drafter(name)

    def _composed(self, entry: Entry) -> Entrant | LeftOut:
        """Drafters of drafters, with small ones that look up, or with the draft model where it leads."""
        if entry.method in (d.Cascade, d.HorizontalCascade):
            if self._draft is None:
                return LeftOut(entry.kind, entry.name, _NO_DRAFT)
            return self._entrant(entry, "coupled, draft_model, max_gram", lambda: self._cascaded(entry))
        return self._entrant(entry, f"coupled, {_RECYCLED}", lambda: _chosen(entry.method))

    def _cascaded(self, entry: Entry) -> Way:
        if entry.method is d.Cascade:
            return Way("", "", d.Cascade(self._draft.model, d.MaxGram()), v.Coupled(), trained=True)
        both = d.HorizontalCascade((self._draft, d.MaxGram()), lengths=(self._draft.num_draft_tokens, 3))
        return Way("", "", both, v.Coupled(), trained=True)

    # ---- rules, policies, structures: with the draft model, where there is one ----

    def _verifier(self, entry: Entry) -> Iterator[Entrant | LeftOut]:
        known = [] if entry.base else self._rules.get(entry.method, [])
        for setting, rule in known or [("", None)]:
            method = f"{entry.name} {setting}".strip()
            yield self._rule(entry, method, entry.make() if rule is None else rule)

    def _rule(self, entry: Entry, method: str, rule: Any) -> Entrant:
        if entry.method is v.ZipARVerifier:
            return self._entrant(entry, "zipar", lambda: Way("", "", self._named("zipar"), rule), method)
        if self._draft is None:
            window = d.ScdMaximal()
            return self._entrant(entry, window.name, lambda: Way("", "", window, rule), method)
        shape = _SIBLINGS.get(entry.method)
        beside = "draft_model" if shape is None else f"draft_model, {shape[1].replace('_', ' ')} siblings"
        structure = None if shape is None else StaticTree(expansion(shape[0]), shape[1])
        return self._entrant(entry, beside, lambda: self._drafted(rule, structure=structure), method)

    def _policy(self, entry: Entry) -> Iterator[Entrant | LeftOut]:
        if self._draft is None:
            yield LeftOut(entry.kind, entry.name, _NO_DRAFT)
        else:
            coupled = v.Coupled()
            # By its name it is made for the drafter that it goes with.
            policy = entry.name if entry.name == "auto" else entry.make()
            make = lambda: replace(self._drafted(coupled), policy=policy)  # noqa: E731
            yield self._entrant(entry, "coupled, draft_model", make)

    def _structure(self, entry: Entry) -> Iterator[Entrant | LeftOut]:
        if self._stream != "text":
            yield LeftOut(entry.kind, entry.name, "Structures are compared on text.")
        elif not isinstance(entry.method, type):
            yield LeftOut(entry.kind, entry.name, f"It makes a shape for others and needs {entry.needs}.")
        elif self._draft is None:
            yield LeftOut(entry.kind, entry.name, _NO_DRAFT)
        else:
            make = lambda: self._drafted(v.Coupled(), structure=entry.name)  # noqa: E731
            yield self._entrant(entry, "coupled, draft_model", make)

    def _drafted(self, rule: Any, structure: Any = None) -> Way:
        return Way("", "", replace(self._draft, structure=structure), rule, trained=True)

    def _entrant(self, entry: Entry, beside: str, make: Callable[[], Way], method: str = "") -> Entrant:
        name = method or entry.name
        return Entrant(entry.kind, name, beside, lambda: replace(make(), family=entry.kind, setting=name))


def _rules(generator: Generator) -> dict[Any, list[tuple[str, Any]]]:
    """The settings of relaxed rules that are worth a line each; by class."""
    found: dict[Any, list[tuple[str, Any]]] = {}
    for _, setting, rule in relaxed_rules(generator.modality.neighbours):
        found.setdefault(type(rule), []).append((setting, rule))
    return found


def _chosen(method: Any) -> Way:
    """Two drafters that look up; a bandit chooses where nobody else does."""
    both = (d.PromptLookup(), d.TokenRecycling())
    if method is d.Among:
        return Way("", "", d.Among(both), v.Coupled(), policy=UCB(draft_costs=(0.0, 0.0)))
    made = d.BestGain(both, costs=(0.0, 0.0)) if method is d.BestGain else method(both)
    return Way("", "", made, v.Coupled())


def stream_of(name: str, known: Sequence[str]) -> str:
    """The stream of that name.

    Raises:
        UsageError: no such stream.
    """
    if name not in known:
        raise UsageError(f"A stream is {', '.join(known)}: got {name!r}. Pass one of them to --stream.")
    return name
