"""Manifests: their schema where its package is here, and what a cluster would enforce or a reader would expect."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
Manifest = dict[str, Any]


def manifests() -> dict[str, Manifest]:
    """Every object, by where it is."""
    found = {}
    for path in sorted(FOLDER.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            for one in yaml.safe_load_all(path.read_text()):
                found[f"{path.parent.name}/{one['kind']}/{one['metadata']['name']}"] = one
    return found


ALL = manifests()
PODS = {
    name: one["spec"] if one["kind"] == "Pod" else one["spec"]["template"]["spec"]
    for name, one in ALL.items()
    if one["kind"] in ("Pod", "Deployment", "StatefulSet")
}


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_the_objects_are_these() -> None:
    assert set(ALL) == {
        "site/Namespace/privshare-site",
        "site/PersistentVolumeClaim/site",
        "site/Deployment/site",
        "site/NetworkPolicy/site",
        "site/Pod/steward",
        "coordinator/Namespace/privshare-coordinator",
        "coordinator/StatefulSet/coordinator",
        "coordinator/Service/coordinator",
        "coordinator/NetworkPolicy/coordinator",
    }


@pytest.mark.parametrize("name", ALL)
def test_it_has_version_kind_and_the_namespace_of_its_folder(name: str) -> None:
    one, folder = ALL[name], name.split("/", maxsplit=1)[0]
    assert re.fullmatch(r"(apps/|networking\.k8s\.io/)?v1", one["apiVersion"])
    if one["kind"] != "Namespace":
        assert one["metadata"]["namespace"] == f"privshare-{folder}"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("version", ["1.29", "1.35"])
def test_it_is_valid_by_the_schema_of_kubernetes(name: str, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="no schemas here: pip install kubernetes-validate")
    validate.validate(ALL[name], version, strict=True)


@pytest.mark.parametrize("folder", ["site", "coordinator"])
def test_kustomize_takes_every_file_but_the_stewards_pod(folder: str) -> None:
    named = set(yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())["resources"])
    there = {path.name for path in (FOLDER / folder).glob("*.yaml")} - {"kustomization.yaml", "steward.yaml"}
    assert named == there


@pytest.mark.parametrize("folder", ["site", "coordinator"])
def test_the_namespace_enforces_the_restricted_standard(folder: str) -> None:
    labels = ALL[f"{folder}/Namespace/privshare-{folder}"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", PODS)
def test_a_pod_keeps_the_restricted_standard(name: str) -> None:
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", PODS)
def test_a_container_is_pinned_bounded_and_probed(name: str) -> None:
    pod = PODS[name]
    for container in containers(pod):
        assert re.fullmatch(r"[a-z-]+:\d+\.\d+\.\d+(-alpine)?", container["image"])
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
    if ALL[name]["kind"] != "Pod":
        for container in pod["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= set(container)


@pytest.mark.parametrize("name", PODS)
def test_every_mount_has_its_volume_and_every_volume_a_mount(name: str) -> None:
    pod = PODS[name]
    claims = ALL[name]["spec"].get("volumeClaimTemplates", [])
    volumes = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    assert {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]} == volumes


def test_selectors_match_the_labels_of_their_pods() -> None:
    site, coordinator = ALL["site/Deployment/site"], ALL["coordinator/StatefulSet/coordinator"]
    for one in (site, coordinator):
        assert one["spec"]["selector"]["matchLabels"].items() <= one["spec"]["template"]["metadata"]["labels"].items()
    service = ALL["coordinator/Service/coordinator"]
    assert service["spec"]["selector"].items() <= coordinator["spec"]["template"]["metadata"]["labels"].items()
    assert coordinator["spec"]["serviceName"] == service["metadata"]["name"]


def test_the_service_leads_to_the_proxy_and_nothing_else_has_a_port() -> None:
    (port,) = ALL["coordinator/Service/coordinator"]["spec"]["ports"]
    ports = {
        container["name"]: container.get("ports", [])
        for container in PODS["coordinator/StatefulSet/coordinator"]["containers"]
    }
    assert ports == {
        "superlink": [],
        "superexec": [],
        "proxy": [{"name": port["targetPort"], "containerPort": 8443, "protocol": "TCP"}],
    }
    assert "ports" not in PODS["site/Deployment/site"]["containers"][0]


def test_a_site_is_reached_by_nobody_and_reaches_the_coordinator_and_names() -> None:
    policy = ALL["site/NetworkPolicy/site"]["spec"]
    assert policy["podSelector"] == {}
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert "ingress" not in policy
    coordinator, names = policy["egress"]
    assert coordinator["to"][0]["ipBlock"]["cidr"].endswith("/32")
    assert [port["port"] for port in coordinator["ports"]] == [8443]
    assert {port["port"] for port in names["ports"]} == {53}


def test_the_coordinator_is_reached_at_the_proxy_and_reaches_nobody() -> None:
    policy = ALL["coordinator/NetworkPolicy/coordinator"]["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["egress"] == []
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [8443]


def test_there_is_one_site_pod_at_a_time() -> None:
    spec = ALL["site/Deployment/site"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert ALL["site/PersistentVolumeClaim/site"]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 900


def test_the_superlink_is_on_the_pods_loopback_with_every_lock() -> None:
    (command,) = [
        container["command"]
        for container in PODS["coordinator/StatefulSet/coordinator"]["containers"]
        if container["name"] == "superlink"
    ]
    assert {
        "--host=127.0.0.1",
        "--enable-supernode-auth",
        "--isolation=process",
        "--superexec-auth-secret-file=/keys/superexec.secret",
        "--disable-runtime-dependency-installation",
    } <= set(command)
    assert "--insecure" not in command


def test_each_container_has_the_keys_that_it_needs_and_the_authoritys_is_nowhere() -> None:
    pod = PODS["coordinator/StatefulSet/coordinator"]
    files = {
        volume["name"]: {item["key"] for item in volume["secret"]["items"]}
        for volume in pod["volumes"]
        if "secret" in volume
    }
    assert files["proxy-keys"] == {"ca.crt", "crl.pem", "server.crt", "server.key"}
    assert files["superlink-keys"] == {"ca.crt", "server.crt", "server.key", "superexec.secret"}
    assert not any("ca.key" in keys for keys in files.values())
    mounts = {
        container["name"]: {mount["name"] for mount in container["volumeMounts"]} for container in pod["containers"]
    }
    assert "superlink-keys" not in mounts["proxy"] | mounts["superexec"]
    assert mounts["proxy"] == {"proxy-keys", "template", "proxy-tmp"}


def test_the_proxys_command_replaces_every_mark_of_the_template() -> None:
    marks = set(re.findall(r"@[A-Z]+@", (FOLDER.parent / "proxy" / "nginx.conf.template").read_text()))
    (proxy,) = [one for one in PODS["coordinator/StatefulSet/coordinator"]["containers"] if one["name"] == "proxy"]
    assert set(re.findall(r"@[A-Z]+@", proxy["command"][-1])) == marks
