"""Our layer k is the block's own output, for every architecture, in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from layerrank.operators.model.encode import (
    Ids,
    NonFiniteError,
    Representations,
    encode,
    pad,
    pool,
    wanted_tokens,
)
from layerrank.operators.model.on_transformers import LayerModel, load_model
from layerrank.operators.model.subject import ModelUnavailableError, Pooling, Subject, read_shape
from tests.support.tiny import ARCHITECTURES, BLOCKS, VOCABULARY, WIDTH, save_tiny, tiny_model

ALL = Representations(("none", "final"), get_args(Pooling), 4096)
LENGTHS = [1, 2, 3, 17, 40, 40, 64, 5]
CPU = torch.device("cpu")


def _sequences(lengths: Sequence[int]) -> list[Ids]:
    generator = np.random.default_rng(1)
    return [generator.integers(1, VOCABULARY, n).astype(np.int32) for n in lengths]


def _blocks(model: Any) -> Any:  # noqa: ANN401
    inner = getattr(model, "encoder", getattr(model, "decoder", model))
    return next(getattr(inner, n) for n in ("layers", "layer", "h") if hasattr(inner, n))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_k_is_the_raw_output_of_block_k_and_its_norm_is_the_cut_model(
    architecture: str,
) -> None:
    """Cut the stack after k blocks: block k's own output, and what the cut model returns."""
    ids_NT, mask_NT = pad(_sequences([9]))
    whole = LayerModel(tiny_model(architecture))
    states = whole.forward(ids_NT, mask_NT)
    assert len(states) == BLOCKS + 1
    for k in range(1, BLOCKS + 1):
        cut = tiny_model(architecture)
        blocks = _blocks(cut)
        del blocks[k:]
        seen: list[torch.Tensor] = []
        blocks[k - 1].register_forward_hook(
            lambda _m, _a, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.inference_mode():
            expected = cut(input_ids=ids_NT, attention_mask=mask_NT).last_hidden_state
        torch.testing.assert_close(states[k], seen[0], rtol=0, atol=0)
        torch.testing.assert_close(whole.final_norm(states[k]), expected, rtol=0, atol=0)
    assert whole.has_final_norm == (architecture != "bert")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vectors_do_not_depend_on_the_batch(architecture: str) -> None:
    model, sequences = LayerModel(tiny_model(architecture)), _sequences(LENGTHS)
    together = encode(model, sequences, ALL)
    alone = np.concatenate([encode(model, [ids], ALL) for ids in sequences], axis=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    small = encode(model, sequences, Representations(ALL.norms, ALL.poolings, 64))
    np.testing.assert_allclose(together, small, rtol=0, atol=1e-5)
    assert together.shape == (len(ALL.groups(BLOCKS)), len(sequences), WIDTH)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_device_gives_the_same_vectors(architecture: str) -> None:
    here = encode(LayerModel(tiny_model(architecture)), _sequences(LENGTHS), ALL)
    batches = Representations(ALL.norms, ALL.poolings, 64)
    there = encode(LayerModel(tiny_model(architecture).to("cuda")), _sequences(LENGTHS), batches)
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "final"])
def test_poolings_are_those_of_the_token_states(norm: Any) -> None:  # noqa: ANN401
    model, sequences = LayerModel(tiny_model("gpt_neox")), _sequences([6, 2, 1])
    seen: dict[tuple[int, int], npt.NDArray[np.float32]] = {}

    def take(layer: int, rows: Any, states_SD: Any) -> None:  # noqa: ANN401
        ends = np.cumsum([len(sequences[row]) for row in rows])[:-1]
        for row, states in zip(rows, np.split(states_SD, ends), strict=True):
            seen[layer, int(row)] = states

    wanted = np.array([True, False, True])
    vectors = encode(model, sequences, ALL, [wanted_tokens(wanted, take)], norm)
    assert seen.keys() == {(layer, row) for layer in range(BLOCKS + 1) for row in (0, 2)}
    groups = ALL.groups(BLOCKS)
    for (layer, row), states in seen.items():
        t = np.arange(1, len(states) + 1)[:, None]
        expected: dict[Pooling, npt.NDArray[np.float32]] = {
            "mean": states.mean(axis=0),
            "mean_no_first": states[1:].mean(axis=0) if len(states) > 1 else states[0],
            "first": states[0],
            "last": states[-1],
            "weighted_mean": (states * t).sum(axis=0) / t.sum(),
        }
        for pooling, vector in expected.items():
            got = vectors[groups.index((layer, norm, pooling)), row]
            np.testing.assert_allclose(got, vector, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_non_finite_states_name_layer_prompts_and_count(pooling: Pooling) -> None:
    model = tiny_model("gpt_neox")
    rare = 7
    with torch.no_grad():
        model.embed_in.weight[rare] = float("nan")
    sequences = [np.array(ids, dtype=np.int32) for ids in ([1, 2, 3], [4, 5, rare], [6, 8])]
    keep = Representations(("none",), (pooling,), 64)
    with pytest.raises(NonFiniteError, match=r"layer 0 .* at 1 tokens of 1 prompts") as caught:
        encode(LayerModel(model), sequences, keep)
    assert caught.value.rows == [1]


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_what_stands_in_the_padding_never_matters(pooling: Pooling, garbage: float) -> None:
    states_NTD = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths_N = torch.tensor([2, 5, 4])
    clean_ND = pool(states_NTD, lengths_N, pooling)
    states_NTD[0, 2:] = states_NTD[2, 4:] = garbage
    torch.testing.assert_close(pool(states_NTD, lengths_N, pooling), clean_ND, rtol=0, atol=0)
    alone_ND = pool(states_NTD[2:, :4], lengths_N[2:], pooling, padded=False)
    torch.testing.assert_close(alone_ND, clean_ND[2:], rtol=0, atol=1e-6)


def test_a_bad_token_is_found_before_a_tap_sees_it_and_in_the_last_batch() -> None:
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.embed_in.weight[7] = float("inf")
    sequences = [np.array(ids, dtype=np.int32) for ids in ([1, 2], [3, 4, 5], [6, 8, 7, 9])]
    seen: list[int] = []
    for taps in ([], [lambda rows, _states, _lengths: seen.extend(rows.tolist())]):
        with pytest.raises(NonFiniteError, match=r"layer 0 .* at 1 tokens of 1 prompts") as caught:
            encode(LayerModel(model), sequences, Representations(("final",), ("first",), 3), taps)
        assert caught.value.rows == [2]
    assert seen == [0, 1]


def test_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    config = (folder / "config.json").read_text()
    more = config.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')
    (folder / "config.json").write_text(more)
    with pytest.raises(ModelUnavailableError, match=r"lacks .* weights, first layers\.3"):
        load_model(Subject(str(folder), "local", "tiny"), CPU)


def test_pickled_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    torch.save(tiny_model("gpt_neox").state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailableError, match="safetensors"):
        load_model(Subject(str(folder), "local", "tiny"), CPU)
    allowed = Subject(str(folder), "local", "tiny", allow_pickle=True)
    assert load_model(allowed, CPU).shape == read_shape(allowed)


def test_unknown_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailableError, match="cannot load model no/such-model") as caught:
        read_shape(Subject("no/such-model", "main", "x"))
    assert "\n" not in str(caught.value)
