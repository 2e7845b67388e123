"""The table of all methods, made from their own declarations: those of the packages, presets, and yours.

What ``multispec.drafters``, ``multispec.verifiers`` and ``multispec.policies`` export is in the table; what
it does, whether it is exact and where it is published it says itself. Another package adds its methods by
entry points of the group ``multispec.methods``, each of which names a class.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from multispec import drafters, policies, structures, verifiers
from multispec.errors import MethodWarning, UnknownNameError, UnsupportedError, UsageError
from multispec.protocols import Drafter, Verifier
from multispec.stream import StreamSpec
from multispec.tree import is_chain

Kind = Literal["drafter", "verifier", "policy", "structure"]
KINDS: tuple[Kind, ...] = ("drafter", "verifier", "policy", "structure")
STREAMS = ("text", "image", "speech")
GROUP = "multispec.methods"
# The method that makes a class one of a kind, and the package it is exported from.
_VERBS: Mapping[str, tuple[Kind, ModuleType]] = {
    "begin": ("drafter", drafters),
    "verify": ("verifier", verifiers),
    "budget": ("policy", policies),
}
_CODES = ("image", "speech")
# Methods that need what some streams do not have: rows that lie above each other, frames, a codebook.
_ONLY: Mapping[Any, tuple[str, ...]] = {
    drafters.ZipAR: ("image",),
    verifiers.ZipARVerifier: ("image",),
    drafters.DepthNgram: ("speech",),
    drafters.PreviousFrame: ("speech",),
    verifiers.GSD: _CODES,
    verifiers.Lantern: _CODES,
    verifiers.LanternPlusPlus: _CODES,
    verifiers.PCG: _CODES,
}
_MODEL = "a draft model: draft=... of multispec.load, assistant_model=..., or {name}:FOLDER"
_STORE = "a datastore of build_datastore: {name}:FILE"
# What has to be given beside the name, for methods that do nothing without it.
_NEEDS: Mapping[Any, str] = {
    drafters.DraftModel: _MODEL,
    drafters.Rest: _STORE,
    drafters.LLMA: _STORE + " with the references, or {name}:remember=true for earlier generations",
    drafters.NgramModel: _STORE + " with the texts to count",
    verifiers.GSD: "a codebook: that of the model's modality, or GSD(neighbours=...)",
    verifiers.Lantern: "a codebook: that of the model's modality, or Lantern(neighbours=...)",
    verifiers.LanternPlusPlus: "a codebook: that of the model's modality, or LanternPlusPlus(neighbours=...)",
    verifiers.PCG: "a codebook: that of the model's modality, or PCG(neighbours=...)",
    verifiers.Optimal: "scipy, and few siblings from few symbols",
}
# What drafts for a drafter where nobody says otherwise.
_INNER = "prompt_lookup"
# Drafters that copy, guess or iterate: what they draft comes without a law q. Windows do so where they begin.
_GIVEN = frozenset(
    "anpd cacheback depth_ngram jacobi llma lookahead max_gram n_grammys pld_plus previous_frame "
    "prompt_lookup rest row_copy suffix_automaton suffix_decoding token_recycling".split()
)
_WINDOWS = frozenset(("sjd", "scd_mc", "sjd_pac"))
_ITERATING = frozenset(("jacobi", "lookahead", "zipar", *_WINDOWS))
_BRANCHING = frozenset("cacheback lookahead n_grammys rest sjd_pac suffix_decoding token_recycling".split())


class Preset(NamedTuple):
    """A published method that is another one with settings of its own."""

    name: str
    method: Any
    paper: str
    summary: str
    settings: Mapping[str, Any]


def _preset(name: str, method: Any, paper: str, summary: str, **settings: Any) -> Preset:
    return Preset(name, method, paper, summary, settings)


_CHEN, _CASCADES = "Chen et al. 2023, arXiv 2302.01318", verifiers.Cascade.paper
_SJD, _LOOKAHEAD = drafters.SJD.paper, drafters.Lookahead.paper
PRESETS: tuple[Preset, ...] = (
    _preset(
        "pld", drafters.PromptLookup, drafters.PromptLookup.paper, "Three symbols down to one, ten copied."
    ),
    _preset(
        "copyspec",
        drafters.PromptLookup,
        "Dumitru et al. 2025, arXiv 2502.08923",
        "Ten symbols from behind a match of the last five, and no shorter one.",
        min_ngram=5,
        max_ngram=5,
    ),
    _preset(
        "llma_cache",
        drafters.LLMA,
        drafters.LLMA.paper,
        "The references are earlier generations (cache-assisted generation).",
        remember=True,
    ),
    _preset(
        "sam_decoding",
        drafters.SuffixAutomatonDrafter,
        drafters.SuffixAutomatonDrafter.paper,
        "Forty symbols from behind the longest suffix.",
        num_draft_tokens=40,
    ),
    _preset(
        "suffix_decoding_global",
        drafters.SuffixDecoding,
        drafters.SuffixDecoding.paper,
        "With a tree of all earlier generations beside that of the request.",
        remember=True,
    ),
    _preset(
        "suffix_decoding_path",
        drafters.SuffixDecoding,
        drafters.SuffixDecoding.paper,
        "The likeliest path alone, for models that score chains.",
        tree=False,
    ),
    _preset(
        "token_recycling_warm",
        drafters.TokenRecycling,
        drafters.TokenRecycling.paper,
        "Starts with the matrix of the rows that are done.",
        remember=True,
    ),
    _preset(
        "jacobi_decoding",
        drafters.Jacobi,
        "Santilli et al. 2023, arXiv 2305.10427",
        "Fixed-point iteration on a window of 16 symbols that begins with any.",
        num_draft_tokens=16,
        start="random",
    ),
    _preset(
        "mc_sjd",
        drafters.ScdMaximal,
        drafters.ScdMaximal.paper,
        "A window of 64 symbols.",
        num_draft_tokens=64,
    ),
    _preset("sjd_random", drafters.SJD, _SJD, "Windows begin with symbols drawn by chance.", start="random"),
    _preset(
        "sjd_left", drafters.SJD, _SJD, "Windows begin with copies of the symbol before.", start="copy_left"
    ),
    _preset(
        "sjd_ac",
        drafters.SjdPac,
        drafters.SjdPac.paper,
        "Adaptive continuation alone, without the tree behind a rejection.",
        width=1,
    ),
    _preset(
        "lookahead_7b",
        drafters.Lookahead,
        _LOOKAHEAD,
        "W = 15, N = 5, G = 15, as for models of 7B.",
        window=15,
        ngram=5,
        guesses=15,
    ),
    _preset(
        "lookahead_13b",
        drafters.Lookahead,
        _LOOKAHEAD,
        "W = 10, N = 5, G = 10, as for models of 13B.",
        window=10,
        ngram=5,
        guesses=10,
    ),
    _preset(
        "lookahead_33b",
        drafters.Lookahead,
        _LOOKAHEAD,
        "W = 7, N = 5, G = 7, as for models of 33B.",
        window=7,
        ngram=5,
        guesses=7,
    ),
    _preset("speculative_sampling", verifiers.Rejection, _CHEN, "The ratio test on chains."),
    _preset(
        "specinfer",
        verifiers.Rejection,
        "Miao et al. 2023, arXiv 2305.09781",
        "Multi-step speculative sampling: recursive rejection of independent siblings.",
    ),
    _preset(
        "mcsd",
        verifiers.Rejection,
        "Yang et al. 2024, arXiv 2401.06706",
        "Multi-candidate sampling: recursive rejection of siblings.",
    ),
    _preset(
        "rsd",
        verifiers.Rejection,
        "Jeon et al. 2024, arXiv 2402.14160",
        "Recursive rejection of siblings drawn without replacement.",
    ),
    _preset(
        "exponential_races",
        verifiers.Coupled,
        "arXiv 2504.15475",
        "Shared exponential noise: argmin E / p, which is the argmax of shared Gumbel noise.",
    ),
    *(
        _preset(f"cascade_{rule}", verifiers.Cascade, _CASCADES, f"Defers by the rule {rule}.", deferral=rule)
        for rule in ("chow", "diff", "token_v1", "token_v2", "token_v3")
    ),
    _preset(
        "blockwise_exact",
        verifiers.Blockwise,
        verifiers.Blockwise.paper,
        "The greedy symbol alone.",
        k=1,
    ),
    _preset(
        "blockwise_distance",
        verifiers.Blockwise,
        verifiers.Blockwise.paper,
        "At most two steps of intensity away from the greedy symbol.",
        k=1,
        distance=2,
    ),
    _preset(
        "metasd",
        policies.UCB,
        "Kim et al. 2024 (MetaSD), multiple drafters as a bandit",
        "Chooses the drafter alone, by the share of its five symbols that are accepted; for among.",
        lengths=(5,),
        draft_costs=(0.1, 0.1),
    ),
    _preset(
        "kangaroo_stop",
        policies.Confidence,
        "Liu et al. 2024, arXiv 2404.18911",
        "Stops after the first symbol whose law has no more than 0.6 on its best one.",
        threshold=0.6,
    ),
)
# Static trees are one class: published where, and what the function that gives their parents says.
_STATIC: Mapping[str, tuple[Any, str]] = {
    "medusa": (structures.medusa, "Cai et al. 2024, arXiv 2401.10774"),
    "eagle": (structures.eagle, "Li et al. 2024, arXiv 2401.15077"),
    "specinfer": (structures.expansion, "Miao et al. 2023, arXiv 2305.09781"),
    "sequoia": (structures.sequoia, "Chen et al. 2024, arXiv 2402.12374"),
}
# Functions that make shapes from what was measured, or from sequences.
_SHAPES: Mapping[str, tuple[Any, str, str]] = {
    "expansion": (structures.expansion, "Miao et al. 2023, arXiv 2305.09781", "widths"),
    "calibrated": (structures.calibrated, "Cai et al. 2024, arXiv 2401.10774", "measured accuracies"),
    "sequoia_sized": (structures.sequoia_sized, "Chen et al. 2024, arXiv 2402.12374", "measured costs"),
    "pack": (structures.pack, "Cheng et al. 2024, arXiv 2403.09919", "sequences"),
}


class Lent(NamedTuple):
    """What a generator lends to the methods it makes by name: its own target, and a draft model."""

    target: Any = None
    draft: Any = None


_NOTHING = Lent()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method: its name, what it promises, what it needs, where it is published.

    ``exactness`` is the verifier's promise; what is no verifier never changes what a verifier promises, so
    there it is "any". ``needs`` is what has to be there beside the name, "" for nothing. ``base`` is the name
    of the method that a preset is made of, with ``settings``; "" for a method of its own. ``package`` is
    where it comes from.
    """

    name: str
    kind: Kind
    exactness: str
    trained: bool
    streams: tuple[str, ...]
    paper: str
    summary: str
    method: Any
    needs: str = ""
    base: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    package: str = "multispec"

    def to_dict(self) -> dict[str, Any]:
        """All but the class, ready for JSON."""
        named = ("name", "kind", "exactness", "trained", "streams", "paper", "summary", "needs", "base")
        return {name: getattr(self, name) for name in (*named, "package", "file")}

    @property
    def file(self) -> str:
        """The file that holds it, as it is called in the source: ``multispec/drafters/rest.py``."""
        return f"{self.method.__module__.replace('.', '/')}.py"

    @property
    def by_name(self) -> bool:
        """True when the name alone makes it."""
        if not inspect.isclass(self.method):
            return False
        return self.method is not drafters.LLMA and not _required(self.method) or bool(self.settings)

    def make(self, options: str = "", lent: Lent = _NOTHING) -> Any:
        """The method with its settings, and with ``options``: what it needs, or ``key=value,key=value``.

        Raises:
            UnknownNameError: a setting that it does not have.
            UsageError: what it needs is not there, or an option that cannot be read.

        >>> find("verifier", "budget").make("per_token=0.1").per_token
        0.1
        """
        if not inspect.isclass(self.method):
            raise self._lacking()
        given = {**self.settings, **_read(self, options)}
        for name in _required(self.method):
            if name not in given:
                given[name] = self._lend(name, lent)
        if self.method is drafters.LLMA and not {"references", "remember"} & {*given}:
            raise self._lacking()
        return self.method(**given)

    def _lend(self, name: str, lent: Lent) -> Any:
        """A draft model for what is trained, else the target's own; for a drafter what costs nothing."""
        if name == "drafter":
            return make("drafter", _INNER)
        own = getattr(lent.target, "model", None)
        found = {"model": lent.draft if self.trained else own, "target": lent.target}.get(name)
        if found is None:
            raise self._lacking()
        return found

    def _lacking(self) -> UsageError:
        where = self.method.__module__.rpartition(".")[0]
        return UsageError(
            f"{self.kind}={self.name!r} needs {self.needs}. It was given nothing. Or pass an object: "
            f"{where}.{self.method.__name__}(...)."
        )


def _required(method: Any) -> tuple[str, ...]:
    """The settings without a default."""
    if not dataclasses.is_dataclass(method):
        return ()
    missing = dataclasses.MISSING
    return tuple(
        one.name
        for one in dataclasses.fields(method)
        if one.init and one.default is missing and one.default_factory is missing
    )


def _read(entry: Entry, options: str) -> dict[str, Any]:
    """``VALUE,key=value`` as settings."""
    found: dict[str, Any] = {}
    for part in options.split(",") if options else []:
        key, equals, value = part.partition("=")
        if equals:
            found[key] = _setting(entry, key, value)
        elif found:
            raise UsageError(
                f"Options are key=value behind the first: got {part!r} in {entry.name}:{options}."
            )
        else:
            found |= _value(entry, part)
    return found


def _setting(entry: Entry, key: str, text: str) -> Any:
    types = {one.name: str(one.type) for one in dataclasses.fields(entry.method) if one.init}
    if key not in types:
        raise UnknownNameError(f"setting of {entry.name}", key, types)
    if text == "none" and "None" in types[key]:
        return None
    if "Drafter" in types[key]:
        made = [make("drafter", name) for name in text.split("+")]
        return tuple(made) if "Sequence" in types[key] or "tuple" in types[key] else made[0]
    words: Mapping[str, Callable[[str], Any]] = {"bool": _truth, "int": int, "float": float}
    kinds = types[key].replace(" ", "").split("|")
    readers = [read for word, read in words.items() if word in kinds]
    several = [
        read for word, read in words.items() if kinds[0] in (f"Sequence[{word}]", f"tuple[{word},...]")
    ]
    try:
        if several:
            return tuple(several[0](one) for one in text.split("+"))
        return readers[0](text) if readers else text
    except ValueError as error:
        raise UsageError(
            f"{entry.name}:{key}= takes {types[key]}: got {text!r}. Pass such a value."
        ) from error


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _value(entry: Entry, text: str) -> dict[str, Any]:
    """What stands alone: the path of a datastore whose texts are the references, or the one thing needed."""
    names = [one.name for one in dataclasses.fields(entry.method) if one.init]
    if "references" in names:
        store = drafters.Datastore(Path(text))
        size = {"vocab_size": store.vocab_size} if "vocab_size" in names else {}
        return {"references": store.texts(), **size}
    if len(_required(entry.method)) != 1:
        raise UsageError(
            f"{entry.name} takes options as {entry.name}:key=value: got {text!r}, expected one of {names}. "
            "Name the setting."
        )
    return {(key := _required(entry.method)[0]): _setting(entry, key, text)}


def catalog() -> tuple[Entry, ...]:
    """Every drafter, verifier, policy and structure; presets behind the methods that they are made of.

    >>> [entry.name for entry in catalog() if entry.exactness == "seed"]
    ['coupled', 'exponential_races']
    """
    return _catalog(tuple(sys.path))


@lru_cache(maxsize=1)
def _catalog(path: tuple[str, ...]) -> tuple[Entry, ...]:
    """The table; other packages are looked for anew when the ``path`` that they are found on has changed."""
    found = [*_ours(), *_structures()]
    taken = {(one.kind, one.name) for one in found}
    for one in _theirs():
        if (one.kind, one.name) in taken:
            _left_out(one.package, f"there is a {one.kind} {one.name!r} already. Give it another name")
        else:
            taken.add((one.kind, one.name))
            found.append(one)
    return tuple(sorted(found, key=lambda one: (KINDS.index(one.kind), one.base or one.name, bool(one.base))))


def _ours() -> Iterator[Entry]:
    for verb, (kind, package) in _VERBS.items():
        for name in package.__all__:
            method = getattr(package, name)
            if inspect.isclass(method) and _declares(method, verb):
                base = _entry(method, kind)
                yield base
                yield from (_of_preset(one, base) for one in PRESETS if one.method is method)


def _declares(method: Any, verb: str) -> bool:
    return callable(getattr(method, verb, None)) and isinstance(getattr(method, "paper", None), str)


def _entry(method: Any, kind: Kind, package: str = "multispec") -> Entry:
    name = str(method.name)
    return Entry(
        name=name,
        kind=kind,
        exactness=method.exactness if kind == "verifier" else "any",
        trained=bool(getattr(method, "trained", False)) if kind == "drafter" else False,
        streams=_ONLY.get(method, tuple(getattr(method, "streams", STREAMS))),
        paper=method.paper,
        summary=(method.__doc__ or "").strip().partition("\n")[0],
        method=method,
        needs=_needs(method).format(name=name),
        package=package,
    )


def _needs(method: Any) -> str:
    """What it says itself, or what its settings without a default say."""
    said = _NEEDS.get(method, str(getattr(method, "needs", "")))
    if said:
        return said
    missing = dict.fromkeys(_WANTED.get(one, f"{{name}}:{one}=...") for one in _required(method))
    return ", and ".join(one for one in missing if one)


# Settings without a default that are not words: a drafter is lent one.
_WANTED = {
    "model": _MODEL,
    "drafter": "",
    "drafters": "{name}:drafters=NAME+NAME",
    "tokenizer": "the tokenizers of both models, which are objects",
    "draft_tokenizer": "the tokenizers of both models, which are objects",
}


def _of_preset(preset: Preset, base: Entry) -> Entry:
    return dataclasses.replace(
        base,
        name=preset.name,
        paper=preset.paper,
        summary=preset.summary,
        base=base.name,
        settings=preset.settings,
        needs="" if preset.settings else base.needs,
    )


def _structures() -> Iterator[Entry]:
    for name, made in structures.STRUCTURES.items():
        one: Any = made()
        shape, paper = _STATIC.get(name, (type(one), str(one.paper)))
        fields = [setting.name for setting in dataclasses.fields(one) if setting.init]
        settings = {key: getattr(one, key) for key in fields} if name in _STATIC else {}
        yield _shape(name, shape, paper, type(one), settings=settings)
    for name, (shape, paper, needs) in _SHAPES.items():
        yield _shape(name, shape, paper, shape, needs=needs)


def _shape(name: str, shape: Any, paper: str, method: Any, **more: Any) -> Entry:
    return Entry(
        name=name,
        kind="structure",
        exactness="any",
        trained=False,
        streams=STREAMS,
        paper=paper,
        summary=(shape.__doc__ or "").strip().partition("\n")[0],
        method=method,
        **more,
    )


def _theirs() -> Iterator[Entry]:
    """The methods of other packages; what cannot be used is left out, and a warning says why."""
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else point.value
        try:
            yield _their(point, package)
        except Exception as error:  # another package's mistake is no reason to stop
            _left_out(package, f"{type(error).__name__}: {error}")


def _their(point: EntryPoint, package: str) -> Entry:
    method = point.load()
    for verb, (kind, _) in _VERBS.items():
        if inspect.isclass(method) and _declares(method, verb):
            return _entry(method, kind, package)
    raise UsageError(
        f"{point.value} is no method: got {type(method).__name__}, expected a class with name, paper and one "
        f"of {', '.join(_VERBS)}. See docs/write_a_drafter.md."
    )


def _left_out(package: str, why: str) -> None:
    warnings.warn(f"A method of {package!r} is left out: {why}.", MethodWarning, stacklevel=2)


def find(kind: Kind, name: str, extra: tuple[str, ...] = ()) -> Entry:
    """The entry of that kind and name; options behind a colon (``rest:FILE``) are passed by.

    Raises:
        UnknownNameError: no such method; names the nearest (among ``extra`` too).
    """
    known = {entry.name: entry for entry in catalog() if entry.kind == kind}
    name = name.partition(":")[0]
    if name not in known:
        raise UnknownNameError(kind, name, [*known, *extra])
    return known[name]


def make(kind: Kind, text: str, lent: Lent = _NOTHING, extra: tuple[str, ...] = ()) -> Any:
    """The method of that kind that ``text`` names, with its options: ``rest:FILE``, ``budget:per_token=0.1``.

    Raises:
        UnknownNameError: no such method, or no such setting.
        UsageError: what it needs is not there.

    >>> make("drafter", "prompt_lookup:max_ngram=5,num_draft_tokens=4").max_ngram
    5
    """
    return find(kind, text, extra).make(text.partition(":")[2], lent)


def why_not(
    drafter: Drafter | None, verifier: Verifier, spec: StreamSpec, greedy: bool, trees: bool = True
) -> str:
    """Why this pair makes no sense on such a stream, in one sentence; "" where it does, or nobody knows.

    ``trees`` says that the target scores drafts that branch.

    >>> why_not(drafters.PromptLookup(), verifiers.Contrastive(), StreamSpec(slots=()), False)[:50]
    'contrastive compares the law of the target with th'
    """
    if drafter is None:
        return ""
    if isinstance(drafter, drafters.Among):
        found = (why_not(one, verifier, spec, greedy, trees) for one in drafter.drafters)
        return next((why for why in found if why), "")
    return pair_trouble(drafter, verifier, greedy) or (
        _why_no_tree(drafter, verifier, trees) if _branches(drafter, spec) else ""
    )


def pair_trouble(drafter: Drafter, verifier: Verifier, greedy: bool = False) -> str:
    """The same for any stream: what a rule has to know of the drafter's law."""
    name = drafter.name
    if _given(drafter) and (isinstance(verifier, verifiers.Contrastive) or _asks_how_sure(verifier)):
        return (
            f"{verifier.name} compares the law of the target with that of the drafter, and {name} drafts "
            "without one: use a drafter that draws, as draft_model or sjd:start=uniform, or another rule, as "
            "cascade_token_v3."
        )
    if isinstance(verifier, verifiers.Optimal | verifiers.SpecHub) and _sized_by_draws(drafter):
        return (
            f"{verifier.name} judges the siblings behind a node together, and how many dyspec draws there "
            "follows from what it drew before: use rejection or traversal, or the structure rsd_c."
        )
    if greedy and _asks_how_sure(verifier):
        return (
            f"{verifier.name} asks how sure the drafter is, and at temperature 0 it always is: use the rule "
            "cascade_token_v3, or a temperature above 0."
        )
    return ""


def _sized_by_draws(drafter: Drafter) -> bool:
    structure = getattr(drafter, "structure", None)
    return isinstance(structure, structures.DySpecTree) and structure.sample


def _why_no_tree(drafter: Drafter, verifier: Verifier, trees: bool) -> str:
    name = drafter.name
    if not trees:
        return f"{name} drafts trees, and this model scores chains only: use {_INSTEAD.get(name, _INNER)}."
    if isinstance(verifier, verifiers.BlockVerification):
        return (
            f"{verifier.name} judges chains, and {name} drafts trees: use traversal, the same rule on trees."
        )
    if isinstance(verifier, verifiers.KSeq) and name == drafters.SjdPac.name:
        return (
            f"{verifier.name} is made for independent siblings, and those of {name} are drawn without "
            "replacement: use traversal or rejection."
        )
    return ""


# What drafts chains in place of a drafter of trees.
_INSTEAD = {
    "cacheback": "cacheback:tree=false",
    "rest": "rest:FILE,tree=false",
    "sjd_pac": "sjd_ac",
    "suffix_decoding": "suffix_decoding_path",
    "token_recycling": "token_recycling:shape=-1+0+1+2",
}


def refuse(
    drafter: Drafter | None, verifier: Verifier, spec: StreamSpec, greedy: bool, trees: bool = True
) -> None:
    """Refuse a pair that makes no sense before anything is computed.

    Raises:
        UnsupportedError: says why, and what would work.
    """
    why = why_not(drafter, verifier, spec, greedy, trees)
    if why:
        raise UnsupportedError(f"This pair cannot be used: {why}")


def iterates(drafter: Drafter) -> bool:
    """True for drafts that are guessed anew with every pass, and better every time.

    >>> iterates(drafters.Jacobi()), iterates(drafters.PromptLookup())
    (True, False)
    """
    return drafter.name in _ITERATING


def _given(drafter: Any) -> bool:
    """True where at least the first symbols come without a law."""
    if drafter.name in _WINDOWS:
        return bool(getattr(drafter, "start", "uniform") != "uniform")
    return drafter.name in _GIVEN or getattr(drafter, "sample", True) is False


def _asks_how_sure(verifier: Verifier) -> bool:
    rule = verifier.deferral if isinstance(verifier, verifiers.Cascade) else ""
    return rule not in ("", "token_v2", "token_v3")


def _branches(drafter: Any, spec: StreamSpec) -> bool:
    """True for drafters of trees, unless their settings or the stream leave chains."""
    if drafter.name not in _BRANCHING or spec.step > 1:
        return False
    shape = getattr(drafter, "shape", None)
    chains = (
        getattr(drafter, "tree", True) is False,
        drafter.name == drafters.SjdPac.name and drafter.width == 1,
        shape is not None and is_chain(shape),
    )
    return not any(chains)
