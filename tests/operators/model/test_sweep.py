"""Every type of text model that transformers has is read right in every layer, or refused."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from layerrank.operators.model.on_transformers import load_model
from layerrank.operators.model.subject import ModelUnavailableError, Subject, quiet
from tests.operators.model.shrunk import (
    FAILS,
    TOLERANCE,
    compared,
    fault_of,
    is_unfit,
    text_types,
    tiny_of,
)


@pytest.mark.slow
@pytest.mark.sweep
def test_every_type_of_text_model_is_right_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, dict[str, str]] = {"right": {}, "refused": {}, "not buildable": {}}
    wrong: dict[str, str] = {}
    names = text_types()
    with get_context("spawn").Pool(2) as pool:
        outcomes = pool.imap(partial(_outcome, tmp_path), names)
        for name, (kind, reason) in zip(names, outcomes, strict=True):
            found.get(kind, wrong)[name] = reason
    lines = [f"{len(names)} types of text model", *map(_told, found.items())]
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *lines, ""]))
    assert wrong == {}
    assert sum(map(len, found.values())) == len(names)
    assert len(found["right"]) > len(names) / 2


def _told(each: tuple[str, dict[str, str]]) -> str:
    kind, of = each
    return f"{kind} {len(of)}" + "".join(f"\n  {name}: {of[name]}" for name in of if of[name])


def _outcome(place: Path, name: str) -> tuple[str, str]:
    """Return what becomes of a type: right, refused, not buildable or wrong; and why."""
    torch.set_num_threads(1)
    with quiet(), warnings.catch_warnings(), TemporaryDirectory(dir=place) as folder:
        warnings.simplefilter("ignore")  # what hundreds of architectures warn of is theirs
        return _outcome_in(folder, name)


def _outcome_in(folder: str, name: str) -> tuple[str, str]:
    try:
        model = tiny_of(name)
        model.save_pretrained(folder)
    except FAILS as error:
        return "not buildable", _line(error)
    try:
        ours = load_model(Subject(folder, "local", name), torch.device("cpu"))
    except ModelUnavailableError as error:
        line = str(error)
        unfit = "cannot load" in line or ("cannot be run" in line and is_unfit(fault_of(model)))
        return ("not buildable" if unfit else "refused"), _line(error)
    try:
        apart = compared(ours, model)
    except FAILS as error:
        return "wrong", _line(error)
    off = [
        f"layer {layer} is off by {each.by:.1e} from {each.reference}"
        for layer, each in enumerate(apart)
        if not each.by <= TOLERANCE
    ]
    if off:
        return "wrong", ", ".join(off)
    in_place = any(each.reference == "list" for each in apart)
    return "right", "cut in place" if in_place else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
