"""Linear maps made ready for the processor: the same results up to rounding, and what stays as it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner

import multispec as ms
from multispec.cli import _speeds, app, doctor
from multispec.errors import UnknownNameError, UnsupportedError
from multispec.modalities.image.families.janus import Janus
from multispec.modalities.speech.families import csm, musicgen
from multispec.targets import CausalTarget, fast, target_for
from multispec.targets.fast import Maker, modules_of, prepare, replaced, restored, sharing
from multispec.targets.fused import FusedForward
from multispec.targets.parallel_slots import ParallelSlotsTarget
from tests.models import test_csm, test_janus, test_musicgen, zoo

# Of every kind that there is: Conv1D, three projections, one for all three, experts, a state, an encoder.
NAMES = ("gpt2", "opt", "gemma2", "mixtral", "mamba", "bloom", "t5", "whisper")


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of any size are made ready, and there is memory for it."""
    monkeypatch.setattr(fast, "_FROM", dict.fromkeys(fast.FAST, 0))
    monkeypatch.setattr(fast, "free_memory", lambda: None)


@pytest.fixture
def inference() -> Iterator[None]:
    """Maps run where the loop runs them."""
    with torch.inference_mode():
        yield


@cache
def ready(name: str, way: str) -> Any:
    """A target over a model of its own, made ready."""
    return target_for(zoo.build(name), owned=True, fast=way)


def ours(name: str, **changes: Any) -> Any:
    """A target of a model that is ours to change."""
    return target_for(zoo.build(name, **changes), owned=True)


def changed(model: nn.Module) -> list[nn.Module]:
    """The modules that were given another forward."""
    return [module for module in model.modules() if "forward" in vars(module)]


def linears(model: nn.Module) -> int:
    return sum(isinstance(module, (nn.Linear, Conv1D)) for module in model.modules())


def tokens(target: Any, name: str, **settings: Any) -> list[int]:
    settings = {"max_new_tokens": 10, "drafter": None} | settings
    found: list[int] = ms.Generator(target).generate(zoo.prompt(name), **settings).tokens.tolist()
    return found


# ---- the same results ----


@pytest.mark.parametrize("name", NAMES)
def test_modules_made_ready_emit_the_same_symbols(name: str, unchecked: None) -> None:
    """Greedy and sampled, plain and drafted: what the model emits as it is."""
    target = ready(name, "auto")
    assert changed(target.model), target.capabilities.weights
    assert not target.capabilities.changes
    for temperature in (0.0, 0.9):
        sampling = ms.Sampling(temperature=temperature, seed=3)
        plain = zoo.generator(name).generate(
            zoo.prompt(name), max_new_tokens=10, drafter=None, sampling=sampling
        )
        for drafter in (None, "prompt_lookup"):
            assert tokens(target, name, drafter=drafter, sampling=sampling) == plain.tokens.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_map_is_counted(name: str) -> None:
    maker = Maker("auto")
    model = zoo.build(name)
    replaced([model], maker)
    assert maker.prepared.done + maker.prepared.kept.total() == linears(model)
    assert maker.prepared.done == len(changed(model))


@pytest.mark.parametrize("name", ["opt", "phi", "llama"])
def test_logits_move_by_rounding_only(name: str, inference: None) -> None:
    ids = torch.tensor([zoo.IDS])
    with torch.inference_mode(False):
        own, other = zoo.shared(name), CausalTarget(zoo.build(name), owned=True, fused=False).model
    assert torch.allclose(other(ids).logits, own(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wide", [True, False])
def test_a_single_row_is_the_same_on_both_kinds_of_processors(
    wide: bool, monkeypatch: pytest.MonkeyPatch, inference: None
) -> None:
    monkeypatch.setattr(fast, "wide_vectors", lambda: wide)
    weight, bias = torch.randn(24, 16), torch.randn(24)
    run = fast.packed(weight, bias)
    for shape in ((16,), (1, 1, 16), (2, 3, 16), (0, 16)):
        x = torch.randn(*shape)
        assert torch.allclose(run(x), F.linear(x, weight, bias), atol=1e-5)


# ---- one product for several maps ----


class Attention(nn.Module):
    """Three projections: of one input, or the last two of another (across)."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 8, bias=bias), nn.Linear(8, 4, bias=False)
        self.v_proj = nn.Linear(8, 4, bias=bias)

    def forward(self, x: Tensor, states: Tensor | None = None) -> Tensor:
        """All three, side by side."""
        states = x if states is None else states
        parts: list[Tensor] = [self.q_proj(x), self.k_proj(states), self.v_proj(states)]
        return torch.cat(parts, -1)


@pytest.mark.parametrize("bias", [True, False])
def test_maps_of_one_input_become_one_product(bias: bool, inference: None) -> None:
    with torch.inference_mode(False):
        whole = Attention(bias)
    x, other = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    expected, across = whole(x), whole(x[:, :1], other[:, :1])
    assert sharing(whole, lambda: whole(x)) == [[whole.q_proj, whole.k_proj, whole.v_proj]]
    maker = Maker("auto")
    replaced([whole], maker, sharing(whole, lambda: whole(x)))
    assert maker.prepared.done == 3 and not maker.prepared.kept
    assert torch.allclose(whole(x), expected, atol=1e-5)
    assert torch.allclose(whole(x[:, :1], other[:, :1]), across, atol=1e-5), "another input is not shared"
    assert torch.allclose(whole.k_proj(other), F.linear(other, whole.k_proj.weight), atol=1e-5)
    restored(whole.modules())
    assert not changed(whole) and torch.equal(whole(x), expected)


def test_maps_of_different_inputs_stay_apart() -> None:
    whole = Attention()
    x = torch.randn(1, 3, 8)
    assert sharing(whole, lambda: whole(x, x.clone())) == []
    assert sharing(whole, lambda: None) == [], "nobody saw them"
    whole.k_proj.register_forward_hook(lambda *_: None)
    assert sharing(whole, lambda: whole(x)) == [], "a hook wants to see its own"


def test_attention_across_is_not_merged() -> None:
    """The decoder of a BART: one attention over itself, one over what was encoded."""
    model = zoo.build("bart")
    ids = torch.tensor([zoo.IDS])
    groups = sharing(model, lambda: model(input_ids=ids, decoder_input_ids=ids[:, :2]))
    names = {
        name for name, module in model.named_modules() if any(module is one for g in groups for one in g)
    }
    assert names and not any("encoder_attn" in name for name in names)


# ---- what stays as it is ----


def _of_its_own(model: Any) -> None:
    class Mine(nn.Linear):
        pass

    model.add = Mine(4, 4)


def _hooked(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: None)


def _patched(model: Any) -> None:
    module = model.model.layers[0].mlp.down_proj
    module.forward = partial(nn.Linear.forward, module)


def _double(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.double()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_of_its_own, "of class Mine"),
        (_hooked, "with hooks"),
        (_patched, "changed by others"),
        (_double, "float64"),
    ],
)
def test_a_map_that_is_special_is_left_alone(spoil: Any, reason: str) -> None:
    model = zoo.build("llama")
    spoil(model)
    maker = Maker("auto")
    replaced([model], maker)
    assert maker.prepared.kept == {reason: 1}
    assert f"others as they are (1 {reason})" in str(maker.prepared)


def test_small_maps_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    target = ours("opt")
    assert not changed(target.model)
    assert (
        target.capabilities.weights == "0 of 13 linear maps packed for oneDNN, others as they are (13 small)"
    )


def test_a_tied_head_is_made_ready_and_the_embedding_stays(inference: None) -> None:
    with torch.inference_mode(False):
        model = zoo.build("opt", tie_word_embeddings=True)
        assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
        before = model.lm_head.weight.clone()
        target_for(model, owned=True)
    assert "forward" in vars(model.lm_head)
    assert torch.equal(model.model.decoder.embed_tokens.weight, before)


def test_without_memory_for_copies_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fits, and its copies that would not."""
    monkeypatch.setattr(fast, "free_memory", lambda: 64 * 1024)
    target = ours("opt")
    weights = target.capabilities.weights
    assert "without memory for a copy" in weights and 0 < len(changed(target.model)) < linears(target.model)


def test_free_memory_is_read_or_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    file = tmp_path / "meminfo"
    monkeypatch.setattr(fast, "_MEMORY", file)
    assert fast.free_memory() is None, "no such file"
    file.write_text("MemTotal: 9 kB\n")
    assert fast.free_memory() is None, "no such line"
    file.write_text("MemTotal: 9 kB\nMemAvailable:    3 kB\n")
    assert fast.free_memory() == 3072


def test_an_allocation_that_fails_is_a_map_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand more")

    monkeypatch.setattr(fast, "packed", broken)
    target = ours("opt")
    assert "refused: DefaultCPUAllocator: can't allocate memory" in target.capabilities.weights
    assert tokens(target, "opt") == tokens(target_for(zoo.shared("opt")), "opt")


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_map_that_computes_otherwise_is_not_used(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "packed", lambda w, b, plain=None: lambda x: factor * F.linear(x, w, b))
    target = ours("opt")
    assert not changed(target.model) and "(13 computed otherwise)" in target.capabilities.weights


def test_logits_that_differ_bring_the_modules_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_differs", lambda *_: None)
    monkeypatch.setattr(fast, "packed", lambda w, b, plain=None: lambda x: 1.3 * F.linear(x, w, b))
    target = ours("opt")
    assert not changed(target.model) and "since logits differ" in target.capabilities.weights


def test_a_pass_that_raises_brings_the_modules_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_differs", lambda *_: None)
    monkeypatch.setattr(fast, "packed", lambda w, b, plain=None: lambda x: x[..., :1].view(3))
    target = ours("opt")
    assert not changed(target.model) and "since logits differ" in target.capabilities.weights


# ---- whose model it is ----


def test_a_model_that_was_passed_is_not_changed() -> None:
    model = zoo.build("opt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ms.load(model=model).generate(list(zoo.IDS), max_new_tokens=3)
    assert not changed(model)
    for way in ("auto", "int8", "bfloat16"):
        generator = ms.load(model=model, fast=way)
        assert changed(model), "it was asked for"
        assert generator.target.capabilities.weights.startswith("13 of 13 linear maps ")
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()) and len(after) == len(
        before
    )
    ms.load(model=model, fast="off")
    assert not changed(model), "and back"


def test_another_target_of_a_model_leaves_it_as_it_was_made() -> None:
    """A draft by the target's own model, say: nobody asked for its modules back."""
    target = ours("opt")
    before = changed(target.model)
    other = target_for(target.model)
    assert changed(target.model) == before
    assert other.capabilities.weights.endswith("as they are, some made ready by another target of this model")
    twin = copy.deepcopy(target.model)
    with torch.inference_mode():
        ids = torch.tensor([zoo.IDS])
        assert torch.allclose(twin(ids).logits, target.model(ids).logits, atol=1e-4)


def test_a_model_that_is_loaded_by_name_is_made_ready(tmp_path: Path) -> None:
    zoo.build("gpt2").save_pretrained(tmp_path)
    found = ms.load(tmp_path).target
    assert found.capabilities.weights == "9 of 9 linear maps packed for oneDNN"
    assert len(changed(getattr(found, "model"))) == 9  # noqa: B009
    for way, words in (("off", "linear maps as they are"), ("int8", "9 of 9 linear maps in int8")):
        assert ms.load(tmp_path, fast=way).target.capabilities.weights == words
    drafted = ms.load(tmp_path, draft=str(tmp_path), fast="off")
    assert tokens(drafted.target, "gpt2") == tokens(found, "gpt2")


def test_training_uses_the_weights_themselves() -> None:
    model = ours("opt").model
    ids = torch.tensor([zoo.IDS])
    model(ids, labels=ids).loss.backward()
    assert model.model.decoder.layers[0].fc1.weight.grad.abs().sum() > 0
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.weight.mul_(0.5)
        seen = model(ids).logits
        restored(model.modules())
        assert torch.allclose(model(ids).logits, seen, atol=1e-4), "changed weights count"


@pytest.mark.parametrize("way", ["int9", "bfloat", "", "Auto"])
def test_unknown_ways_are_refused(way: str) -> None:
    with pytest.raises(UnknownNameError, match="Known: auto, bfloat16, int8, off"):
        ms.load(model=zoo.shared("opt"), fast=way)
    with pytest.raises(UnknownNameError, match="Unknown fast"):
        ready("opt", "auto").prepare(way)


# ---- fewer bits ----


@pytest.mark.parametrize("way", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "t5"])
def test_fewer_bits_change_results_and_say_so(name: str, way: str) -> None:
    target = ready(name, way)
    can = target.capabilities
    assert f"weights in {way}" in can.changes and f"linear maps in {way}" in can.weights
    result = ms.Generator(target).generate(zoo.prompt(name), max_new_tokens=4)
    assert can.changes in result.report.notes
    if name != "t5":
        moved = float(can.changes.partition("move by ")[2].split()[0])
        assert 1e-4 < moved < 1


@pytest.mark.parametrize("way", ["bfloat16", "int8"])
def test_drafting_changes_nothing_with_fewer_bits(way: str) -> None:
    """What is promised of drafts is promised of this model: its own plain decoding."""
    target = ready("opt", way)
    plain = tokens(target, "opt")
    assert tokens(target, "opt", drafter="prompt_lookup") == plain


def test_eight_bits_of_a_symbol_do_not_depend_on_its_neighbours(inference: None) -> None:
    run = fast.int8(torch.randn(24, 16), torch.randn(24))
    x = torch.randn(1, 9, 16) * torch.rand(9, 1) * 9
    whole = run(x)
    assert all(
        torch.equal(run(x[:, n : n + size]), whole[:, n : n + size]) for n in range(9) for size in (1, 4)
    )


def test_fewer_bits_of_a_fused_model_are_its_own_arithmetic() -> None:
    target = ready("llama", "int8")
    assert target.way == "FusedForward" and not changed(target.model)
    found = CausalTarget(zoo.build("llama"), fast="int8")._forward
    assert isinstance(found, FusedForward) and not changed(found.model)
    assert ready("llama", "off").way == "ModuleForward"


def test_no_kernels_no_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "int8_kernels", lambda: False)
    with pytest.raises(UnsupportedError, match='fast="int8" needs a torch that was built with 8-bit kernels'):
        target_for(zoo.shared("llama"), fast="int8")


def test_a_machine_without_onednn_runs_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    target = ours("opt")
    assert not changed(target.model) and "(13 without oneDNN)" in target.capabilities.weights
    assert (
        target_for(zoo.build("opt"), fast="bfloat16").capabilities.weights
        == "13 of 13 linear maps in bfloat16"
    )


# ---- targets of pictures and speech ----


def _janus() -> Any:
    return Janus.from_model(test_janus.build(6), test_janus.processor()).target


def _musicgen() -> Any:
    slots = musicgen.MusicgenSlots(copy.deepcopy(test_musicgen.model_of("plain")))
    return ParallelSlotsTarget(slots, test_musicgen.family_of("plain").target.spec)


def _csm() -> Any:
    return csm._target(test_csm.build(), test_csm.family().target.spec)


@pytest.mark.parametrize("make", [_janus, _musicgen, _csm])
def test_targets_of_pictures_and_speech_have_their_modules_replaced(make: Any) -> None:
    target = make()
    modules = list(modules_of(target))
    assert modules and not any(map(changed, modules))
    assert not target.capabilities.weights
    prepare(target, "auto")
    done = {id(one) for module in modules for one in changed(module)}
    assert target.capabilities.weights.startswith(f"{len(done)} of ") and done
    prepare(target, "int8")
    assert target.capabilities.changes == "weights in int8"
    prepare(target, "off")
    assert not any(map(changed, modules)) and not target.capabilities.changes


def test_a_target_without_modules_stays() -> None:
    table = ms.testing.TableModel(5)
    assert prepare(table, "int8") is table
    assert target_for(table, fast="auto") is table


# ---- doctor ----


def _found(name: str) -> str:
    return next(one.found for one in doctor.examine() if one.name == name)


@pytest.mark.parametrize(
    ("level", "cores", "onednn", "said"),
    [
        ("AVX512", 8, True, "AVX512, 8 cores"),
        ("AVX2", 4, True, "AVX2, 4 cores; no AVX-512: weights reordered for oneDNN from two symbols on"),
        ("DEFAULT", 1, False, "DEFAULT, 1 core; no oneDNN: linear maps with weights as they are"),
        ("AVX2", 1, True, "draft and target share the core"),
    ],
)
def test_doctor_says_what_the_processor_has(
    level: str, cores: int, onednn: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert said in fast.processor()
    assert doctor._processor().found == fast.processor()
    assert ("not available here" in doctor._packing().found) is not onednn


def test_doctor_says_what_is_slower_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "packs_bfloat16", lambda: False)
    monkeypatch.setattr(fast, "int8_kernels", lambda: False)
    said = fast.processor()
    assert 'fast="bfloat16" is slower than float32' in said and 'fast="int8" is refused' in said


def test_doctor_counts_the_maps_of_the_embedded_models() -> None:
    found = doctor._embedded("text").found
    assert "present, run as" in found and ("linear maps" in found or "matrices" in found)


def test_doctor_measures_what_the_ways_cost(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    """Each way against another one; a way that the machine lacks is left out."""
    ways = [
        way for way in _speeds._WAYS if way[0] in ('fast="off"', "fused, weights as they are", 'fast="int8"')
    ]
    monkeypatch.setattr(_speeds, "_WAYS", ways)
    found = list(_speeds.speeds(1))
    assert [one.name for one in found] == [name for name, _, against in _speeds._WAYS if against]
    assert all(len(one.ratios) == 3 and min(one.ratios) > 0 for one in found)
    monkeypatch.setattr(_speeds, "_WAYS", [ways[0], ways[2]])
    monkeypatch.setattr(fast, "int8_kernels", lambda: False)
    assert list(_speeds.speeds(1)) == []
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Finding(name="python", found="3")]))
    monkeypatch.setattr(_speeds, "speeds", lambda: iter(found))
    shown = json.loads(_run("doctor", "--measure", "--json").stdout)
    assert [one["name"] for one in shown["speeds"]] == [one.name for one in found]
    assert found[0].name in _run("doctor", "--measure").stdout
    monkeypatch.setattr(doctor, "_present", lambda name: False)
    assert json.loads(_run("doctor", "--measure", "--json").stdout)["speeds"] == []
    assert "speeds" not in json.loads(_run("doctor", "--json").stdout)


# ---- the command line ----


def _run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_the_commands_take_it() -> None:
    result = _run("text", "Once", "--fast", "int8", "--max-new-tokens", "3", "--json")
    assert any("weights in int8" in note for note in json.loads(result.stdout)["report"]["notes"])
    for command in ("text", "image", "speech"):
        wrong = _run(command, "Once", "--fast", "int9")
        assert wrong.exit_code == 2 and "Did you mean 'int8'" in wrong.stderr
