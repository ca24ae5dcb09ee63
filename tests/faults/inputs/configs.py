"""Configs that are none, or that ask for what cannot be."""

from __future__ import annotations

import yaml

from tests.faults.inputs.case import ROWS, SECRET, Case, config

NAN, INF = float("nan"), float("inf")
ODD = {"name": "odd", "source": {"files": "FOLDER/a.jsonl"}}
LABELS = yaml.safe_load("""
{name: l, type: classification, label_column: label, split_column: part, samples_per_label: 2,
 folds: 2}
""")


def _bomb(lines: list[str], last: str) -> str:
    """Return what is nine times as much in every line, as part of a config."""
    return "\n".join([*lines, "name: bomb", "subjects: [{model: x}]", f"datasets: {last}"])


_ALIASES = [
    "a0: &a0 [x, x, x, x, x, x, x, x, x]",
    *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)),
]
_MERGES = [
    "m0: &m0 {k0: x, k1: x, k2: x}",
    *(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 9)),
]
_MANY = [{"name": f"d{n}", "source": {"files": "x.jsonl"}} for n in range(20_000)]


WHERE = "FOLDER/run.yaml"
TWICE = "name: a\nname: b\n"
BOTH = {"model": "x", "revision": "a", "revisions": "b*"}
CASES: list[Case] = [
    Case("config: no such file", ("run", "nosuch.yaml"), ("config nosuch.yaml", "No such")),
    Case("config: unknown recipe", ("run", "demmo"), ("recipe 'demmo'", "mean demo?")),
    Case("config: a folder", ("run", "FOLDER"), ("FOLDER", "is a folder")),
    Case("config: none of any", ("run",), ("run: error", "required")),
    Case(
        "config: no output",
        ("run", WHERE),
        ("no output", "--output"),
        config("", {}).files,
    ),
    config("empty file", "", WHERE, "empty"),
    config("a list", "- a\n- b\n", WHERE, "keys", "a list"),
    config("a number", "42\n", WHERE, "keys", "a number"),
    config("binary", bytes(range(256)), WHERE, "UTF-8"),
    config("NUL and BOM", b"\xef\xbb\xbfname: x\x00", WHERE, "x0000", "position"),
    config("tab indentation", "name: a\nextract:\n\tmax_tokens: 5\n", WHERE, "line 3, column 1"),
    config("secret on a broken line", f"a: b\nstorage: {{secret: {SECRET}\n", WHERE, "line 3"),
    config("secret of a wrong type", {"storage": {"secret": [SECRET]}}, "storage.secret"),
    config("secret as unknown key", {"storage": {"sekret": SECRET}}, "sekret", "mean secret?"),
    config("secret without a blank", {"storage": f"secret:{SECRET}"}, WHERE, "storage"),
    config("webhook in the wrong key", {"webhook": f"https://x/{SECRET}"}, "key webhook"),
    config("webhook as a block", {"nightly": f"https://x/{SECRET}"}, WHERE, "nightly"),
    config(
        "webhook with another scheme",
        {"nightly": {"webhook": f"ftp://x/{SECRET}"}},
        *("nightly.webhook", "https://"),
    ),
    config("webhook under cluster", {"cluster": {"webhook": f"https://x/{SECRET}"}}, "webhook"),
    config(
        "secret in an address",
        {"datasets": [{"name": "a", "source": {"files": f"s3://KEY:{SECRET}@bucket/a.jsonl"}}]},
        *("dataset a", "s3://BUCKET"),
    ),
    config("secret in the output", {}, "bucket", output=f"s3://KEY:{SECRET}@bucket/x"),
    config("the same key twice", TWICE, WHERE, "line 2", "name"),
    config(
        "the same key twice in a block",
        "name: a\nextract:\n  max_tokens: 5\n  device: cpu\n  max_tokens: 6\n",
        *(WHERE, "line 5", "max_tokens"),
    ),
    config("unknown key", {"extrakt": {}}, WHERE, "extrakt", "mean extract?"),
    config(
        "unknown nested key", {"extract": {"max_token": 5}}, "extract", "max_token", "max_tokens?"
    ),
    config("max_tokens 1", {"extract": {"max_tokens": 1}}, "extract.max_tokens", "2", "1"),
    config("max_tokens a word", {"extract": {"max_tokens": "many"}}, "max_tokens", "'many'"),
    config("max_tokens 10^30", {"extract": {"max_tokens": 10**30}}, "max_tokens", "16777216"),
    config("seed negative", {"seed": -1}),
    config("seed 2^70", {"seed": 2**70}),
    config(
        "probe seed -1",
        {"probe": {"seed": -1}, "datasets": [{**ODD, "tasks": [LABELS]}]},
        *(WHERE, "probe.seed", "-1"),
    ),
    config(
        "probe seed 2^70",
        {"probe": {"seed": 2**70}, "datasets": [{**ODD, "tasks": [LABELS]}]},
        *(WHERE, "probe.seed", str(2**70)),
    ),
    config("name ../../x", {"name": "../../x"}, WHERE, "name", "'../../x'"),
    config("name with newline", {"name": "abc\n"}, WHERE, "name", r"'abc\n'"),
    config("name 300 characters", {"name": "a" * 300}, WHERE, "name", "characters"),
    config("no subjects", {"subjects": []}, WHERE, "subjects", "at least 1"),
    config("no datasets", {"datasets": []}, WHERE, "datasets", "at least 1"),
    config("dataset name a=b", {"datasets": [{**ODD, "name": "a=b"}]}, "datasets.0.name", "a=b"),
    config("dataset name %2F..", {"datasets": [{**ODD, "name": "%2F.."}]}, ".name", "'%2F..'"),
    config("dataset name of 300", {"datasets": [{**ODD, "name": "a" * 300}]}, "datasets.0.name"),
    config("two datasets of a name", {"datasets": [ODD, ODD]}, "dataset name odd", "twice"),
    config("20,000 datasets", {"datasets": _MANY}, WHERE, "50,000"),
    config(
        "two sources",
        {"datasets": [{"name": "a", "source": {"files": "x", "hub": "y"}}]},
        *(WHERE, "datasets.0.source", "files", "hub"),
    ),
    config("revision and revisions", {"subjects": [BOTH]}, "subjects.0", "not both"),
    config(
        "revisions empty",
        {"subjects": [{"model": "x", "revisions": []}]},
        "subjects.0",
        "revisions",
    ),
    config("unknown policy", {"rank": {"policy": "worst"}}, "rank.policy", "best", "'worst'"),
    config("unknown metric", {"measure": {"metrics": ["entropie"]}}, "metrics", "entropie"),
    config("100 views", {"views": {"count": 100}}, "views.count", "99", "100"),
    config("infonce without views", {"measure": {"metrics": ["infonce"]}}, "views.count", "0"),
    config("rank.norm not extracted", {"rank": {"norm": "none"}}, "rank.norm", "extract.norms"),
    config("alpha NaN", {"measure": {"alphas": [NAN]}}, "measure.alphas.0", "nan"),
    config("alpha infinite", {"measure": {"alphas": [INF]}}, "measure.alphas.0", "inf"),
    config("alias bomb", _bomb(_ALIASES, "*a8"), WHERE),
    config("merge bomb", _bomb(_MERGES, "*m8"), WHERE),
    config("an alias within itself", "name: &a [*a]\n", WHERE),
    config("nested 20,000 deep", "name: " + "[" * 20000, WHERE, "deep"),
    config("5,000 workers", {"extract": {"workers": 5000, "max_tokens": 32}}),
    config("100,000 threads", {"extract": {"threads": 100_000}}, "75000", "extract.threads"),
    config("curves.noise 0.123", {"curves": {"noise": [0.123]}}, "curves.noise.0", "0.123"),
    config(
        "conditions above max_tokens",
        {"conditions": {"length": [4096]}},
        *("conditions.length", "4096", "extract.max_tokens"),
    ),
    config("lease of 1 s", {"nightly": {"lease_seconds": 1}}, "nightly.lease_seconds", "5", "1"),
    config("dtype float8", {"subjects": [{"model": "MODEL", "dtype": "float8"}]}, "dtype", "8"),
    config("dtype float16", {"subjects": [{"model": "MODEL", "dtype": "float16"}]}),
    config("a date that is none", "name: 2024-99-99\nsubjects: []\n", WHERE, "YAML"),
    config("an object of Python", "name: !!python/object/apply:os.system [ls]\n", WHERE, "line 1"),
    config("a number of 10,000 digits", "name: a\nseed: " + "9" * 10_000 + "\n", WHERE),
    config("--set without a value", {}, "--set", "KEY=VALUE", more=("--set", "seed")),
    config(
        "--set of an unknown key", {}, "--set", "max_token", more=("--set", "extract.max_token=5")
    ),
    config("--set of a secret", {}, "--set storage", more=("--set", f"storage.sekret={SECRET}")),
    config("--limit 0", {}, "--limit", "0", more=("--limit", "0")),
    config("config in a text", ROWS, WHERE),
]
