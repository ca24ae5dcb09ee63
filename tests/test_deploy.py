"""The schedules under deploy/: valid for Kubernetes, KubeRay, cron, and our own parser."""

from __future__ import annotations

import re
import shlex
from typing import Any

import kubernetes_validate
import pytest
import yaml

from layerrank.jobs.cli.parser import build
from layerrank.jobs.config.run import parse
from tests.support.places import PROJECT

DEPLOY = PROJECT / "deploy"
KUBERNETES = "1.37"
# The fields of a RayJob and its RayCluster (ray.io/v1) that the manifest has, and their types: of
# KubeRay's definitions, release 1.6.
GROUP = {"rayStartParams": dict, "template": dict}
REPLICAS = {"replicas": int, "minReplicas": int, "maxReplicas": int}
RAY_JOB = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "submitterConfig": {"backoffLimit": int},
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": {
        "rayVersion": str,
        "authOptions": {"mode": str},
        "enableInTreeAutoscaling": bool,
        "headGroupSpec": GROUP,
        "workerGroupSpecs": [{"groupName": str, **REPLICAS, **GROUP}],
    },
}
ONCE_A_DAY = r"[0-5]?\d ([01]?\d|2[0-3]) \* \* \*"  # of cron


def _manifests(name: str) -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8"))
    return {each["kind"]: each for each in found}


def _rayjob() -> dict[str, Any]:
    return _manifests("rayjob.yaml")["RayJob"]


def _pods() -> dict[str, dict[str, Any]]:
    """Return the pod template of every manifest by the name of its container."""
    cron = _manifests("cronjob.yaml")["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    cluster = _rayjob()["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = [cron, *(group["template"] for group in groups)]
    return {each["spec"]["containers"][0]["name"]: each["spec"] for each in templates}


def _types(value: Any, known: Any) -> Any:  # noqa: ANN401
    """Return the fields of a block and their types, as deep as they are known."""
    if isinstance(known, dict):
        return {name: _types(each, known.get(name)) for name, each in value.items()}
    if isinstance(known, list):
        return [_types(each, known[0]) for each in value]
    return type(value)


def _check_command(words: list[str]) -> None:
    """Check that the command line takes what a schedule runs."""
    assert words[0].rpartition("/")[2] == "layerrank"
    assert build().parse_args(words[1:]).command == "nightly"


@pytest.mark.parametrize("name", ["ConfigMap", "CronJob", "nightly", "ray-head", "ray-worker"])
def test_the_cronjob_and_all_pods_are_valid_for_kubernetes(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": _pods().get(name)}
    manifest = _manifests("cronjob.yaml").get(name, pod)
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_rayjob_has_the_fields_of_its_definition() -> None:
    manifest = _rayjob()
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["metadata"]["generateName"].endswith("-")  # each `kubectl create` is another
    spec = manifest["spec"]
    assert _types(spec, RAY_JOB) == RAY_JOB
    assert spec["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_every_volume_is_mounted_and_every_mount_has_its_volume() -> None:
    names = {each["metadata"].get("name") for each in _manifests("cronjob.yaml").values()}
    for pod in _pods().values():
        volumes = {each["name"] for each in pod["volumes"]}
        assert volumes == {each["name"] for each in pod["containers"][0]["volumeMounts"]}
        configs = {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v}
        assert configs <= names


def test_the_commands_are_ours_and_read_the_config_that_is_mounted() -> None:
    container = _pods()["nightly"]["containers"][0]
    entrypoint = shlex.split(_rayjob()["spec"]["entrypoint"])
    for words in (container["command"], entrypoint):
        _check_command(words)
        assert words[2] == f"{container['volumeMounts'][0]['mountPath']}/nightly.yaml"
    assert entrypoint[-2:] == ["--address", "auto"]


def test_the_config_is_one_nights_do_not_overlap_and_a_regression_is_not_tried_again() -> None:
    spec = _manifests("cronjob.yaml")["CronJob"]["spec"]
    assert re.fullmatch(ONCE_A_DAY, spec["schedule"])
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    (codes,) = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"][1:]]
    assert (codes["operator"], codes["values"]) == ("In", [2, 3])
    assert codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    day = 24 * 3600
    text = _manifests("cronjob.yaml")["ConfigMap"]["data"]["nightly.yaml"]
    config = parse(text, "the ConfigMap")
    for spec in (job, _rayjob()["spec"]):
        assert spec["activeDeadlineSeconds"] + config.nightly.lease_seconds < day
    assert config.output
    assert config.subjects[0].revisions == "step*"
    assert "datasets" in config.model_fields_set


def test_the_crontab_is_a_schedule_and_a_command() -> None:
    lines = (DEPLOY / "crontab").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    (job,) = [line for line in lines if not re.match(r"[A-Z]+=", line)]
    *schedule, command = job.split(maxsplit=5)
    assert re.fullmatch(ONCE_A_DAY, " ".join(schedule))
    assert "%" not in command  # cron takes it for the end of the line
    (ours,) = re.findall(r"&& (\S*layerrank [^>|]*)", command)
    _check_command(shlex.split(ours))


def test_every_image_is_that_of_the_cluster() -> None:
    cluster = yaml.safe_load((PROJECT / "cluster.yaml").read_text(encoding="utf-8"))["docker"]
    file = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (image,) = re.findall(r"^FROM (\S+)$", file, re.MULTILINE)
    built = {image.replace("${DEVICE}", device) for device in ("cpu", "gpu")}
    assert built == {cluster["head_image"], cluster["worker_image"]}
    assert f"ray:{_rayjob()['spec']['rayClusterSpec']['rayVersion']}-" in image
    for copied in re.findall(r"^COPY \S+ (.+) \S+$", file, re.MULTILINE):
        assert all((PROJECT / name).exists() for name in copied.split())


def test_values_to_change_are_marked() -> None:
    for file in sorted(DEPLOY.iterdir()):
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if "example" in line and not line.lstrip().startswith("#"):
                assert "change" in " ".join(lines[max(number - 4, 0) : number + 1]), line
