"""``load``: a model by name, folder or object, with the modality that fits it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from transformers import PreTrainedConfig

from multispec.errors import ModelLoadError, UnknownNameError, UnsupportedError, UsageError
from multispec.generator import Generator
from multispec.modalities.image import families as image_families
from multispec.modalities.speech import families as speech_families
from multispec.modalities.speech import transcribe
from multispec.modalities.speech.refused import refuse
from multispec.modalities.text import Text, load_tokenizer
from multispec.policies.kept_costs import KeptCosts
from multispec.protocols import Target
from multispec.targets import deterministic as in_one_shape
from multispec.targets import target_for
from multispec.targets.fast import check_fast, prepare
from multispec.targets.loading import load_config, load_model
from multispec.targets.threads import set_threads

EMBEDDED = ("text", "image", "speech")
# What a model of no family does not do.
_LACKS = {"image": "draws no pictures", "speech": "speaks no codes of a codec"}


def assets() -> Path:
    """The folder of the embedded models."""
    return Path(str(resources.files("multispec.assets")))


def load(
    name_or_path: str | Path | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    modality: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    draft: Any = None,
    fast: str | None = None,
    deterministic: bool = False,
    threads: int | str | None = None,
    trust_remote_code: bool = False,
) -> Generator:
    """A generator from embedded models ("text", "image", "speech"), a folder or hub id, or a model you have.

    The modality follows from the model's config unless it is given. ``draft`` is the model that
    ``drafter="auto"`` drafts with: a model, a folder or a hub id. Without a tokenizer, prompts are ids.
    A Whisper is given sounds and writes what it hears (``modalities.speech.transcribe``); a Whisper object
    needs its processor as ``tokenizer``, and with ``modality="text"`` its prompts are ids.

    ``fast`` says how linear maps are made ready for the processor. "auto", for all that is loaded by its
    name, holds weights once more in the order that oneDNN likes best, also in the modules of the model, which
    changes results by rounding only; "off" leaves the model's modules as they are. "bfloat16" and "int8" hold
    weights in fewer bits beside the full ones and change results: reports and ``target.capabilities.changes``
    say so. A map that does not fit stays as it is: ``target.capabilities.weights`` and ``multispec doctor``
    count them with the reasons. A ``model`` that you pass is never changed unless you name a way yourself.

    ``deterministic`` pads every pass to one shape and runs each row by itself, so that plain and speculative
    decoding, alone or in a batch, give the same bits in half precision too (in float32 they round otherwise,
    which changes no symbol). It belongs to the model and not to a request: shapes, costs and the check that
    this machine's kernels keep the bits are those of the model. Drafts are chains then. What it costs is
    printed by ``multispec doctor --measure``.

    ``threads`` is how many threads torch uses from now on, in the whole program: a number, or "auto" for the
    one that runs this model fastest, found in a second by taking turns. Without it nothing is set.

    Raises:
        UsageError: neither or both of a name and a model; a modality or a way of ``fast`` that nobody knows;
            no number of threads.
        UnsupportedError: ``modality="image"`` or "speech" for a model that draws or speaks nothing;
            ``deterministic`` for one whose passes cannot be padded, as with a recurrent state or an encoder.
        ModelLoadError: the model cannot be read.

    >>> generator = load("text")                                               # doctest: +SKIP
    """
    if (name_or_path is None) == (model is None):
        raise UsageError(
            "multispec.load needs a name or a model, one of them: load('text'), load('folder-or-hub-id'), or "
            "load(model=model, tokenizer=tokenizer)."
        )
    if modality not in (None, *EMBEDDED):
        raise UnknownNameError("modality", modality, EMBEDDED)
    if fast is not None:
        check_fast(fast)
    where = _Where(device, dtype, trust_remote_code, fast)
    if model is None:
        made = _load_named(name_or_path, tokenizer, modality, draft, where)
    else:
        made = _load_object(model, tokenizer, modality, draft, where)
    if deterministic:
        in_one_shape(made.target)
    if threads is not None:
        set_threads(threads, made.target)
    held = dtype if model is None else next(model.parameters()).dtype
    kind = f"{name_or_path or type(model).__name__} {held or ''} {fast or ''}"
    made.methods.costs = KeptCosts(made.target, kind)
    return made


class _Where(NamedTuple):
    """How a model is read."""

    device: Any
    dtype: Any
    trust_remote_code: bool
    fast: str | None = None

    @property
    def read(self) -> dict[str, Any]:
        """What a reader of checkpoints is told."""
        return {"device": self.device, "dtype": self.dtype, "trust_remote_code": self.trust_remote_code}

    @property
    def way(self) -> str:
        """How what is loaded by its name is made ready."""
        return self.fast or "auto"


def _load_object(model: Any, tokenizer: Any, modality: str | None, draft: Any, where: _Where) -> Generator:
    """The generator of a model that the caller has."""
    if modality in _LACKS:
        way, adapter = ("draws", "Images") if modality == "image" else ("speaks", "Speech")
        raise UsageError(
            f"A model object does not say how it {way}. Pass its folder or hub id, or build the generator: "
            f"Generator(family.target, {adapter}(family)), with multispec.modalities.{modality}."
        )
    moved = _moved(model, where.device, where.dtype)
    target = target_for(moved, owned=where.fast is not None, fast=where.way)
    if isinstance(draft, (str, Path)):
        draft = _load_draft(draft, where._replace(device=target.device))
    if modality is None and transcribe.hears(model, tokenizer):
        return Generator(target, transcribe.Transcriptions.from_model(model, tokenizer), draft)
    return Generator(target, Text(tokenizer, model) if tokenizer is not None else None, draft)


def _load_named(name: Any, tokenizer: Any, modality: str | None, draft: Any, where: _Where) -> Generator:
    """The generator of a name, a folder or a hub id."""
    asked = draft is not None
    folder, draft = _resolve(name, draft)
    trust_remote_code = where.trust_remote_code
    found = _family(folder, modality, trust_remote_code)
    if found is not None:
        made = _load_media(found, folder, draft, tokenizer, where)
        # A window over a picture saves more calls than the draft model that comes with it, for nothing.
        return made if asked or found.modality != "image" else made.drafting(made.modality.drafter)
    if modality is None and transcribe.fits(_config_of(folder, trust_remote_code)):
        return _load_transcriber(folder, draft, tokenizer, where)
    model = load_model(folder, **where.read)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(folder, trust_remote_code)
    target = target_for(model, owned=True, fast=where.way)
    if isinstance(draft, (str, Path)):
        draft = _load_draft(draft, where._replace(device=target.device))
    return Generator(target, Text(tokenizer, model) if tokenizer is not None else None, draft)


def _load_transcriber(folder: str | Path, draft: Any, tokenizer: Any, where: _Where) -> Generator:
    if tokenizer is not None:
        raise UsageError(
            "A Whisper writes with the tokenizer in its folder: got tokenizer=... too. Leave it out, or pass "
            'modality="text" to give prompts as ids.'
        )
    made = transcribe.load(folder, draft=draft, **where.read)
    _ready(made.target, where.way)
    return made


def _ready(target: Target, fast: str) -> Target:
    """A target of a model that was read here, its linear maps made ready."""
    if fast == "auto" and target.capabilities.weights:
        return target  # it came so
    return prepare(target, fast)


def _resolve(name_or_path: Any, draft: Any) -> tuple[str | Path, Any]:
    name = str(name_or_path)
    if name in EMBEDDED:
        folder = assets() / name
        if not (folder / "target" / "config.json").is_file():
            raise ModelLoadError(
                f"The embedded {name} models are not in this installation ({folder}). Install multispec "
                f"with its assets, or train them: python recipes/train_{name}.py."
            )
        return folder / "target", folder / "draft" if draft is None else draft
    if not Path(name).exists() and "/" not in name and len(name) < 12 and name.isalpha():
        raise UnknownNameError("embedded model or folder", name, EMBEDDED)
    return name, draft


class _Found(NamedTuple):
    """A model of media: its modality, and the entry of its family there."""

    modality: str
    entry: Any


def _family(name_or_path: str | Path, modality: str | None, trust_remote_code: bool) -> _Found | None:
    """The family that this model belongs to, from its config alone; None for text."""
    if modality == "text":
        return None
    if modality != "speech" and (entry := image_families.family_of_file(name_or_path)) is not None:
        return _Found("image", entry)
    config = _config_of(name_or_path, trust_remote_code)
    if config is None:
        return None
    for name, families in (("image", image_families), ("speech", speech_families)):
        if modality in (None, name) and (entry := families.family_of(config)) is not None:
            return _Found(name, entry)
    if modality != "image":
        refuse(config)
    if modality is not None:
        _refuse_modality(name_or_path, config, modality)
    return None


def _refuse_modality(name_or_path: str | Path, config: Any, modality: str) -> NoReturn:
    """Say that a model does not do what was asked of it, and what would."""
    if modality == "speech" and transcribe.fits(config):
        raise UnsupportedError(
            f"{str(name_or_path)!r} is a Whisper, which hears and speaks nothing. Leave the modality out: "
            "multispec.load(...).generate('speech.wav') writes what is said."
        )
    known = image_families.FAMILIES if modality == "image" else speech_families.FAMILIES
    kind = getattr(config, "model_type", None)
    raise UnsupportedError(
        f"{str(name_or_path)!r} is of type {kind!r}, which {_LACKS[modality]}. "
        f"Families that do: {', '.join(one.module for one in known)}."
    )


def _config_of(name_or_path: str | Path, trust_remote_code: bool) -> Any:
    """The config, as a plain one where transformers does not know its type; None where there is none."""
    try:
        return load_config(name_or_path, trust_remote_code=trust_remote_code)
    except ModelLoadError:
        pass
    try:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path)
    except (OSError, ValueError):
        return None
    return PreTrainedConfig.from_dict(found) if found else None


def _load_media(found: _Found, folder: str | Path, draft: Any, tokenizer: Any, where: _Where) -> Generator:
    if tokenizer is not None:
        what = "captions" if found.modality == "image" else "texts"
        raise UsageError(
            f"The {found.entry.module} models read {what} with a tokenizer of their own: got tokenizer=... "
            "too. Leave it out, or put it into the model's folder."
        )
    adapter = _adapter(found.modality)
    family = found.entry.load(folder, **where.read)
    _ready(family.target, where.way)
    if isinstance(draft, (str, Path)):
        draft = _load_draft(draft, where._replace(device=family.target.device))
    return Generator(family.target, adapter(family), draft)


def _adapter(modality: str) -> Any:
    if modality == "speech":
        from multispec.modalities.speech.adapter import Speech

        return Speech
    try:
        from multispec.modalities.image.adapter import Images
    except ImportError as error:
        raise UnsupportedError(
            f"Pictures need the package pillow, which cannot be imported ({error}): "
            "pip install 'multispec[image]'"
        ) from error
    return Images


def _load_draft(draft: Any, where: _Where) -> Any:
    found = _family(draft, None, where.trust_remote_code)
    if found is not None:
        return _ready(found.entry.load(draft, **where.read).target, where.way)
    return target_for(load_model(draft, **where.read), owned=True, fast=where.way)


def _moved(model: Any, device: Any, dtype: Any) -> Any:
    if device is None and dtype is None:
        return model
    return model.to(**{k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None})
