"""docker/kuberay: what Kubernetes' own schemas say, and KubeRay's fields, which no package validates."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

# Of the API ray.io/v1 (KubeRay's rayjob_types.go and raycluster_types.go), as far as they are used here.
JOB_FIELDS = {
    "entrypoint",
    "submissionMode",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
}
CLUSTER_FIELDS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD_FIELDS = {"rayStartParams", "template"}
WORKER_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.fixture(scope="module")
def job(docker: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((docker / "kuberay/rayjob.yaml").read_text())
    return found


@pytest.fixture(scope="module", params=["raycluster.yaml", "rayjob.yaml"])
def cluster(docker: Path, job: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "rayjob.yaml":
        spec: dict[str, Any] = job["spec"]["rayClusterSpec"]
        return spec
    loaded = yaml.safe_load((docker / "kuberay/raycluster.yaml").read_text())
    assert (loaded["apiVersion"], loaded["kind"]) == ("ray.io/v1", "RayCluster")
    spec = loaded["spec"]
    return spec


def _groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("name", ["workspace.yaml", "network-policy.yaml"])
def test_kubernetes_schemas_accept_the_plain_objects(
    docker: Path, validate: Callable[..., None], name: str
) -> None:
    validate("kubernetes-validate", "--strict", docker / "kuberay" / name)


def test_kubernetes_schemas_accept_the_pods(
    cluster: dict[str, Any], validate: Callable[..., None], tmp_path: Path
) -> None:
    for index, group in enumerate(_groups(cluster)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
        path = tmp_path / f"{index}.yaml"
        path.write_text(yaml.safe_dump(pod))
        validate("kubernetes-validate", "--strict", path)


def test_every_field_is_one_of_kuberays(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"].keys() <= JOB_FIELDS and cluster.keys() <= CLUSTER_FIELDS
    assert cluster["headGroupSpec"].keys() <= HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= WORKER_FIELDS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_job_and_standing_cluster_are_the_same_cluster(docker: Path, job: dict[str, Any]) -> None:
    standing = yaml.safe_load((docker / "kuberay/raycluster.yaml").read_text())["spec"]
    assert job["spec"]["rayClusterSpec"] == standing


def test_ray_takes_the_start_parameters(cluster: dict[str, Any], options_of: Callable[..., set[str]]) -> None:
    for group in _groups(cluster):
        assert {f"--{name}" for name in group["rayStartParams"]} <= options_of("ray", "start")
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_job_runs_a_command_that_there_is(
    job: dict[str, Any], options_of: Callable[..., set[str]]
) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["ablation", "run"]
    assert {word for word in words if word.startswith("--")} <= options_of("ablation", "run")


def test_every_pod_is_confined_and_ray_asks_for_its_token(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    for group in _groups(cluster):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_pods_run_as_the_account_of_the_image(cluster: dict[str, Any], docker: Path) -> None:
    [user] = re.findall(r"^USER (\d+):\d+", (docker / "Dockerfile").read_text(), re.MULTILINE)
    for group in _groups(cluster):
        assert group["template"]["spec"]["securityContext"]["runAsUser"] == int(user)


def test_volumes_that_pods_mount_are_claimed(cluster: dict[str, Any], docker: Path) -> None:
    claims = yaml.safe_load_all((docker / "kuberay/workspace.yaml").read_text())
    names = {claim["metadata"]["name"] for claim in claims}
    for group in _groups(cluster):
        volumes = group["template"]["spec"]["volumes"]
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
        assert used == names
        mounts = {m["name"] for c in group["template"]["spec"]["containers"] for m in c["volumeMounts"]}
        assert mounts == {volume["name"] for volume in volumes}


def test_other_pods_reach_the_dashboard_at_most(docker: Path) -> None:
    policy = yaml.safe_load((docker / "kuberay/network-policy.yaml").read_text())["spec"]
    among_ray, others = policy["ingress"]
    assert among_ray["from"] == [{"podSelector": policy["podSelector"]}]
    assert others["ports"] == [{"protocol": "TCP", "port": 8265}]
