"""Drafters made out of the target itself: exact, in the target's own cache, and each as its paper says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

import multispec as ms
from multispec.drafters import (
    CosineSkip,
    EarlyExit,
    PromptLookup,
    Quantised,
    SkipLayers,
    SparseCache,
    Swift,
    search_layers,
)
from multispec.drafters.layer_search import Space, Tried, expected_speed
from multispec.drafters.quantised import _int4
from multispec.drafters.self_draft import borrowed
from multispec.drafters.sparse_cache import SELECTIONS
from multispec.errors import UnknownNameError, UnsupportedError, UsageError
from multispec.history import History
from multispec.processing import Pipeline
from multispec.protocols import Budget, Context, Drafter, Request
from multispec.sampling import CounterNoise, Noise, Sampling
from multispec.stream import Draft, Prompt
from multispec.targets import CausalTarget, target_for
from multispec.targets.fast import int8
from multispec.targets.masks import Pass
from multispec.targets.ragged import RaggedSession
from multispec.targets.views import Modules, Sublayers, Watch
from multispec.testing import SlotTableModel, TableModel, enumerate_law, play, row
from multispec.verifiers import Rejection
from tests.models import zoo

LAYERS, VOCABULARY = 4, 24
PROMPTS = ((5, 9, 3, 7, 5, 9, 3), (4, 6), (8, 1, 2, 8, 1, 2, 8, 1, 2, 8, 11))
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GROUPED: dict[str, Any] = {"intermediate_size": 48, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Sessions run where the loop runs them."""
    with torch.inference_mode():
        yield


@cache
def model(family: str, vocab_size: int = VOCABULARY) -> Any:
    torch.manual_seed(3)
    shape = {**_SHAPE, "vocab_size": vocab_size}
    if family == "gpt2":
        config = transformers.GPT2Config(**shape, n_positions=256)
        return transformers.GPT2LMHeadModel(config).eval()
    stem = {"llama": "Llama", "qwen3": "Qwen3"}[family]
    extra = {"head_dim": 8} if family == "qwen3" else {}
    config = getattr(transformers, f"{stem}Config")(**shape, **_GROUPED, **extra)
    return getattr(transformers, f"{stem}ForCausalLM")(config).eval()


@cache
def target(family: str) -> CausalTarget:
    found = target_for(model(family))
    assert isinstance(found, CausalTarget)
    return found


FAMILIES = ("llama", "qwen3", "gpt2")
DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "evenly": lambda: SkipLayers(share=0.5, num_draft_tokens=4),
    "named": lambda: SkipLayers(attention=(1, 3), mlp=(2, 3), num_draft_tokens=4),
    "swift": lambda: Swift(window=4, bayes_interval=3, num_draft_tokens=4),
    "cosine": lambda: CosineSkip(num_draft_tokens=4),
    "exit": lambda: EarlyExit(num_draft_tokens=4),
    "late_exit": lambda: EarlyExit(3, num_draft_tokens=4, reuse=False),
    "int8": lambda: Quantised(num_draft_tokens=4),
    "int4": lambda: Quantised("int4", num_draft_tokens=4),
    "streaming": lambda: SparseCache(budget=12, sinks=2, refresh=5, num_draft_tokens=4),
    "snapkv": lambda: SparseCache("snapkv", budget=44, refresh=6, num_draft_tokens=4),
    "retrieval": lambda: SparseCache("retrieval", budget=40, refresh=6, num_draft_tokens=4),
}
LONG = tuple((7 * n * n + n) % VOCABULARY for n in range(60))


@cache
def rows() -> list[dict[str, Any]]:
    """Two short ragged rows and a long one; greedy and sampled."""
    prompts = (*PROMPTS[:2], LONG)
    temperatures = (0.0, 0.9, 0.8)
    return [
        {
            "prompt": ids,
            "max_new_tokens": 10 + 3 * n,
            "sampling": Sampling(temperature=temperature, seed=n),
        }
        for n, (ids, temperature) in enumerate(zip(prompts, temperatures, strict=True))
    ]


@cache
def plainly(family: str) -> list[list[int]]:
    return [found.tokens.tolist() for found in play(target(family), *(row(**one) for one in rows()))]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("llama", name) for name in DRAFTERS),
        *(("qwen3", name) for name in ("named", "exit", "int8")),
        *(("gpt2", name) for name in ("named", "exit", "int4", "streaming", "snapkv")),
    ],
)
def test_the_same_symbols_with_any_part_of_the_target(family: str, name: str) -> None:
    """Coupled, seed by seed, greedy and sampled: a ragged batch, and its long row alone."""
    drafter = DRAFTERS[name]()
    found = play(target(family), *(row(drafter=drafter, **one) for one in rows()))
    found += play(target(family), row(drafter=drafter, **rows()[-1]))
    expected = [*plainly(family), plainly(family)[-1]]
    assert [one.tokens.tolist() for one in found] == expected
    assert not any(one.report.drafter_failures for one in found)
    assert sum(one.report.accepted for one in found) > 10


@pytest.mark.parametrize("name", ["named", "swift", "exit", "int8", "retrieval"])
def test_drawn_with_noise_of_its_own(name: str) -> None:
    """Under rejection every q is a law that its symbol was drawn from, and nothing fails."""
    settings = [{**one, "drafter": DRAFTERS[name](), "verifier": Rejection()} for one in rows()[1:]]
    found = play(target("llama"), *(row(**one) for one in settings))
    assert not any(one.report.drafter_failures for one in found)
    assert sum(one.report.accepted for one in found) > 4


@cache
def tiny() -> CausalTarget:
    """Three symbols, in double precision."""
    return CausalTarget(copy.deepcopy(model("llama", 3)).double())


@cache
def joint() -> dict[tuple[int, ...], float]:
    """The law of two symbols behind the prompt, from the target's logits, which are near the model's."""
    law = {}
    for pair in product(range(3), repeat=2):
        session = tiny().begin([Prompt(ids=torch.tensor([1, 0, 2]))], [9], 4)
        logits = torch.cat([session.prefill().logits[0], session.extend([0], [pair[0]])[0]])
        theirs = tiny().model(input_ids=torch.tensor([[1, 0, 2, pair[0]]])).logits[0, -2:]
        torch.testing.assert_close(logits, theirs, rtol=1e-5, atol=1e-6)
        probs = logits.softmax(-1)
        law[pair] = float(probs[0, pair[0]] * probs[1, pair[1]])
    return law


@pytest.mark.parametrize(
    "drafter",
    [
        SkipLayers(num_draft_tokens=2),
        Swift(window=1, remember=False, num_draft_tokens=2),
        EarlyExit(num_draft_tokens=2),
        SparseCache(budget=2, sinks=1, num_draft_tokens=2),
    ],
    ids=lambda drafter: str(drafter.name),
)
def test_rejection_gives_the_law_of_the_target(drafter: Drafter) -> None:
    """Every draw explored, through the real loop: the target's joint law to 1e-9."""

    def run(noise: Noise) -> tuple[int, ...]:
        asked = row((1, 0, 2), drafter=drafter, verifier=Rejection(), noise=noise, max_new_tokens=2)
        return tuple(play(tiny(), asked)[0].tokens.tolist())

    found = enumerate_law(run, horizon=2)
    assert found.keys() == joint().keys()
    assert max(abs(found[pair] - joint()[pair]) for pair in found) < 1e-9


# ---- the target and its cache stay as they were ----


def opened(family: str, ids: tuple[int, ...] = LONG, room: int = 40) -> tuple[RaggedSession, Context]:
    """A session behind a prompt, and the context that a drafter is given."""
    whole = target(family)
    prompt = Prompt(ids=torch.tensor(ids))
    session = whole.begin([prompt], [len(ids) + room], 256)
    assert isinstance(session, RaggedSession)
    session.prefill()
    context = Context(
        prompts={0: prompt},
        capacity={0: len(ids) + room},
        vocab_size=VOCABULARY,
        device=whole.device,
        target=whole,
        session=session,
    )
    return session, context


def asked(ids: tuple[int, ...], generated: tuple[int, ...] = (3,), nodes: int = 4) -> Request:
    """A greedy request behind some symbols, the last of which is not run yet."""
    history = History(list(ids))
    history.extend(generated)
    pipeline = Pipeline(Sampling(temperature=0), VOCABULARY)
    return Request(0, history, Budget(nodes), CounterNoise(0), pipeline, True)


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_cache_of_the_target_is_handed_back(name: str) -> None:
    """After a draft, the committed entries are untouched and the next pass scores what a fresh one would."""
    session, context = opened("llama")
    layers = session.cache.ragged
    before = [layer.keys[:, :, : len(LONG)].clone() for layer in layers]
    draft = DRAFTERS[name]().begin(context).propose([asked(LONG)])[0]
    assert len(draft) == 4
    assert session.length(0) == len(LONG)
    pairs = zip(before, layers, strict=True)
    assert all(torch.equal(keys, layer.keys[:, :, : len(LONG)]) for keys, layer in pairs)
    found = session.score([0], [3], [draft]).logits[0]
    expected = opened("llama")[0].score([0], [3], [draft]).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_draft_that_breaks_gives_the_cache_back() -> None:
    session, _ = opened("llama")
    with pytest.raises(RuntimeError, match="half-way"), borrowed(session):
        session.extend([0], [1])
        raise RuntimeError("half-way")
    assert session.length(0) == len(LONG)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_not_touched(family: str) -> None:
    """Views share weights; the model keeps its modules, the numbers of its layers, and its logits."""
    whole = model(family)
    modules = dict(whole.named_modules())
    ids = torch.tensor([PROMPTS[0]])
    before = whole(input_ids=ids).logits
    views = Modules(whole, LAYERS)
    lighter = views.without(Sublayers(frozenset({0, 2}), frozenset({2, 3})))
    watched = views.observing(Watch())
    twin = views.with_linear(lambda weight, bias: lambda x: F.linear(x, weight, bias))
    assert not torch.allclose(lighter(input_ids=ids).logits, before)
    for view in (watched, twin):
        torch.testing.assert_close(view(input_ids=ids).logits, before)
    assert {id(p) for p in lighter.parameters()} <= {id(p) for p in whole.parameters()}
    assert dict(whole.named_modules()) == modules
    assert torch.equal(whole(input_ids=ids).logits, before)
    assert whole.config._attn_implementation == "sdpa"


def alone(forward: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Logits behind ``ids`` by a forward that ran them all itself."""
    prompt = Prompt(ids=torch.tensor(ids))
    return RaggedSession(forward, [prompt], [len(ids)], 4).prefill().logits[0]


@pytest.mark.parametrize("fused", [True, False])
def test_leaving_out_layers_is_a_model_without_them(fused: bool) -> None:
    """Less layers 1 and 2: the logits of a model built of layers 0 and 3 alone, in both ways of running."""
    forward: Any = CausalTarget(model("llama"), fused=fused)._forward
    config = copy.deepcopy(model("llama").config)
    config.num_hidden_layers = 2
    short = transformers.LlamaForCausalLM(config).eval()
    weights = model("llama").state_dict()
    kept = {name.replace("layers.3.", "layers.1."): w for name, w in weights.items() if "layers.3" in name}
    short.load_state_dict({**weights, **kept}, strict=False)
    expected = short(input_ids=torch.tensor([PROMPTS[0]])).logits[:, -1]
    found = alone(forward.without(Sublayers.whole([1, 2])), PROMPTS[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---- early exit ----


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exit_is_the_head_on_an_early_hidden_state(family: str) -> None:
    """The first drafted symbol is the argmax of norm and head on the hidden state of layer E."""
    whole = model(family)
    _, context = opened(family)
    draft = EarlyExit(2).begin(context).propose([asked(LONG)])[0]
    hidden = whole(input_ids=torch.tensor([[*LONG, 3]]), output_hidden_states=True).hidden_states[2][0, -1]
    norm = whole.transformer.ln_f if family == "gpt2" else whole.model.norm
    assert draft.ids[0] == int(whole.lm_head(norm(hidden)).argmax())


def widths(session: RaggedSession, draft: Draft) -> list[int]:
    """How many symbols each layer ran in the pass that verifies a draft."""
    seen: list[int] = []
    for layer in session.cache.ragged:

        def update(key: Any, value: Any, *, of: Any = layer.update) -> Any:
            seen.append(key.shape[2])
            return of(key, value)

        layer.update = update  # type: ignore[method-assign, assignment]
    session.score([0], [3], [draft])
    return seen


def test_verification_goes_on_from_the_exit() -> None:
    """Layers before the exit run the last drafted symbol alone; with another draft they run all of them."""
    drafter = EarlyExit(2)
    session, context = opened("llama")
    draft = drafter.begin(context).propose([asked(LONG)])[0]
    assert widths(session, draft) == [1, 1, 5, 5]
    session, context = opened("llama")
    draft = drafter.begin(context).propose([asked(LONG)])[0]
    other = Draft.chain([(draft.ids[0] + 1) % VOCABULARY, *draft.ids[1:]])
    assert widths(session, other) == [5, 5, 5, 5]
    session, context = opened("llama")
    draft = EarlyExit(2, reuse=False).begin(context).propose([asked(LONG)])[0]
    assert widths(session, draft) == [5, 5, 5, 5]


def test_rows_that_draft_otherwise_are_run_from_the_first_layer() -> None:
    """One row exits early, one copies, one drafts nothing: every row as alone."""
    drafters = [EarlyExit(2), PromptLookup(), None]
    asks = [{**one, "drafter": drafter} for one, drafter in zip(rows(), drafters, strict=True)]
    found = play(target("llama"), *(row(**one) for one in asks))
    assert [one.tokens.tolist() for one in found] == plainly("llama")
    assert found[0].report.accepted > 0


# ---- searches ----


@cache
def idle() -> CausalTarget:
    """A Llama whose layer 1 adds nothing."""
    whole = copy.deepcopy(model("llama"))
    whole.model.layers[1].self_attn.o_proj.weight.data.zero_()
    whole.model.layers[1].mlp.down_proj.weight.data.zero_()
    return CausalTarget(whole)


def greedy_ids(length: int = 40) -> list[int]:
    sampling = Sampling(temperature=0)
    found = play(idle(), row(PROMPTS[0], sampling=sampling, max_new_tokens=length))[0]
    return [*PROMPTS[0], *found.tokens.tolist()]


def test_swift_finds_the_layer_that_adds_nothing() -> None:
    """The search ends there: all drafts are accepted from then on, also at the next generation's start."""
    drafter = Swift(whole=True, share=0.4, window=16, num_draft_tokens=4)
    asks = {"drafter": drafter, "sampling": Sampling(temperature=0), "max_new_tokens": 60}
    first = play(idle(), row(PROMPTS[0], **asks))[0]
    assert drafter._memory.best == Sublayers.whole([1])
    second = play(idle(), row(PROMPTS[0], **asks))[0]
    assert second.report.acceptance_rate == 1
    assert second.tokens.tolist() == first.tokens.tolist() == greedy_ids(60)[len(PROMPTS[0]) :]


def test_search_layers_finds_the_layer_that_adds_nothing() -> None:
    """Among all sets of sublayers, with a match rate of one and the most left out."""
    found = search_layers(idle(), [greedy_ids()], trials=24)
    assert found.attention and set(found.attention) <= {1, 2}
    assert 1 in found.attention or 1 in found.mlp
    whole = search_layers(idle(), [greedy_ids(), greedy_ids(20)], trials=8, whole=True)
    assert whole.attention == whole.mlp
    asks = {"sampling": Sampling(temperature=0), "max_new_tokens": 20}
    best = play(idle(), row(PROMPTS[0], drafter=SkipLayers((1,), (1,)), **asks))[0]
    assert best.report.acceptance_rate == 1


def test_cosine_skip_leaves_out_what_turns_nothing() -> None:
    """Attention of layer 1 adds nothing, so its input and output have a cosine of one."""
    drafter = CosineSkip(share=0.4)
    found = play(idle(), row(PROMPTS[0], drafter=drafter, sampling=Sampling(temperature=0)))[0]
    assert found.report.acceptance_rate == 1


def test_a_gaussian_process_proposes_what_scored_best() -> None:
    """Where the score falls with the distance from one set, proposals come nearer than random draws."""
    space = Space(range(1, 9), count=6)
    generator = torch.Generator().manual_seed(1)
    best = space.drawn(generator)
    tried = Tried()
    for _ in range(60):
        z = space.drawn(generator)
        tried.add(z, -float((z - best).abs().sum()))
    proposed = [tried.proposed(space, generator) for _ in range(10)]
    drawn = [space.drawn(generator) for _ in range(10)]
    far = [sum(float((z - best).abs().sum()) for z in sets) for sets in (proposed, drawn)]
    assert far[0] < far[1]
    assert all(int(z.sum()) == 6 for z in proposed)


def test_expected_speed_by_hand() -> None:
    assert expected_speed(0.5, 0.25, 2) == pytest.approx((1 + 0.5 + 0.25) / 1.5)
    assert expected_speed(0.0, 0.5, 4) == pytest.approx(1 / 3)


# ---- quantised ----


@pytest.mark.parametrize(
    ("make", "limit"),
    [(int8, 0.03), (partial(int8, together=True), 0.03), (lambda w, b: _int4(w, b, 32), 0.15)],
)
def test_a_quantised_map_is_near_its_own(make: Any, limit: float) -> None:
    """With and without a bias, over any leading shape."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator)
    x = torch.randn(2, 3, 64, generator=generator)
    for bias in (None, torch.randn(48, generator=generator)):
        found, exact = make(weight, bias)(x), F.linear(x, weight, bias)
        assert found.shape == exact.shape and found.dtype == exact.dtype
        assert 0 < float((found - exact).std() / exact.std()) < limit


def test_a_target_is_quantised_once() -> None:
    forward: Any = target("llama")._forward
    sessions = [Quantised().begin(opened("llama")[1]) for _ in range(2)]
    assert len(sessions) == 2
    assert len(forward._made) <= 2  # int8 here, int4 in other tests


# ---- sparse caches ----


def test_a_context_within_the_budget_is_kept_whole() -> None:
    """Then the draft is the target's own continuation."""
    asks = {"sampling": Sampling(temperature=0), "max_new_tokens": 30}
    for name in SELECTIONS:
        drafter = SparseCache(name, budget=128, refresh=4)
        found = play(target("gpt2"), row(LONG, drafter=drafter, **asks))[0]
        assert found.report.acceptance_rate == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_streaming_looks_at_sinks_and_the_latest_at_their_own_positions(family: str) -> None:
    """The first drafted symbol is that of a pass over the whole cache with all else masked."""
    session, context = opened(family)
    draft = SparseCache(budget=10, sinks=3).begin(context).propose([asked(LONG)])[0]
    length = len(LONG)
    mask = torch.full((1, 1, 1, length + 1), torch.finfo(torch.float32).min)
    mask[..., [0, 1, 2, *range(length - 7, length + 1)]] = 0
    session.cache.ledger.open(1, mask.device)
    step = Pass({"full_attention": mask}, length, length + 1)
    logits = session.forward(torch.tensor([[3]]), step, session.cache, None)
    assert draft.ids[0] == int(logits[0, -1].argmax())


def attention_of(ids: tuple[int, ...]) -> Any:
    """Attention weights [heads, Q, S] of every layer of the Llama, by its plain forward."""
    plain = copy.deepcopy(model("llama"))
    plain.set_attn_implementation("eager")
    return [one[0] for one in plain(input_ids=torch.tensor([ids]), output_attentions=True).attentions]


def test_snapkv_keeps_what_the_last_queries_look_at() -> None:
    """Votes of the last 32 queries of the prompt, pooled, over the eager attention weights themselves."""
    session, context = opened("llama")
    drafter = SparseCache("snapkv", budget=40)
    drafting: Any = drafter.begin(context)
    pick = drafter.chosen(drafting._few._itself, 0, LONG)
    before = len(LONG) - 32
    for layer, weights in enumerate(attention_of(LONG)):
        seen = weights[:, -32:, :before]
        seen = (seen / seen.sum(-1, keepdim=True)).unflatten(0, (2, 2)).sum((1, 2))
        pooled = torch.stack([seen[:, max(0, n - 3) : n + 4].mean(-1) for n in range(before)], -1)
        expected = [{*best.tolist(), *range(before, len(LONG))} for best in pooled.topk(8).indices]
        found = pick(session.cache.ragged[layer])
        assert [set(kept.tolist()) for kept in found] == expected


def test_retrieval_keeps_the_chunks_that_the_last_query_likes() -> None:
    """Chunks of 8 by the mean key, for every group of heads, and the latest 32 and more."""
    session, context = opened("llama")
    drafter = SparseCache("retrieval", budget=52)
    drafting: Any = drafter.begin(context)
    found = drafter.chosen(drafting._few._itself, 0, LONG)
    watch = Watch()
    Modules(model("llama"), LAYERS).observing(watch)(input_ids=torch.tensor([LONG]), use_cache=False)
    for layer in session.cache.ragged:
        keys, query = layer.keys[0, :, : len(LONG)], watch.queries[layer.index][0, :, -1]
        for head, kept in enumerate(found(layer).tolist()):
            scores = [
                float((keys[head, 8 * n : 8 * n + 8].mean(0) * query[2 * head : 2 * head + 2]).sum())
                for n in range(3)
            ]
            best = sorted(sorted(range(3), key=lambda n: -scores[n])[:2])
            assert kept == [8 * n + i for n in best for i in range(8)] + list(range(24, 60))


# ---- guidance, other families, refusals ----


@pytest.mark.parametrize("name", ["evenly", "exit", "streaming", "snapkv"])
def test_guided_rows_draft_with_both_branches(name: str) -> None:
    """A guided row beside a plain one: the same symbols, and drafts that are accepted."""
    guided = ms.Prompt(
        ids=torch.tensor(LONG),
        guidance=ms.Guidance(scale=1.5),
        unconditional=ms.Prompt(ids=torch.tensor(PROMPTS[2])),
    )
    generator = ms.load(model=model("llama"))
    asks: dict[str, Any] = {"max_new_tokens": 20, "sampling": Sampling(seed=2)}
    prompts = [guided, ms.Prompt(ids=torch.tensor(PROMPTS[0]))]
    plain = generator.generate(prompts, drafter=None, **asks)
    found = generator.generate(prompts, drafter=DRAFTERS[name](), **asks)
    assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in plain]
    assert all(one.report.accepted > 0 and not one.report.drafter_failures for one in found)


@pytest.mark.parametrize("name", ["gemma2", "opt", "gpt_neox", "deepseek_v3"])
def test_other_families(name: str) -> None:
    """Windows, parallel blocks, latent attention and experts: whole layers are left out."""
    asks: dict[str, Any] = {"max_new_tokens": 12, "sampling": Sampling(seed=5)}
    generator = zoo.generator(name)
    plain = generator.generate(zoo.prompt(name), drafter=None, **asks).tokens.tolist()
    for drafter in (SkipLayers((1,), (1,)), Swift(whole=True, window=3), Quantised()):
        found = generator.generate(zoo.prompt(name), drafter=drafter, **asks)
        assert found.tokens.tolist() == plain and not found.report.drafter_failures


REFUSED = [EarlyExit(), SkipLayers(), Swift(), CosineSkip(), Quantised(), SparseCache()]


@pytest.mark.parametrize("drafter", REFUSED, ids=lambda drafter: str(drafter.name))
@pytest.mark.parametrize("name", ["t5", "mamba"])
def test_targets_with_a_state_of_their_own_are_refused(name: str, drafter: Drafter) -> None:
    """Before anything is generated, with the reason and what works instead."""
    with pytest.raises(UnsupportedError, match=f"{drafter.name} drafts in the target's key/value cache.*Use"):
        zoo.generator(name).generate(zoo.prompt(name), drafter=drafter, max_new_tokens=4)


def refused(kind: type[Exception], match: str, drafter: Drafter, whole: Any = None) -> None:
    with pytest.raises(kind, match=match):
        play(target("llama") if whole is None else whole, row((1, 2), drafter=drafter))


def test_layers_that_do_not_exist_are_refused() -> None:
    refused(UsageError, r"attention names layers of the target, 0 to 3: got \[4, 9\]", SkipLayers((9, 1, 4)))
    refused(UsageError, r"mlp names layers of the target, 0 to 3: got \[-1\]", SkipLayers((), (-1,)))
    everything = SkipLayers((0, 1, 2, 3), (0, 1, 2, 3))
    refused(UsageError, "has to leave something: got all 4 attention blocks", everything)
    refused(UsageError, "between two of its 4 layers: got exit_layer=4", EarlyExit(4))
    refused(UsageError, "between two of its 4 layers: got exit_layer=0", EarlyExit(0))


def test_one_layer_has_none_to_leave_out() -> None:
    config = copy.deepcopy(model("llama").config)
    config.num_hidden_layers = 1
    whole = target_for(transformers.LlamaForCausalLM(config).eval())
    refused(UnsupportedError, "several layers, and this target has 1", SkipLayers(), whole)
    refused(UsageError, "between two of its 1 layers: got exit_layer=0", EarlyExit(), whole)


def test_layers_that_do_not_add_up_are_left_out_whole() -> None:
    drafter = SkipLayers(attention=(1,))
    with pytest.raises(UnsupportedError, match="attention of layer 1 of OPTForCausalLM cannot be left out"):
        zoo.generator("opt").generate(zoo.prompt("opt"), drafter=drafter, max_new_tokens=4)


def test_windows_are_sparse_already() -> None:
    with pytest.raises(UnsupportedError, match=r"look at a part of them already: \['sliding_attention'\]"):
        zoo.generator("gemma3").generate(zoo.prompt("gemma3"), drafter=SparseCache(), max_new_tokens=4)


def test_other_streams_and_contexts_are_refused() -> None:
    """A table has no layers; slots that move together; a context without the target; a model in one piece."""
    refused(UnsupportedError, "a state that nothing else can write to", EarlyExit(), TableModel())
    prompt = Prompt(ids=torch.tensor([1]))
    bare = Context(prompts={0: prompt}, capacity={0: 9}, vocab_size=9, device=torch.device("cpu"))
    with pytest.raises(UsageError, match="drafts with the target itself, and this context names none"):
        EarlyExit().begin(bare)
    refused(UnsupportedError, "2 slots of this stream move together", EarlyExit(), SlotTableModel(2, 3))


def test_a_forward_in_one_piece_is_refused() -> None:
    session, context = opened("llama")
    whole = session.forward

    class Closed:
        layers, attention, like = whole.layers, whole.attention, whole.like

        def __call__(self, *args: Any) -> Any:
            return whole(*args)

    session.forward = Closed()  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match="reached one by one: Closed runs this model as a whole"):
        EarlyExit().begin(context)


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has no list of 3 layers with an attention block each"):
        Modules(model("llama"), 3)


def test_no_kernels_no_quantised_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multispec.drafters.quantised._available", lambda bits: False)
    refused(
        UnsupportedError, "quantised has int8 kernels on a CPU whose torch is built with them", Quantised()
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SkipLayers(num_draft_tokens=0), "num_draft_tokens must be >= 1: got 0"),
        (lambda: SkipLayers(share=1.0), "share must lie between 0 and 1: got 1.0"),
        (lambda: Swift(window=0), "swift needs a window of 1 to 128"),
        (lambda: CosineSkip(window=200), "looks at 1 to 128 symbols: got window=200"),
        (lambda: EarlyExit(num_draft_tokens=0), "num_draft_tokens must be >= 1"),
        (lambda: Quantised(group=48), "group must be one of"),
        (lambda: SparseCache(budget=4), "keeps 5 entries at least"),
        (lambda: SparseCache("snapkv", budget=32), "keeps 40 entries at least"),
        (lambda: search_layers(TableModel(), []), "needs a trial, and sequences of two ids"),
    ],
)
def test_settings_that_cannot_be_right(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make()


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'int8'"):
        Quantised("int9")
    with pytest.raises(UnknownNameError, match="Did you mean 'streaming'"):
        SparseCache("stream")
