"""Where the systems that the survey names (arXiv 2502.19732) are in the catalog, and why some are not."""

from __future__ import annotations

from typing import NamedTuple


class System(NamedTuple):
    """A published system: its name, its catalog names as ``kind name``, and what to know about it.

    Several names are parts that make the system together. Without names ``note`` says what it would need.
    """

    name: str
    methods: tuple[str, ...] = ()
    note: str = ""


_HEADS = "drafts with heads trained on the hidden states of its target"
_TUNED = "drafts with a target that was tuned for it"
_DRAFT = "trains a draft model, which then drafts as any other"
_DEVICES = "runs draft and target side by side on several devices"
_KERNELS = "kernels or hardware: no other symbols, and none fewer"
_JACOBI = ("drafter jacobi_decoding", "drafter jacobi")
_MODEL = ("drafter draft_model",)

SURVEY: dict[str, tuple[System, ...]] = {
    "IV-A Predefined fill tokens": (
        System("Jacobi decoding", _JACOBI),
        System("Lookahead decoding", ("drafter lookahead", "drafter lookahead_7b")),
        System("CLLMs", (*_JACOBI,), "the tuned model is the target"),
    ),
    "IV-B Retrieval": (
        System("LLMA", ("drafter llma", "drafter llma_cache")),
        System("REST", ("drafter rest", "verifier sample_and_match")),
        System("Speculative RAG", (), "drafts whole answers, not symbols"),
    ),
    "IV-C N-grams": (
        System("ANPD", ("drafter anpd",)),
        System("N-Grammys", ("drafter n_grammys",)),
        System("ADED", ("drafter aded",)),
    ),
    "IV-D1 Independent drafters": (
        System("SpecDec", (*_MODEL, "verifier top_beta"), "its drafter is trained"),
        System("SpecDec++", (), "stops by a trained head"),
        System("BiLD", (*_MODEL, "policy confidence", "verifier bild")),
        System("ON-THE-FLY", ("policy goodput",)),
        System("OSD", _MODEL, _DRAFT),
        System("DistillSpec", _MODEL, _DRAFT),
        System("FastDraft", _MODEL, _DRAFT),
        System("Judge Decoding", (), "judges with a trained head"),
        System("KD with training wheels", _MODEL, _DRAFT),
    ),
    "IV-D2 Dependent drafters": (
        System("SPEED", (), _TUNED),
        System("FREE", (), _TUNED),
        System("Draft & Verify", ("drafter skip_layers", "policy draft_and_verify")),
        System("LayerSkip", ("drafter early_exit",), "the tuned model is the target"),
        System("Kangaroo", ("policy kangaroo_stop",), "its stop alone: the drafter is trained"),
        System("EESD", (), _TUNED),
        System("SWIFT", ("drafter swift",)),
        System("Speculative Streaming", (), _TUNED),
        System("Draft on the Fly", ("drafter cosine_skip",)),
        System("EAGLE", ("structure eagle",), "its tree alone: it " + _HEADS),
        System("Falcon", (), _HEADS),
        System("HASS", (), _HEADS),
        System("Hydra", (), _HEADS),
        System("Mixture of Attentions", (), _HEADS),
    ),
    "IV-E Multi-token prediction": (
        System(
            "Blockwise parallel decoding",
            ("verifier blockwise", "verifier blockwise_exact", "verifier blockwise_distance"),
            "its rules alone: it " + _HEADS,
        ),
        System("Draft refinement (Kim)", (), _HEADS),
        System("Medusa", ("structure medusa", "structure calibrated", "verifier typical"), _HEADS),
        System("MTP (Gloeckle)", (), _HEADS),
        System("Amphista", (), _HEADS),
        System("CTC drafting", (), _HEADS),
    ),
    "V-A1 Verification of one sequence": (
        System("Fast Inference (Leviathan)", (*_MODEL, "verifier rejection", "verifier lenience")),
        System("Speculative Sampling (Chen)", (*_MODEL, "verifier speculative_sampling")),
        System("Block Verification", ("verifier block",)),
        System("MTAD", ("verifier mtad",)),
        System("A theoretical perspective (Yin)", ("verifier budget",)),
    ),
    "V-A2 Verification of trees": (
        System("SpecTr", ("verifier k_seq", "verifier optimal")),
        System("SpecInfer", ("structure specinfer", "structure expansion", "verifier specinfer")),
        System("Staged SD", ("drafter cascade",)),
        System("Sequoia", ("structure sequoia", "structure sequoia_sized", "verifier rejection")),
        System("EAGLE-2", ("structure eagle2",), "by any draft model: it " + _HEADS),
        System("ProPD", (), "prunes with a trained head"),
        System("OPT-Tree", ("structure opt_tree",)),
        System("DSBD", (), "searches beams: its output is no sample"),
        System("GSD, graph-structured", ("structure token_graph",)),
        System("RSD", ("structure rsd_c", "structure rsd_s", "verifier rsd")),
        System("ReDrafter", ("structure beams", "structure pack"), "its packed beams alone: it " + _HEADS),
        System("DySpec", ("structure dyspec",)),
        System("SpecHub", ("verifier spechub",)),
        System("Multi-Draft Speculative Sampling (Khisti)", ("verifier optimal",), "the optimum as such"),
        System("Optimal multi-draft (Hu)", ("verifier optimal",)),
        System("DDD", ("policy dynamic_depth",)),
    ),
    "V-B Iterative": (System("Jacobi", _JACOBI), System("Lookahead", ("drafter lookahead",))),
    "VI-A Parallel speculative decoding": (
        System("CS-Drafting", ("drafter cascade", "drafter horizontal_cascade", "drafter max_gram")),
        System("Faster Cascades", ("verifier cascade", "verifier cascade_token_v3")),
        System("PPD", (), _DEVICES),
        System("PaSS", (), _TUNED),
        System("PEARL", (), _DEVICES),
        System("Ouroboros", (), "phrases of rejected drafts go on in the next"),
        System("ParallelSpec", (), _HEADS),
        System("SPACE", (), _TUNED),
        System("AMUSD", (), _DEVICES),
    ),
    "VI-B Edge and offloading": (
        System("SpecExec", ("structure dyspec", "verifier coupled"), "its tree by the largest product of q"),
        System("EdgeLLM", (), _DEVICES),
        System("Dovetail", (), _DEVICES),
    ),
    "VI-C Compilers and hardware": (
        System("SpecPIM", (), _KERNELS),
        System("MagicDec", ("drafter sparse_cache",)),
        System("BASS", (), "ragged batches: every target here has them"),
        System("SEED", (), _KERNELS),
        System("PipeInfer", (), _DEVICES),
        System("Mamba in the Llama", (), "recurrent targets: replayed here, by no method of its own"),
        System("SKD", _MODEL, _DRAFT),
        System("Optimized speculative sampling (Wagner)", (), _KERNELS),
        System("TriForce", ("drafter triforce", "drafter sparse_cache")),
        System("QSpec", ("drafter quantised",)),
    ),
    "VII Applications": (
        System("Continuous SD", (), "symbols that are not discrete"),
        System("LANTERN", ("verifier lantern", "verifier lantern_pp")),
        System("SJD", ("drafter sjd", "drafter sjd_random", "verifier rejection")),
        System("VADUSA", ("verifier tolerance",), "its tolerance alone: it " + _HEADS),
        System("Speech-LLaMA MTP", (), _HEADS),
        System("SD for multimodal models (Gagrani)", _MODEL, _DRAFT),
        System("IbED", _MODEL, _DRAFT),
        System("DARE", (), "recommends, by retrieval of items"),
        System("AtSpeed", _MODEL, _DRAFT),
    ),
    "Beside the survey": (
        System("Different tokenizers (SLEM, TLI)", ("drafter reencoded", "drafter shared_vocabulary")),
        System("Hierarchical drafting (HD)", ("drafter fallback",)),
        System("Prompt lookup decoding", ("drafter pld", "drafter prompt_lookup")),
        System("PLD+", ("drafter pld_plus",), "its hidden states by the values that the cache holds"),
        System("CopySpec", ("drafter copyspec",)),
        System("Token Recycling", ("drafter token_recycling", "drafter token_recycling_warm")),
        System("Cacheback", ("drafter cacheback",)),
        System("SuffixDecoding", ("drafter suffix_decoding", "drafter suffix_decoding_global")),
        System("SAM-Decoding", ("drafter sam_decoding", "drafter suffix_automaton")),
        System("MCSD", ("verifier mcsd",)),
        System("Traversal verification", ("verifier traversal",)),
        System("Exponential races", ("verifier exponential_races", "verifier coupled")),
        System("Speculative contrastive decoding", ("verifier contrastive",)),
        System("Assisted generation of transformers", (*_MODEL, "policy heuristic", "policy confidence")),
        System("SmartSpec, TurboSpec", ("policy goodput",)),
        System("AdaEDL", ("policy ada_edl",)),
        System("SVIP", ("policy svip",)),
        System("BanditSpec", ("policy ucb", "policy exp3", "drafter among")),
        System("TapOut", ("policy tapout",)),
        System("MetaSD", ("policy metasd", "drafter among")),
        System("DDTree", ("structure ddtree",)),
        System("MC-SJD, SCD", ("drafter mc_sjd", "drafter scd_mc", "drafter jacobi")),
        System("SJD-PAC", ("drafter sjd_pac", "drafter sjd_ac")),
        System("ZipAR", ("drafter zipar", "verifier zipar")),
        System("GSD, grouped", ("verifier gsd",)),
        System("LANTERN++", ("verifier lantern_pp",)),
        System("COOL-SD", ("verifier cool_sd",)),
        System("SSD (speech)", ("verifier ssd_beta",)),
        System("PCG", ("verifier pcg",)),
        System("Llasa+", ("verifier top_k",), "its rule alone: it " + _HEADS),
    ),
}


def systems_of(kind: str, name: str) -> tuple[str, ...]:
    """The published systems that this method is, or is a part of.

    >>> systems_of("verifier", "lantern_pp")
    ('LANTERN', 'LANTERN++')
    """
    wanted = f"{kind} {name}"
    return tuple(one.name for systems in SURVEY.values() for one in systems if wanted in one.methods)
