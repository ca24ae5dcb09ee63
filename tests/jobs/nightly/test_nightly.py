"""Nights: checkpoints that appear, fail, are mended and get worse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerrank.jobs.cluster.pool import CannotScheduleError
from layerrank.jobs.config.settings import StorageConfig, SubjectConfig
from layerrank.jobs.nightly import judge
from layerrank.jobs.nightly import stage as nights
from layerrank.jobs.nightly.judge import Alert, Answer, place, ranked, read_alerts
from layerrank.jobs.run import Run
from layerrank.jobs.subjects import resolve
from layerrank.operators.model.subject import ModelUnavailableError
from layerrank.storage.lock import FOLDER, LeaseLostError, Lock
from layerrank.storage.partition import Partition, partitions
from layerrank.storage.root import Root
from tests.conftest import Cli, edited, write_config
from tests.support.checkpoints import make_run, store_checkpoint
from tests.support.machines.living import Told
from tests.support.tiny import save_tiny, trained_on

SECRET = "path-of-nobody"


Nights = tuple[dict[str, Told], Root]  # what each night printed and how it ended; their root


def _collapse(model: Any) -> None:  # noqa: ANN401
    """Give every token the same embedding: all texts of a length look alike."""
    model.embed_in.weight.copy_(model.embed_in.weight[:1].expand_as(model.embed_in.weight))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Nights:
    folder = tmp_path_factory.mktemp("nights")
    base = save_tiny(folder / "base")
    good = {
        f"step{step}": save_tiny(folder / f"good/step{step}", change=trained_on(step))
        for step in (0, 2, 4, 8, 16)
    }
    worse = save_tiny(folder / "worse", change=_collapse)
    empty, corrupt = folder / "empty", folder / "corrupt"
    for broken in (empty, corrupt):
        shutil.copytree(base, broken)
    (empty / "model.safetensors").unlink()
    (corrupt / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:5000])
    models = folder / "tiny"
    steps: list[tuple[str, dict[str, Path], int]] = [
        ("first", {step: good[step] for step in ("step0", "step2")}, 0),
        ("again", {}, 0),
        ("held", {}, 1),
        ("second", {"step4": good["step4"], "step8": empty, "step16": corrupt}, 1),
        ("third", {"step8": good["step8"], "step16": good["step16"], "step32": worse}, 3),
    ]
    config = write_config(
        folder,
        base,
        subjects=[{"model": str(models), "revisions": "step*"}],
        views={"count": 0},
        tokens={"sample": 0},
        measure={"metrics": ["effective_rank"]},
        extract={"max_tokens": 64, "workers": 1},
        nightly={
            "score_drop": 0.05,
            "layer_moved": None,
            "changes": 4,
            "webhook": f"http://127.0.0.1:1/{SECRET}",
        },
    )
    with edited(config) as values:
        (dataset,) = values["datasets"]
        dataset["tasks"] = [{**dataset["tasks"][0], "samples_per_label": 6, "folds": 5}]
    root, told = Root(str(folder / "out")), {}
    for name, new, code in steps:
        for revision, source in new.items():
            shutil.copytree(source, models / revision, dirs_exist_ok=True)
        lock = Lock(root, "nightly", 60, holder="somebody")
        if name == "held":
            lock.acquire()
        told[name] = cli("nightly", str(config), "--output", root.uri, expect=code)
        lock.release()
    return told, root


def _ranked(root: Root) -> set[str]:
    return {each.keys["revision"] for each in partitions(root, "ranking")}


@pytest.mark.slow
def test_a_night_ranks_what_is_new_and_names_who_is_at_work_and_what_is_broken(
    lived: Nights,
) -> None:
    first, again, held, second, _ = (each.stdout + each.stderr for each in lived[0].values())
    assert "2 checkpoints, 2 without a ranking" in first
    assert "1/2 tiny at step0" in first
    assert "2 checkpoints ranked, 0 failed" in first
    assert "nothing new" in again
    assert "  extract: " in first
    assert "  extract: " not in again
    # A second nightly is told who is at work.
    assert "layerrank: another nightly is running on" in held
    assert "somebody, since" in held
    assert "without a ranking" not in held
    # Broken checkpoints are named, and the good one is published.
    for revision in ("step8", "step16"):
        assert second.count(f"\n  failed: tiny at {revision}: ") == 1
    assert "Traceback" not in second
    assert "1 checkpoint ranked, 2 failed" in second


@pytest.mark.slow
def test_mended_ones_are_ranked_and_a_worse_one_leaves_an_alert(lived: Nights) -> None:
    told, root = lived
    third = told["third"].stdout
    assert _ranked(root) == {f"step{step}" for step in (0, 2, 4, 8, 16, 32)}
    alerts = read_alerts(root, "small", "tiny")
    assert set(alerts) == {"step32"}
    alert = alerts["step32"]
    assert alert.previous == "step16"
    rules = {each.rule: each.numbers for each in alert.rules}
    assert rules["score_drop"]["now"] < rules["score_drop"]["before"] - 0.05
    assert "the webhook did not take the alert of tiny at step32 (ConnectionRefusedError" in third
    assert "step32.json.waiting" in root.sizes("alerts/small/tiny")
    everything = "".join(each.stdout + each.stderr for each in told.values())
    files = [each for each in Path(root.uri).rglob("*") if each.is_file()]
    assert SECRET not in everything
    assert not [each for each in files if SECRET.encode() in each.read_bytes()]
    # The trend page has every checkpoint.
    assert Path(alert.trend) == Path(root.path("trend/small/index.html"))
    (model,) = json.loads(root.read("trend/small/trend.json"))["models"]
    assert [row["step"] for row in model["checkpoints"]] == [0, 2, 4, 8, 16, 32]
    assert model["unranked"] == []
    assert [alert["revision"] for alert in model["alerts"]] == ["step32"]
    page = root.read("trend/small/index.html")
    assert b"Alert at step32, compared with step16" in page


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A night over three new checkpoints, whose stages are the test's."""
    monkeypatch.setattr(nights, "prepare", lambda _: None)
    monkeypatch.setattr(Run, "require_readable", lambda _: None)
    monkeypatch.setattr(nights, "require_scores", lambda _: None)
    run = make_run(tmp_path, ["step0", "step1", "step2"])
    store_checkpoint(run, "step0", [0.3, 0.4, 0.5, 0.4])
    return run


@pytest.mark.slow
def test_an_old_night_that_cannot_be_made_again_is_named_and_later_nights_go_on(
    lived: Nights, cli: Cli, tmp_path: Path
) -> None:
    origin, output = Path(lived[1].uri), tmp_path / "out"
    shutil.copytree(origin, output)
    models = tmp_path / "tiny"
    shutil.copytree(origin.parent / "tiny", models)
    with edited(origin.parent / "run.yaml", tmp_path / "run.yaml") as values:
        values["subjects"] = [{"model": str(models), "revisions": "step*"}]
        values["keep"] = {"nights": 1}
    night = ("nightly", str(tmp_path / "run.yaml"), "--output", str(output))
    for step in ("step0", "step2"):  # of the first the checkpoint is gone too
        (shard,) = output.glob(f"ranking/*/revision={step}/*/*.parquet")
        content = bytearray(shard.read_bytes())
        content[50] ^= 1
        shard.write_bytes(content)
    shutil.rmtree(models / "step0")
    told = cli(*night, expect=1).stdout
    assert "1/1 tiny at step2" in told  # made again
    assert told.count("failed: tiny at step0: ") == 1
    assert "ranking/model=tiny/revision=step0/" in told
    # Vectors of old nights go, and are not missed.
    kept = {path.name for path in output.glob("embeddings/*/*") if [*path.rglob("*.parquet")]}
    assert kept == {"revision=step0", "revision=step32"}
    told = cli("status", str(output), expect=1).stdout
    (damaged,) = (line for line in told.splitlines() if line.startswith("damaged"))
    assert "ranking of model tiny, revision step0" in damaged
    shutil.copytree(models / "step16", models / "step64")
    assert "1/1 tiny at step64" in cli(*night, expect=1).stdout
    quiet = cli(*night, "-q", expect=1).stdout
    assert quiet.startswith("failed: tiny at step0: ")
    assert quiet.count("\n") == 1
    cli("repair", str(output))
    assert "nothing new" in cli(*night).stdout


def _stage(monkeypatch: pytest.MonkeyPatch, stage: Callable[[Run], object]) -> None:
    monkeypatch.setattr(nights, "_STAGES", (stage,))


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt("stop"), LeaseLostError("lost"), CannotScheduleError("no CPU")],
    ids=lambda error: type(error).__name__,
)
def test_what_concerns_the_whole_night_ends_it_and_frees_the_lock(
    night: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    tried: list[str] = []

    def stage(run: Run) -> None:
        tried.append(run.subjects[0].revision)
        raise error

    _stage(monkeypatch, stage)
    with pytest.raises(type(error)):
        nights.nightly(night)
    assert tried == ["step1"]
    assert night.root.sizes("trend/small") == {}
    Lock(night.root, "nightly", 60).acquire()


def test_an_alert_of_a_night_that_was_killed_before_it_was_posted_is_not_lost(
    night: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_checkpoint(night, "step1", [0.3, 0.4, 0.2, 0.4])
    first, second = ranked(night, ())[0]
    folder = place("small", "org/model", "").rpartition("/")[0]

    def post(alert: Alert, *_: object) -> Answer:
        posted.append(alert.revision)
        if len(posted) == 1:
            raise KeyboardInterrupt
        return "taken"

    posted: list[str] = []
    monkeypatch.setattr(judge, "post", post)
    monkeypatch.setenv(judge.VARIABLE, "http://127.0.0.1:1/")
    with pytest.raises(KeyboardInterrupt):
        nights._judge(night, [first], second, nights.Night())
    assert len(night.root.sizes(folder)) == 2  # the alert, and that it waits
    # It has no ranking yet, which is written after, so the next night judges it again.
    judge.post_waiting(night, [first])
    assert posted == ["step1"]
    nights._judge(night, [first], second, nights.Night())
    assert posted == ["step1", "step1"]
    assert [*night.root.sizes(folder)] == ["step1.json"]


def test_what_concerns_one_checkpoint_leaves_the_others(
    night: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(run: Run) -> None:
        raise ModelUnavailableError(f"{run.subjects[0].revision}\nhas no weights")

    _stage(monkeypatch, stage)
    found = nights.nightly(night)
    assert [each.revision for each in found.failed] == ["step1", "step2"]
    assert "failed: org/model at step2: step2 has no weights\n" in capsys.readouterr().out
    (model,) = json.loads(night.root.read("trend/small/trend.json"))["models"]
    assert [each["revision"] for each in model["unranked"]] == ["step1", "step2"]


def test_a_lock_that_is_lost_between_stages_publishes_nothing_more(
    night: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another nightly takes over while the first stage runs: the second is not reached."""

    reached: list[Run] = []

    def taken_over(run: Run) -> None:
        run.root.write(f"{FOLDER}/nightly-000009.json", b"{}")

    monkeypatch.setattr(nights, "_STAGES", (taken_over, reached.append))
    with pytest.raises(LeaseLostError):
        nights.nightly(night)
    assert reached == []
    assert _ranked(night.root) == {"step0"}


def test_a_night_is_ranked_though_the_scores_of_the_one_before_are_damaged(night: Run) -> None:
    store_checkpoint(night, "step1", [0.3, 0.4, 0.5, 0.4])
    where = Partition("probe_scores", ("org/model", "step0", "texts", "clean", "t"))
    path = Path(night.root.path(where.shard("scores.parquet")))
    path.write_bytes(path.read_bytes()[:-9])
    first, second = ranked(night, ())[0]
    found = nights.Night()
    nights._judge(night, [first], second, found)
    assert [each.revision for each in found.failed] == ["step0"]
    assert found.regressed == []
    assert path.is_file()  # nobody can make it again


def test_an_alert_of_an_earlier_look_is_withdrawn(night: Run) -> None:
    key = place("small", "org/model", "step1")
    night.root.write(key, b"{}")
    store_checkpoint(night, "step1", [0.3, 0.4, 0.5, 0.4])
    first, second = ranked(night, ())[0]
    nights._judge(night, [first], second, nights.Night())
    assert not night.root.exists(key)


def test_a_listed_checkpoint_whose_folder_is_gone_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "step1").mkdir()
    subject = SubjectConfig(model=str(tmp_path), revisions=("step0", "step1"))
    found = resolve([subject], StorageConfig(), keep_gone=True)
    assert [each.revision for each in found] == ["step0", "step1"]
