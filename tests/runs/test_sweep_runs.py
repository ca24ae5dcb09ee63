"""A sweep over checkpoints in object storage, for real: `run … --subject s3://… --revisions …`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerrank.storage.checkpoint import CACHE
from layerrank.storage.root import Root
from tests.conftest import S3, Cli, write_config
from tests.support.machines.living import Told
from tests.support.tiny import save_tiny, trained_on

pytestmark = pytest.mark.slow
STEPS = ("step2", "step10")


@dataclass(frozen=True)
class Swept:
    """What a sweep left, and how to go on."""

    cli: Cli
    words: tuple[str, ...]
    first: Told
    output: Path
    cache: Path
    remote: Root


@pytest.fixture(scope="module")
def swept(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    remote = s3.root("swept/neox")
    for index, step in enumerate(STEPS):
        for file in save_tiny(folder / step, blocks=2, change=trained_on(index)).iterdir():
            remote.write(f"{step}/{file.name}", file.read_bytes())
    config = write_config(
        folder,
        folder / STEPS[0],
        extract={"max_tokens": 64, "workers": 1},
        probe={"variants": ["raw"]},
        views={"count": 0},
        tokens={"sample": 0},
        measure={"metrics": ["prompt_entropy", "rankme"], "token_metrics": "fused"},
    )
    output, cache = folder / "out", folder / "cache"
    cli = Cli({**s3.environment, CACHE: str(cache)})
    subject = ("--subject", remote.uri, "--revisions", "step*")
    words = (str(config), *subject, "--output", str(output))
    return Swept(cli, words, cli("run", *words), output, cache, remote)


def test_every_checkpoint_is_extracted_and_the_report_is_about_training(swept: Swept) -> None:
    found = json.loads((swept.output / "report" / "small" / "report.json").read_text())
    subjects = found["subjects"]
    assert [each["revision"] for each in subjects] == list(STEPS)
    assert {each["model"] for each in subjects} == {f"{swept.remote.uri}/{s}" for s in STEPS}
    values = [json.dumps(each["metrics"]) for each in subjects]
    assert values[0] != values[1]
    (sweep,) = found["sweeps"]
    assert (sweep["name"], sweep["steps"]) == ("neox", [2, 10])
    assert "  neox at step 10: " in swept.first.stdout
    weights = sorted(swept.cache.rglob("*.safetensors"))
    assert len(weights) == len(STEPS)


def test_no_secret_and_no_place_of_the_cache_is_stored(swept: Swept) -> None:
    secret = str(swept.remote.options["secret"]).encode()
    files = [file for file in swept.output.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        assert secret not in content, file
        assert str(swept.cache).encode() not in content, file
    assert secret.decode() not in swept.first.stdout + swept.first.stderr


def test_a_checkpoint_that_breaks_stops_the_run_before_any_work(swept: Swept) -> None:
    before = (swept.output / "report" / "index.html").read_bytes()
    content = swept.remote.read("step10/model.safetensors")
    swept.remote.write("step11/config.json", swept.remote.read("step10/config.json"))
    swept.remote.write("step11/model.safetensors", content[: len(content) // 2])
    failed = swept.cli("run", *swept.words, expect=2)
    assert "1/5 prepare" not in failed.stdout
    assert failed.stderr.startswith(
        f"layerrank: cannot load model {swept.remote.uri}/step11 at revision step11: its "
        "model.safetensors is cut off"
    )
    assert failed.stderr.count("\n") == 1
    assert (swept.output / "report" / "index.html").read_bytes() == before
