"""What is deployed: valid for Kubernetes, KubeRay, Ray and our own parser, and confined."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    "submitterPodTemplate": dict,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": {
        "rayVersion": str,
        "authOptions": {"mode": str},
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": {"env": list, "securityContext": dict, "volumeMounts": list},
        "headGroupSpec": GROUP,
        "workerGroupSpecs": [{"groupName": str, **REPLICAS, **GROUP}],
    },
}
# What every pod and every container of it says.
USER, GROUP_OF_USER = 1000, 100  # of Ray's images
POD = {
    "automountServiceAccountToken": False,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": GROUP_OF_USER,
        "fsGroup": GROUP_OF_USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
NO_PORT_OF_OURS = {8080, 10001}  # metrics, Ray Client
BY_DIGEST = re.compile(r"[\w./-]+:[\w.-]+@sha256:(DIGEST|[0-9a-f]{64})")
ONCE_A_DAY = r"[0-5]?\d ([01]?\d|2[0-3]) \* \* \*"  # of cron


def _manifests(name: str) -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8"))
    return {each["kind"]: each for each in found}


def _policies() -> list[dict[str, Any]]:
    return [*yaml.safe_load_all((DEPLOY / "network.yaml").read_text(encoding="utf-8"))]


def _cluster() -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load((PROJECT / "cluster.yaml").read_text(encoding="utf-8"))
    return cluster


def _rayjob() -> dict[str, Any]:
    return _manifests("rayjob.yaml")["RayJob"]


def _templates() -> Iterator[dict[str, Any]]:
    yield _manifests("cronjob.yaml")["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    job = _rayjob()["spec"]
    yield job["submitterPodTemplate"]
    for group in (
        job["rayClusterSpec"]["headGroupSpec"],
        *job["rayClusterSpec"]["workerGroupSpecs"],
    ):
        yield group["template"]


def _pods() -> dict[str, dict[str, Any]]:
    """Return every pod by the name of its container."""
    return {each["spec"]["containers"][0]["name"]: each["spec"] for each in _templates()}


def _containers() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return each container and its pod by name; that of the autoscaler the operator makes."""
    pods = _pods()
    ours = {name: (each["containers"][0], each) for name, each in pods.items()}
    autoscaler = _rayjob()["spec"]["rayClusterSpec"]["autoscalerOptions"]
    return {**ours, "autoscaler": (autoscaler, pods["ray-head"])}


CONTAINERS = ["nightly", "ray-job-submitter", "ray-head", "ray-worker", "autoscaler"]


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


@pytest.mark.parametrize("name", ["ConfigMap", "CronJob", *CONTAINERS[:4]])
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
        of_pod = [container for container, inside in _containers().values() if inside == pod]
        assert volumes == {m["name"] for each in of_pod for m in each["volumeMounts"]}
        configs = {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v}
        assert configs <= names


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_confined(name: str) -> None:
    assert [*_containers()] == CONTAINERS  # none that is looked at nowhere
    container, pod = _containers()[name]
    assert {key: pod.get(key) for key in POD} == POD
    assert len(pod["containers"]) == 1
    assert not pod.keys() & {"initContainers", "hostNetwork", "hostPID", "hostIPC"}
    assert container["securityContext"] == CONTAINER
    assert name == "autoscaler" or BY_DIGEST.fullmatch(container["image"])
    if name != "autoscaler":  # whose limits are the operator's
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    volumes = {each["name"]: each for each in pod["volumes"]}
    written = {
        m["mountPath"]: m["name"] for m in container["volumeMounts"] if not m.get("readOnly")
    }
    assert all("sizeLimit" in volumes[each]["emptyDir"] for each in written.values())
    home = {each["name"]: each["value"] for each in container["env"]}["HOME"]
    assert written.keys() >= {"/tmp", home}  # what every program takes for granted


@pytest.mark.parametrize("name", CONTAINERS)
def test_secrets_are_files_of_those_who_need_them(name: str) -> None:
    container, pod = _containers()[name]
    assert "envFrom" not in container
    assert all(each.keys() == {"name", "value"} for each in container["env"])
    values = {each["name"]: each["value"] for each in container["env"]}
    secret = {each["name"] for each in pod["volumes"] if each.keys() & {"secret", "projected"}}
    seen = {m["name"]: m for m in container["volumeMounts"] if m["name"] in secret}
    expected = {"autoscaler": {"kubernetes"}, "ray-job-submitter": set[str]()}
    assert seen.keys() == expected.get(name, {"secrets"})
    assert all(each["readOnly"] for each in seen.values())
    files = {name: value for name, value in values.items() if name.endswith("_FILE")}
    if "secrets" in seen:
        assert files.keys() == {"AWS_SHARED_CREDENTIALS_FILE", "LAYERRANK_WEBHOOK_FILE"}
    made = re.findall(r"--from-file=(\w+)", (DEPLOY / "cronjob.yaml").read_text(encoding="utf-8"))
    assert {*files.values()} <= {f"/secrets/{each}" for each in made}


def test_no_key_is_on_a_command_line() -> None:
    for file in (*sorted(DEPLOY.iterdir()), PROJECT / "cluster.yaml"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"from-literal|SECRET_ACCESS_KEY|aws_secret|WEBHOOK=", text), file


def _may(rules: list[dict[str, Any]], side: str, who: dict[str, str] | None) -> set[int]:
    """Return the TCP ports that some pods may reach by the rules of a policy."""
    found = set[int]()
    for rule in rules:
        peers = [each.get("podSelector", {}).get("matchLabels") for each in rule[side]]
        if who in peers:
            for port in rule.get("ports", [{"protocol": "TCP", "port": 1, "endPort": 65535}]):
                if port["protocol"] == "TCP":
                    found |= {*range(port["port"], port.get("endPort", port["port"]) + 1)}
    return found


def test_nobody_but_our_pods_and_the_operator_comes_in_and_little_goes_out() -> None:
    ours, head = _policies()
    for policy in (ours, head):
        kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    label = {"app": "layerrank"}
    for template in _templates():
        assert template["metadata"]["labels"] == label
    assert ours["spec"]["podSelector"] == {"matchLabels": label}
    assert ours["spec"]["policyTypes"] == ["Ingress", "Egress"]  # what is not allowed is denied
    assert head["spec"]["podSelector"]["matchLabels"] == {**label, "ray.io/node-type": "head"}
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    rules = ours["spec"]["ingress"]
    assert {each for rule in rules for peer in rule["from"] for each in peer} == {
        "podSelector",
        "namespaceSelector",
    }
    assert _may(rules, "from", operator) == {8265}
    among = _may(rules, "from", label)
    assert among >= {6379, 8265, 10002, 19999, 65535}
    assert not among & NO_PORT_OF_OURS
    assert _may(ours["spec"]["egress"], "to", None) == {443}  # an address, whosever it is
    assert _may(head["spec"]["egress"], "to", None) == {6443}
    ports = [each["containerPort"] for each in _containers()["ray-head"][0]["ports"]]
    assert ports == [6379, 8265]  # of the Service


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


def test_every_image_is_that_of_the_cluster_by_its_digest() -> None:
    docker = _cluster()["docker"]
    images = {docker[key] for key in ("image", "head_image", "worker_image")}
    assert all(BY_DIGEST.fullmatch(each) for each in images)
    named = {each.partition("@")[0] for each in images}
    assert named == {
        f"rayproject/ray:{metadata.version('ray')}-py311-{of}" for of in ("cpu", "gpu")
    }
    assert _rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == metadata.version("ray")
    file = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert {*re.findall(r"rayproject/ray:[\w.-]+", file)} <= named
    assert re.findall(r"^(?:ARG BASE|FROM) ?(.*)$", file, re.MULTILINE) == ["", "${BASE}", ""]
    assert "*@sha256:*" in file  # another is refused
    assert re.findall(r"^USER (.+)$", file, re.MULTILINE)[-1] == f"{USER}:{GROUP_OF_USER}"
    installs = re.findall(r"pip install (?:[^\n]*\\\n)*[^\n]*", file)
    assert all(re.search(r"--require-hashes|--no-index", each) for each in installs)
    for copied in re.findall(r"^COPY (.+) \S+$", file, re.MULTILINE):
        of = copied.replace("${TORCH}", re.findall(r"^ARG TORCH=(.+)$", file, re.MULTILINE)[0])
        assert all((PROJECT / name).exists() for name in of.split())


def test_the_cluster_is_one_that_ray_starts_with_flags_that_it_has() -> None:
    from ray.autoscaler._private.util import validate_config
    from ray.scripts.scripts import start

    cluster = _cluster()
    validate_config({**cluster, "cluster_synced_files": []})
    flags = {flag for each in start.params for flag in each.opts}
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    words = [word for each in commands for word in shlex.split(each) if word.startswith("--")]
    spec = _rayjob()["spec"]["rayClusterSpec"]
    words += [f"--{key}" for key in spec["headGroupSpec"]["rayStartParams"]]
    assert words
    assert {word.partition("=")[0] for word in words} <= flags
    assert "--dashboard-host=127.0.0.1" in words
    assert all("RAY_AUTH_MODE=token" in each for each in commands if "ray start" in each)
    for node in cluster["available_node_types"].values():
        config = node["node_config"]
        assert config["MetadataOptions"] == {"HttpTokens": "required"}
        assert {*config} >= {"SecurityGroupIds", "IamInstanceProfile"}
    options = cluster["docker"]["run_options"]
    assert {f"--user={USER}:{GROUP_OF_USER}", "--cap-drop=ALL"} <= {*options}
    (install,) = [each for each in cluster["setup_commands"] if "pip" in each]
    assert "--require-hashes" in install
    mounted = re.findall(r"-r (\S+)", install)
    assert all((PROJECT / cluster["file_mounts"][each]).is_file() for each in mounted)


def test_the_port_of_ray_client_cannot_be_closed_by_ray() -> None:
    """Where this fails, `ray-client-server-port: "0"` belongs into both clusters."""
    from ray._private.parameter import RayParams

    with pytest.raises(ValueError, match="ray_client_server_port"):
        RayParams(ray_client_server_port=0)


def _locked(name: str) -> dict[str, str]:
    """Return name -> version of a file of hashes, each of which has one at least."""
    lines = (DEPLOY / name).read_text(encoding="utf-8").replace(" \\\n", "").splitlines()
    assert lines.pop(0).startswith("# Made by `make lock`")
    found = [
        re.fullmatch(r"([\w.-]+)==([\w.]+)(?:    --hash=sha256:[0-9a-f]{64})+", x) for x in lines
    ]
    assert all(found)
    return {each[1]: each[2] for each in found if each}


def _constraints(name: str) -> dict[str, str]:
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(pinned): version for pinned, version in pins}


def test_the_hashes_are_of_the_versions_of_the_lock_and_of_all_that_is_needed() -> None:
    ours, torch = _locked("requirements.txt"), _locked("requirements-torch.txt")
    pinned = _constraints("constraints.txt")
    assert {name: pinned.get(name) for name in ours.keys() - {"setuptools"}} == {
        name: version for name, version in ours.items() if name != "setuptools"
    }
    assert torch["torch"] == _constraints("constraints-torch.txt")["torch"]
    assert not torch.keys() & pinned.keys()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    todo = [*project["project"]["dependencies"], *project["build-system"]["requires"], "boto3"]
    seen = set[str]()
    while todo:
        need = Requirement(todo.pop())
        name = canonicalize_name(need.name)
        assert name in ours or name in torch, need
        assert need.specifier.contains((ours | torch)[name]), need
        for extra in {"", *need.extras}:
            if f"{name}[{extra}]" not in seen and name in pinned:
                seen.add(f"{name}[{extra}]")
                for each in map(Requirement, metadata.requires(name) or []):
                    if not each.marker or each.marker.evaluate({"extra": extra}):
                        todo.append(f"{each.name}[{','.join(each.extras)}]{each.specifier}")


def test_values_to_change_are_marked() -> None:
    for file in sorted(DEPLOY.iterdir()):
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if "example" in line and not line.lstrip().startswith("#"):
                assert "change" in " ".join(lines[max(number - 4, 0) : number + 1]), line
