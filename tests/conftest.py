"""What several test modules share: small configs, a real S3 server, and the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

from layerrank.storage.root import Root
from tests.support.machines.living import Living, Told
from tests.support.places import PROJECT
from tests.support.tiny import save_tiny

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("layerrank", deadline=None)
hypothesis.settings.load_profile("layerrank")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that hold slow tests, so that no worker waits for one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


TIME_LIMIT = 480
TOPICS = {
    "sea": ["wave", "tide", "harbour", "sail", "salt", "gull"],
    "kitchen": ["oven", "flour", "spoon", "onion", "plate", "simmer"],
    "sky": ["cloud", "star", "orbit", "moon", "comet", "dawn"],
}


@dataclass(frozen=True)
class Cli:
    """Runs `layerrank` as a user does: another process, the environment's own python.

    With `living` the commands run one after another in a process that lives on.
    """

    environment: dict[str, str]
    living: Living | None = None

    def __call__(self, *arguments: str, expect: int = 0) -> Told:
        if self.living:
            told = self.living.tell(list(arguments), TIME_LIMIT)
        else:
            told = subprocess.run(
                [sys.executable, "-m", "layerrank", *arguments],
                cwd=PROJECT,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
                check=False,
            )
        assert told.returncode == expect, f"{arguments}\n{told.stdout}\n{told.stderr}"
        return told


def offline_environment() -> dict[str, str]:
    """Return this process's environment without hub access and without a cluster address."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    return {**environment, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def cli() -> Iterator[Cli]:
    """Commands in one process."""
    environment = offline_environment()
    living = Living(environment, PROJECT)
    yield Cli(environment, living)
    living.end()


@pytest.fixture(scope="session")
def fresh_cli() -> Cli:
    """Commands in processes of their own."""
    return Cli(offline_environment())


@dataclass(frozen=True)
class S3:
    """A bucket on a real HTTP S3 server, and the environment that reaches it."""

    uri: str
    endpoint: str
    environment: dict[str, str]

    def root(self, prefix: str) -> Root:
        """Return a prefix of the bucket, with what reaches it."""
        options = {
            "key": self.environment["AWS_ACCESS_KEY_ID"],
            "secret": self.environment["AWS_SECRET_ACCESS_KEY"],
            "client_kwargs": {
                "endpoint_url": self.endpoint,
                "region_name": self.environment["AWS_DEFAULT_REGION"],
            },
        }
        return Root(f"{self.uri}/{prefix}", options)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    with s3_server() as found:
        yield found


@contextmanager
def s3_server() -> Iterator[S3]:
    """Give an S3 server of this process with a bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    access = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    found = S3("s3://layers", endpoint, {**offline_environment(), **access})
    found.root("").filesystem.call_s3("create_bucket", Bucket="layers")
    try:
        yield found
    finally:
        server.stop()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-NeoX with a tokenizer, as a folder."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-neox")


def write_texts(path: Path, count: int = 60) -> Path:
    """Write labelled texts as JSONL: two sentences of one topic, a short query, a split.

    `other` is the row's own query in even rows (`same`), and that of an even row in odd ones.
    """
    rows: list[dict[str, Any]] = []
    for index in range(count):
        topic = list(TOPICS)[index % 3]
        words = TOPICS[topic]
        a, b = words[index % 6], words[(index // 6) % 6]
        rows.append(
            {
                "text": f"Passage {index} tells of the {a} and the {b}, and of {topic} itself.",
                "query": f"the {a} of passage {index}",
                "topic": topic,
                "part": "train" if index % 2 else "test",
                "same": index % 2 == 0,
                "relevance": 1 - index % 2,
                "tags": [topic, "first half"] if index < count / 2 else [topic],
                "length": len(a) + len(b),
            }
        )
    for index, row in enumerate(rows):
        row["other"] = rows[index if row["same"] else (index + 7) % count]["query"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# The types of task that the small config leaves out, on the same texts.
MORE_TASKS: list[dict[str, Any]] = yaml.safe_load("""
- {name: tags, type: classification, multi_label: true, label_column: tags, split_column: part,
   samples_per_label: 4, folds: 3}
- {name: length, type: regression, value_column: length, split_column: part, samples: 20, folds: 3}
- {name: pairs, type: pair_classification, first_column: text, second_column: other,
   label_column: same}
- {name: alike, type: sts, first_column: text, second_column: other, score_column: length}
- {name: order, type: reranking, query_column: other, candidate_column: text,
   relevance_column: relevance}
""")
_SMALL = """
name: small
subjects:
- {model: CHECKPOINT, name: tiny}
datasets:
- name: topics
  source: {files: TEXTS}
  shard_prompts: 32
  tasks:
  - {name: topic, type: classification, label_column: topic, split_column: part,
     samples_per_label: 4, folds: 3}
  - {name: groups, type: clustering, label_column: topic, folds: 3}
  - {name: find, type: retrieval, query_column: query}
# To start another worker costs more than it saves.
extract: {norms: [none, final], poolings: [mean, last], max_tokens: 64, workers: 1}
views: {count: 4, sample: 24}
tokens: {sample: 16}
keep: {views: true}
measure: {token_metrics: stored, dime_sample: 20}
rank: {draws: 500}
"""


def write_config(folder: Path, checkpoint: Path, **changes: Any) -> Path:  # noqa: ANN401
    """Write a small run config; keyword arguments replace whole top-level keys."""
    config = yaml.safe_load(_SMALL)
    config["subjects"][0]["model"] = str(checkpoint)
    config["datasets"][0]["source"]["files"] = str(write_texts(folder / "texts.jsonl"))
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}), encoding="utf-8")
    return path


@contextmanager
def edited(config: Path, other: Path | None = None) -> Iterator[dict[str, Any]]:
    """Give the values of a config to change, and write it again, or as another."""
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    yield values
    (other or config).write_text(yaml.safe_dump(values), encoding="utf-8")
