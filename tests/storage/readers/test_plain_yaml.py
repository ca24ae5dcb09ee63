"""YAML is refused for what it would become, and is otherwise what `yaml.safe_load` reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from layerrank.storage.readers import plain_yaml
from tests.support.places import PROJECT

_ALIASES = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]
)
_MERGES = "\n".join(
    [
        "a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(9)) + "}",
        *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 8)),
    ]
)
_DATASETS = "".join(f"- {{name: d{n}, source: {{files: x{n}.jsonl}}}}\n" for n in range(20_000))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (_ALIASES, "becomes more than"),
        (_MERGES, "becomes more than"),
        (f"datasets:\n{_DATASETS}", "becomes more than"),
        ("a: " + "[" * 500_000, "deep"),
        ("".join(" " * n + "a:\n" for n in range(100)), "deep"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {<<: *a}", "contains itself"),
        ("a: " + "9" * 1_000_000, "1,000,000 characters"),
        ("a: " + ":".join(["59"] * 100_000), "characters"),
        ("# \n" * 2_000_000, "at most"),
    ],
)
def test_what_becomes_too_much_is_refused_before_it_does(text: str, word: str) -> None:
    began = time.process_time()
    with pytest.raises(plain_yaml.RefusedError, match=word):
        plain_yaml.load(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("a: 1\nb: 2\na: 3", "'a'", (1, 3)),
        ("a:\n- b:\n    c: 1\n    d: {x: 1}\n    'c': 2", "'c'", (3, 5)),
        ("{a: 1, b: {d: 1,\n d: 2}}", "'d'", (1, 2)),
        ("1: a\n0x1: b", "'0x1'", (1, 2)),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "'<<'", (3, 4)),
        ("? [a, b]\n: {e: 1, e: 2}", "'e'", (2, 2)),
    ],
)
def test_a_key_that_a_mapping_has_twice_is_named_with_its_lines(
    text: str, key: str, lines: tuple[int, int]
) -> None:
    with pytest.raises(plain_yaml.RefusedError) as refused:
        plain_yaml.load(text)
    problem = refused.value.problem or ""
    assert f"the key {key} is given twice" in problem
    assert problem.endswith("in lines {} and {}".format(*lines))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]",
        "x: {a: 1}\ny: {a: 2}\nz: [{a: 1}, {a: 2}]",
        "a: 2024-01-01\nb: 1_000\nc: 0x1f\nd: 'on'\ne: on\nf: .inf\ng: ~\nh: !!str 5\ni: ! 5",
        "'1': a\n1: b",
        *((PROJECT / "jobs" / "recipes" / name) for name in ("demo.yaml", "pythia-410m.yaml")),
    ],
)
def test_all_else_is_what_safe_load_reads(text: str | Path) -> None:
    content = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    assert plain_yaml.load(content) == yaml.safe_load(content)


@pytest.mark.parametrize("read", [plain_yaml.load, yaml.safe_load])
@pytest.mark.parametrize(
    "text", ["a: [", "a: *b", "a: !!python/name:os.system", "---\na: 1\n---\nb: 1", "a: \0"]
)
def test_no_yaml_is_an_error_of_yaml(text: str, read: Callable[[str], object]) -> None:
    with pytest.raises(yaml.YAMLError) as error:
        read(text)
    assert not isinstance(error.value, plain_yaml.RefusedError)
