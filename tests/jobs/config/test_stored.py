"""What a root keeps of its runs: the defaults that it began with, and who is at work."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from xxhash import xxh3_128_hexdigest

from layerrank.jobs.config.blocks import LATER, Block, ConfigError
from layerrank.jobs.config.run import RunConfig, parse
from layerrank.jobs.config.stored import (
    FOLDER,
    continued,
    given_of,
    record,
    require_no_conflict,
    shown,
    stored,
)
from layerrank.storage import lock
from layerrank.storage.lock import Claim, claimed
from layerrank.storage.manifest import SettingsConflictError
from layerrank.storage.root import Root

TASK: dict[str, Any] = {"name": "t", "type": "classification", "label_column": "l"}


def config(*, task: dict[str, Any] | None = None, name: str = "one", **changes: Any) -> RunConfig:  # noqa: ANN401
    """Return a config of which nothing is named but what is given."""
    dataset = {"name": "data", "source": {"files": "x.jsonl"}, "tasks": [TASK | (task or {})]}
    dataset |= changes.pop("dataset", {})
    values = {"name": name, "subjects": [{"model": "m"}], "datasets": [dataset], **changes}
    return parse(yaml.safe_dump(values), "run.yaml")


def began_with(
    root: Root, before: RunConfig, monkeypatch: pytest.MonkeyPatch, given: RunConfig | None = None
) -> None:
    """Leave what a version leaves whose defaults were the values of `before`."""
    bare = shown(given or config(), given=True)
    plain = shown

    def as_then(which: RunConfig, *, given: bool = False) -> dict[str, Any]:
        return bare if given else plain(which)

    monkeypatch.setattr("layerrank.jobs.config.stored.shown", as_then)
    record(before, before, root)
    monkeypatch.undo()


def test_a_root_keeps_the_defaults_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(str(tmp_path))
    then = config(
        task={"folds": 7, "samples_per_label": 3},
        dataset={"min_chars": 5},
        views={"count": 8},
        rank={"policy": "best"},
    )
    began_with(root, then, monkeypatch)
    found = continued(config(), root)
    assert shown(found) == shown(then)
    # Until the config names a key; and of what it had named there is no default to keep.
    named = continued(config(views={"count": 4}, task={"folds": 2}), root)
    assert (named.views.count, named.rank.policy) == (4, "best")
    (task,) = shown(named)["datasets"][0]["tasks"]
    assert (task["folds"], task["samples_per_label"]) == (2, 3)
    record(named, config(views={"count": 4}, task={"folds": 2}), root)
    (kept,) = stored(root)
    assert kept["given"]["views"] == {"count": 4}
    assert continued(config(), root).views.count == config().views.count
    assert continued(config(), root).rank.policy == "best"
    # Another run of the root begins as its first.
    assert continued(config(name="two"), root).rank.policy == "best"
    # What was switched off and is named no more has its default.
    off = config(nightly={"score_drop": None})
    record(off, off, root)
    assert continued(config(), root).nightly == config().nightly
    # A file that is not as it was written is none.
    path = tmp_path / FOLDER / "one.yaml"
    path.write_bytes(path.read_bytes().replace(b"best", b"last"))
    assert continued(config(), root) == config()


def test_a_model_is_the_one_that_was_kept_by_another_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions kept the path as it was given, and it is now one from anywhere."""
    root = Root(str(tmp_path))
    then = config(subjects=[{"model": "models/m", "dtype": "bfloat16", "adapter": "a/lora"}])
    began_with(
        root, then, monkeypatch, config(subjects=[{"model": "models/m", "adapter": "a/lora"}])
    )
    for model, adapter, dtype in (
        ("/here/models/m", "/a/lora", "bfloat16"),
        ("/here/models/other", "/a/lora", "float32"),
        ("/here/models/m", "/a/other", "float32"),
    ):
        now = config(subjects=[{"model": model, "adapter": adapter}])
        assert continued(now, root).subjects[0].dtype == dtype


def test_a_default_that_is_named_nowhere_changes_nothing(tmp_path: Path) -> None:
    root, given = Root(str(tmp_path)), config(measure={"metrics": ["rankme"]})
    record(given, given, root)
    before = root.listing(FOLDER)
    assert continued(given, root) is given
    record(given, given, root)
    assert root.listing(FOLDER) == before


def test_a_key_that_came_later_changes_no_digest_while_it_has_its_default() -> None:
    class Before(Block):
        count: int = 3

    class Now(Before):
        how: Annotated[str, LATER] = "plainly"

    assert Now().settings() == Before().settings() == {"count": 3}
    assert Now(how="else").settings() == {"count": 3, "how": "else"}
    assert Now(how="else").settings(exclude={"how"}) == {"count": 3}


def test_a_root_from_before_a_key_is_continued_as_it_was_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, now = Root(str(tmp_path)), config()
    assert now.datasets[0].settings()["fewest_shards"] == now.datasets[0].fewest_shards
    assert now.measure.settings()["dime_sample"] == now.measure.dime_sample == 1_000
    without, plain = config(measure={"dime_sample": None}), shown

    def as_then(which: RunConfig, *, given: bool = False) -> dict[str, Any]:
        found = plain(config() if given else which, given=given)
        if not given:
            del found["measure"]["dime_sample"]
            for dataset in found["datasets"]:
                del dataset["fewest_shards"]
        return found

    with monkeypatch.context() as patch:
        patch.setattr("layerrank.jobs.config.stored.shown", as_then)
        record(without, without, root)
    # Its digests are those of a version that does not know the key, and every prompt counts.
    for _ in range(2):
        found = continued(now, root)
        assert found.measure.dime_sample is None
        assert found.datasets[0].fewest_shards == 1
        assert "fewest_shards" not in found.datasets[0].settings()
        known = {name for name in type(now.measure).model_fields if name != "dime_sample"}
        assert found.measure.settings() == now.measure.settings(include=known)
        record(found, now, root)  # by this version, which keeps it so
    named = continued(config(measure={"dime_sample": 500}), root)
    assert named.measure.settings()["dime_sample"] == 500
    # A root that begins with this version has the default.
    fresh = Root(str(tmp_path / "fresh"))
    record(now, now, fresh)
    assert continued(now, fresh) is now


def test_nothing_secret_is_kept(tmp_path: Path) -> None:
    secret = "hunter2"
    values: dict[str, Any] = {
        "storage": {"secret": secret},
        "nightly": {"webhook": f"http://host/{secret}"},
        "dataset": {"source": {"files": f"https://me:{secret}@host/x.jsonl?sign={secret}"}},
    }
    secretive = config(**values)
    record(secretive, secretive, Root(str(tmp_path)))
    (path,) = (tmp_path / FOLDER).iterdir()
    assert secret not in path.read_text()


@pytest.mark.parametrize(
    "content",
    [
        b"[1, 2]\n",
        b"name: [\n",
        b"name: one\n",
        b"{name: one, number: x, given: {}, config: {}}\n",
        b"{name: one, number: 1, given: {subjects: [], datasets: [1]}, config: {}}\n",
        b"{name: ../one, number: 1, given: {subjects: [], datasets: []}, config: {subjects: [], "
        b"datasets: []}}\n",
        b"!!python/object/apply:os.abort []\n",
    ],
)
def test_a_stored_config_of_another_form_is_none(content: bytes, tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    seal = xxh3_128_hexdigest(content)
    root.write(f"{FOLDER}/one.yaml", content + f"seal: {seal}\n".encode())
    assert [*stored(root)] == []
    record(config(), config(), root)
    (kept,) = stored(root)
    assert given_of(kept, root).name == "one"
    with pytest.raises(ConfigError, match=r"one\.yaml.*datasets"):
        given_of({**kept, "given": {**kept["given"], "datasets": []}}, root)


@pytest.mark.parametrize("about", [{"name": "x"}, {"name": 1, "datasets": 5, "subjects": [[]]}])
def test_who_does_not_say_with_which_settings_is_waited_for(
    about: dict[str, Any], tmp_path: Path
) -> None:
    other = Claim(lock.Lease("\x1b[31mme", "x", 0.0, 1.0), about)
    with pytest.raises(SettingsConflictError, match="does not say with which settings"):
        require_no_conflict(config(), Root(str(tmp_path)), other)


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({}, ""),
        ({"extract": {"device": "cpu", "workers": 3}}, ""),
        ({"name": "two", "rank": {"policy": "best"}}, ""),
        ({"dataset": {"name": "else", "limit": 3}, "seed": 1}, ""),
        ({"extract": {"max_tokens": 12}}, "extract.max_tokens"),
        ({"subjects": [{"model": "n"}], "extract": {"max_tokens": 12}}, ""),
        ({"dataset": {"limit": 3}}, "datasets.data.limit"),
        ({"task": {"folds": 2}, "name": "two"}, "datasets.data.tasks.t.folds"),
        ({"task": {"folds": 2, "name": "u"}}, ""),
        ({"rank": {"policy": "cheapest_equal"}}, "rank.policy"),
        ({"rank": {"level": 0.9}, "name": "two"}, "rank.level"),
        ({"subjects": [{"model": "m", "dtype": "bfloat16"}]}, "subjects.m.dtype"),
        ({"subjects": [{"model": "m", "adapter": "a"}], "seed": 1}, ""),
        ({"subjects": [{"model": "m", "name": "m", "adapter": "a"}]}, "subjects.m.adapter"),
        ({"subjects": [{"model": "m", "revision": "a"}], "seed": 1}, "seed"),
        ({"subjects": [{"model": "n", "name": "m"}], "seed": 1}, "seed"),
        ({"curves": {"examples": [4]}}, "curves.examples"),
        ({"conditions": {"noise": [0.1]}}, "conditions.noise"),
    ],
)
def test_two_at_once_are_refused_if_they_would_write_the_same_otherwise(
    tmp_path: Path, other: dict[str, Any], key: str
) -> None:
    root, first, second = Root(str(tmp_path)), config(), config(**other)

    def begin(which: RunConfig) -> Any:  # noqa: ANN401
        return claimed(root, shown(which), partial(require_no_conflict, which, root))

    with begin(first):
        if key:
            with (
                pytest.raises(SettingsConflictError, match=f"{key} is .* there and"),
                begin(second),
            ):
                pass
        else:
            with begin(second):
                pass
        assert len(root.sizes(lock.FOLDER)) == 1
    assert root.sizes(lock.FOLDER) == {}
    with begin(second):
        pass


def test_the_claim_of_a_process_that_has_ended_is_nobodys(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from layerrank.storage.lock import claimed\n"
        "from layerrank.storage.root import Root\n"
        "with claimed(Root(sys.argv[1]), {}, print): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    root, met = Root(str(tmp_path)), list[Claim]()
    assert len(root.sizes(lock.FOLDER)) == 1
    with claimed(root, {}, met.append):
        assert len(root.sizes(lock.FOLDER)) == 1
    # Of one on another machine nothing is known before its lease runs out.
    with claimed(root, {"of": "another"}, met.append):
        (name,) = root.sizes(lock.FOLDER)
        told = root.read(f"{lock.FOLDER}/{name}")
        elsewhere = told.replace(f"process {os.getpid()} on ".encode(), b"process 1 on not-")
        root.write(f"{lock.FOLDER}/run-x.json", elsewhere)
    with claimed(root, {}, met.append):
        pass
    assert [each.about for each in met] == [{"of": "another"}]
