"""The schedules under deploy/: valid for Kubernetes, KubeRay, cron, and our own parser."""

from __future__ import annotations

import re
import shlex
from typing import Any

import kubernetes_validate
import pytest
import yaml

from jobs import cli
from jobs.config.run import parse
from tests.support.places import PROJECT

DEPLOY = PROJECT / "deploy"
KUBERNETES = "1.37"
# The fields of RayJob and RayCluster (ray.io/v1) that a manifest may use, and their types. Of
# KubeRay's definitions, release 1.6.
_TYPES = {"text": str, "whole": int, "number": float, "switch": bool, "block": dict, "list": list}


def _fields(**of_type: str) -> dict[str, type]:
    return {name: _TYPES[kind] for kind, names in of_type.items() for name in names.split()}


RAY_JOB = _fields(
    whole="activeDeadlineSeconds backoffLimit ttlSecondsAfterFinished",
    number="entrypointNumCpus entrypointNumGpus",
    text="entrypoint entrypointResources jobId managedBy runtimeEnvYAML submissionMode",
    switch="shutdownAfterJobFinishes suspend",
    block="clusterSelector deletionStrategy metadata rayClusterSpec submitterConfig "
    "submitterPodTemplate",
)
RAY_CLUSTER = _fields(
    text="rayVersion",
    switch="enableInTreeAutoscaling",
    block="authOptions autoscalerOptions headGroupSpec",
    list="workerGroupSpecs",
)
HEAD = _fields(text="serviceType", block="rayStartParams template")
WORKER = _fields(
    text="groupName",
    whole="idleTimeoutSeconds maxReplicas minReplicas numOfHosts replicas",
    block="rayStartParams template",
)
# Field of cron -> its smallest and largest value.
CRON = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}


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


def _check_fields(values: dict[str, Any], known: dict[str, type], required: set[str]) -> None:
    assert not required - set(values)
    for name, value in values.items():
        assert name in known, f"{name} is no field; there are {sorted(known)}"
        assert isinstance(value, known[name]), name
        assert known[name] is not int or not isinstance(value, bool), name


def _check_schedule(schedule: str) -> None:
    fields = schedule.split()
    assert len(fields) == len(CRON), schedule
    for (name, (low, high)), field in zip(CRON.items(), fields, strict=True):
        for part in field.split(","):
            match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
            assert match, f"{name}: {part}"
            numbers = [int(each) for each in match.groups()[:2] if each is not None]
            assert all(low <= each <= high for each in numbers), f"{name}: {part}"
            assert numbers == sorted(numbers), f"{name}: {part}"


def _check_command(words: list[str]) -> None:
    """Check that the command line takes what a schedule runs."""
    assert words[0].rpartition("/")[2] == "layerrank"
    assert cli._parser().parse_args(words[1:]).command == "nightly"


@pytest.mark.parametrize("kind", ["ConfigMap", "CronJob"])
def test_the_manifests_of_the_cronjob_are_valid_for_kubernetes(kind: str) -> None:
    kubernetes_validate.validate(_manifests("cronjob.yaml")[kind], KUBERNETES, strict=True)


@pytest.mark.parametrize("container", ["nightly", "ray-head", "ray-worker"])
def test_the_pods_of_every_manifest_are_valid_for_kubernetes(container: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": _pods()[container]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_rayjob_has_the_fields_of_its_definition() -> None:
    manifest = _rayjob()
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["metadata"]["generateName"].endswith("-")  # each `kubectl create` is another
    spec = manifest["spec"]
    _check_fields(spec, RAY_JOB, {"entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes"})
    assert spec["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
    assert set(spec["submitterConfig"]) == {"backoffLimit"}
    cluster = spec["rayClusterSpec"]
    _check_fields(cluster, RAY_CLUSTER, {"headGroupSpec"})
    assert cluster["authOptions"] == {"mode": "token"}
    _check_fields(cluster["headGroupSpec"], HEAD, {"template"})
    for group in cluster["workerGroupSpecs"]:
        _check_fields(group, WORKER, {"groupName", "template", "minReplicas", "maxReplicas"})
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
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
    _check_schedule(spec["schedule"])
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
    _check_schedule(" ".join(schedule))
    assert "%" not in command  # cron takes it for the end of the line
    (ours,) = re.findall(r"&& (\S*layerrank [^>|]*)", command)
    _check_command(shlex.split(ours))


@pytest.mark.parametrize("wrong", ["60 3 * * *", "0 3 * *", "0 3 * * mon-", "0 5-3 * * *"])
def test_a_wrong_schedule_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        _check_schedule(wrong)


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
