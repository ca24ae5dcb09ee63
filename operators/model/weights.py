"""The weights of a model, from a checkpoint of transformers or a GGUF file, adapters merged.

A GGUF file is dequantised. A LoRA adapter is merged into the weights that it was trained for: of
every matrix W that it has matrices A and B for, W + s B A is what is loaded. Which model it was
trained for, `adapter_config.json` says by a name, and that says little of a copy in a folder, so an
adapter is of another base if

- both are named as on the hub, and the names differ;
- the base that it names is a folder here with other safetensors files than the model's;
- the model lacks a module that it changes, or has it in another size, or the adapter lacks what it
  says that it changes.
"""

from __future__ import annotations

import filecmp
import functools
import io
import json
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm import tqdm
from transformers import AutoModel
from transformers.utils.hub import cached_file

from layerrank.operators.model.subject import (
    ADAPTER_WEIGHTS,
    LOADING_ERRORS,
    ModelUnavailableError,
    Subject,
    explained,
    quiet,
)

_ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OF_ADAPTER = "default"  # peft's name for the only one of a model


def load_weights(subject: Subject, config: Any) -> tuple[nn.Module, list[str]]:  # noqa: ANN401
    """Return a model on the CPU, in the subject's dtype, and which weights its files lack.

    `config` is the subject's, as transformers reads it. ModelUnavailableError if it cannot be
    loaded.
    """
    given: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.enter_context(explained(subject))
        if subject.gguf_file:
            from transformers.utils.quantization_config import GgufConfig  # noqa: PLC0415  (new)

            stack.enter_context(_gguf_names_once())
            # The config is in the file, which takes seconds to read. Weights that stay in their
            # blocks would be computed with otherwise, where a kernel is installed that does.
            given = {"config": config, "quantization_config": GgufConfig(dequantize=True)}
        model, info = AutoModel.from_pretrained(
            subject.source,
            dtype=getattr(torch, subject.dtype),
            use_safetensors=None if subject.allow_pickle else True,
            output_loading_info=True,
            **subject.hub_options,
            **given,
        )
    if subject.adapter:
        with _naming_adapter(subject):
            joined = _joined(model, subject)
            joined.merge_and_unload(safe_merge=True)
        model.requires_grad_(True)  # as those of any other model
    return model, sorted(info["missing_keys"])


@contextmanager
def _gguf_names_once() -> Iterator[None]:
    """Load a GGUF file in half the time, without a progress bar.

    transformers asks for one and the same table of names for every module of a model.
    """
    import gguf  # noqa: PLC0415  (of an extra)

    # The lock that a bar makes itself is a semaphore, which a worker that is ended leaves behind.
    tqdm.set_lock(threading.RLock())
    table = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = functools.cache(table)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        gguf.get_tensor_name_map = table


def require_fitting_adapter(subject: Subject, config: Any) -> None:  # noqa: ANN401
    """ModelUnavailableError that names both if a subject's adapter is none of its model.

    No weights of the model are read unless the adapter names a base that is another folder here.
    """
    assert subject.adapter
    with _naming_adapter(subject):
        base = _adapter_config(subject).get("base_model_name_or_path") or ""
        if _is_another(base, subject):
            raise ModelUnavailableError(
                f"{_both(subject)} is for another base, {base} (base_model_name_or_path of its "
                f"{_ADAPTER_CONFIG})"
            )
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=subject.trust_remote_code)
        _joined(model, subject)


def _is_another(base: str, subject: Subject) -> bool:
    """Whether the base that an adapter names is known to be another model than the subject."""
    if subject.gguf_file or not base:
        return False
    if not subject.is_folder:
        return bool(_HUB_ID.fullmatch(base)) and base.lower() != subject.source.lower()
    here, there = Path(subject.source).resolve(), Path(base).expanduser().resolve()
    if here == there or not there.is_dir():
        return False
    names = [each.name for each in there.glob("*.safetensors")]
    return len(filecmp.cmpfiles(here, there, names, shallow=False)[0]) < len(names)


def _both(subject: Subject) -> str:
    assert subject.adapter
    return f"model {subject.model}: its adapter {subject.adapter.model}"


@contextmanager
def _naming_adapter(subject: Subject) -> Iterator[None]:
    """Name model and adapter in what goes wrong with the latter."""
    try:
        with quiet():
            yield
    except (*LOADING_ERRORS, SafetensorError) as error:
        if str(error).startswith(_both(subject)):
            raise
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ModelUnavailableError(f"{_both(subject)} cannot be merged: {reason}") from error


def _adapter_file(subject: Subject, name: str) -> Path:
    adapter = subject.adapter
    assert adapter
    if not adapter.is_folder:
        return Path(str(cached_file(adapter.source, name, revision=adapter.revision)))
    file = Path(adapter.source, name)
    if not file.is_file():
        raise ModelUnavailableError(f"{_both(subject)} has no {name}")
    return file


def _adapter_config(subject: Subject) -> dict[str, Any]:
    text = _adapter_file(subject, _ADAPTER_CONFIG).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    if found.get("peft_type") != "LORA":
        raise ModelUnavailableError(
            f"{_both(subject)} is no LoRA adapter: its {_ADAPTER_CONFIG} says peft_type "
            f"{found.get('peft_type')!r}"
        )
    return found


def _joined(model: Any, subject: Subject) -> Any:  # noqa: ANN401  (transformers, peft: no types)
    """Return a model with its adapter beside the weights; on the device meta as far as sizes go."""
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict  # noqa: PLC0415  (slow)

    _adapter_config(subject)
    settings = PeftConfig.from_pretrained(str(_adapter_file(subject, _ADAPTER_CONFIG).parent))
    on_meta = next(model.parameters()).is_meta
    if on_meta:
        settings.init_lora_weights = True  # some ways begin from the weights
    with safe_open(_adapter_file(subject, ADAPTER_WEIGHTS), "pt") as file:
        weights = {
            name: torch.empty(file.get_slice(name).get_shape(), device="meta")
            if on_meta
            else file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118  (no mapping)
        }
    # One that was trained with a head names the modules as that model does, `model.layers.0` where
    # the model without it has `layers.0`; what it does to the head is in no layer.
    prefix, whole = model.base_model_prefix, model
    inside = f"base_model.model.{prefix}."
    if any(name.startswith(inside) for name in weights) and not hasattr(model, prefix):
        whole = nn.Module()
        whole.add_module(prefix, model)
        weights = {name: each for name, each in weights.items() if name.startswith(inside)}
    try:
        with torch.device("meta" if on_meta else "cpu"), warnings.catch_warnings():
            # peft reads an attribute that transformers calls deprecated.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            joined = PeftModel(whole, settings)
        found = set_peft_model_state_dict(joined, weights)
        absent = [name for name in found.missing_keys if _OF_ADAPTER in name.split(".")]
        if unlike := [*found.unexpected_keys, *absent]:
            raise ValueError(f"{unlike[0]} is in one of the two only")
    except (ValueError, RuntimeError) as error:
        lines = [line.strip() for line in (str(error) or type(error).__name__).splitlines()]
        raise ModelUnavailableError(
            f"{_both(subject)} is for another base: {lines[min(1, len(lines) - 1)]}"
        ) from error
    return joined
