"""The manifests of kuberay/ and ray-cluster.yaml: schemas, Ray's own readers, users, secrets, who talks to whom."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

import smooth
from infra import credentials
from infra.local.layout import POOL, PROJECT
from infra.render import render
from smooth.data.guard import is_public
from smooth.serve.settings import TOKEN_VARIABLE
from tests.deployments import INFRA, KUBERAY, NOTIFY, Pod, compose, environment_of, manifest, manifests, pods

KUBERNETES = "1.34"
PODS = {pod.name: pod for pod in pods()}
RAY = ("headgroup", "cpu", "ingest", "gpu")
TELLING = yaml.safe_load((KUBERAY / "notify.yaml").read_text())
# KubeRay's RayCluster: what it demands, and what else of it these manifests may use (API reference, v1.1 and later).
CLUSTER_FIELDS = {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
HEAD_DEMANDS = {"rayStartParams", "template"}
GROUP_DEMANDS = HEAD_DEMANDS | {"groupName", "minReplicas", "maxReplicas"}


def validate(document: dict[str, Any]) -> None:
    """Check an object of Kubernetes strictly: an unknown field is an error."""
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def ray_cluster() -> dict[str, Any]:
    return manifest("RayCluster", "smooth")


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.mark.parametrize("document", [*manifests(), TELLING], ids=named)
def test_each_object_holds_its_schema(document: dict[str, Any]) -> None:
    if document["kind"] == "RayCluster":
        for name in RAY:  # what KubeRay makes of it
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": PODS[name].spec}
            validate(pod)
    else:
        validate(document)


def test_the_schemas_refuse_a_misspelt_field() -> None:
    broken = manifest("Deployment", "mlflow")
    broken["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)


def test_the_ray_cluster_has_what_kuberay_demands() -> None:
    document = ray_cluster()
    assert document["apiVersion"] == "ray.io/v1"
    spec = document["spec"]
    assert spec.keys() <= CLUSTER_FIELDS
    assert spec["headGroupSpec"].keys() == HEAD_DEMANDS
    for group in spec["workerGroupSpecs"]:
        assert group.keys() == GROUP_DEMANDS | {"replicas"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_rays_own_reader_finds_the_groups_and_their_resources() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    document = ray_cluster()
    document["metadata"]["namespace"] = "smooth"
    config = _derive_autoscaling_config_from_ray_cr(document)
    validate_config(config)
    found = {name: node["resources"] for name, node in config["available_node_types"].items()}
    assert found.keys() == set(RAY)
    assert found["headgroup"]["CPU"] == 2  # the built-in web is fetched on its driver's node, by tasks of one CPU each
    assert found["ingest"]["ingest"] == found["ingest"]["CPU"] == 4
    assert {name for name in found if "ingest" in found[name]} == {"ingest"}
    assert {name: found[name].get("GPU") for name in found if found[name].get("GPU")} == {"gpu": 1}
    assert config["available_node_types"]["gpu"]["min_workers"] == 0


def test_versions_agree() -> None:
    lock = dict(line.split("==") for line in (INFRA / "requirements.lock").read_text().split())
    assert ray_cluster()["spec"]["rayVersion"] == lock["ray"]
    images = {container["image"] for pod in PODS.values() for container in pod.containers}
    version = smooth.__version__
    assert images == {f"smooth:{version}-cpu", f"smooth:{version}-cuda", compose()["services"]["postgres"]["image"]}
    assert [name for name in RAY if PODS[name].containers[0]["image"].endswith("-cuda")] == ["gpu"]


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_no_pod_is_roots_or_has_a_key_to_the_cluster(pod: Pod) -> None:
    security = pod.spec["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] == (999 if pod.name == "postgres" else 10001)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod.spec["automountServiceAccountToken"] is False
    assert not pod.spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert not [volume for volume in pod.spec.get("volumes", []) if "hostPath" in volume]
    for container in pod.containers:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in container["resources"]["limits"]


def test_secrets_are_named_never_held() -> None:
    used = set()
    for pod in PODS.values():
        for container in pod.containers:
            for item in container["env"]:
                if re.search(r"PASSWORD|AUTH_STRING|SECRET_KEY|NOTIFY_URL", item["name"]):
                    assert item["valueFrom"]["secretKeyRef"]["name"] == "smooth-credentials"
                    used.add(item["valueFrom"]["secretKeyRef"]["key"])
        for volume in pod.spec.get("volumes", []):
            used |= {item["key"] for item in volume.get("secret", {}).get("items", [])}
    made = credentials.CREDENTIALS.keys() - {"SMOOTH_CREDENTIALS", "SMOOTH_STORE_PASSWORD"}
    assert used == made | {"SMOOTH_NOTIFY_URL"}
    assert "Secret" not in {item["kind"] for item in manifests()}
    for name in (*RAY, "worker"):
        (container,) = PODS[name].spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        token = environment_of(container)["RAY_AUTH_TOKEN_PATH"]
        assert token == f"{mounts['token']}/ray_token"
        assert mounts["artifacts"] == "/opt/smooth/.smooth"
    (container,) = PODS["serve"].spec["containers"]
    token = next(volume["secret"] for volume in PODS["serve"].spec["volumes"] if volume["name"] == "token")
    mount = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "token")
    assert token["items"] == [{"key": TOKEN_VARIABLE, "path": "serve_token"}]
    assert environment_of(container)[f"{TOKEN_VARIABLE}_FILE"] == f"{mount}/serve_token"


def test_who_is_told_of_failures_comes_with_the_deployments_and_may_be_left_out() -> None:
    (container,) = PODS["worker"].spec["initContainers"]
    (told,) = (item for item in container["env"] if item["name"] == "SMOOTH_NOTIFY_URL")
    assert told["valueFrom"]["secretKeyRef"]["optional"] is True
    assert f"{told['name']}_FILE" in compose(NOTIFY)["services"]["deployments"]["environment"]


def test_a_place_under_a_limit_outlives_prefects_pod() -> None:
    (container,) = PODS["prefect"].spec["containers"]
    (mount,) = container["volumeMounts"]
    assert environment_of(container)["PREFECT_HOME"].startswith(f"{mount['mountPath']}/")  # type: ignore[union-attr]
    (volume,) = PODS["prefect"].spec["volumes"]
    assert (volume["name"], volume["persistentVolumeClaim"]) == (mount["name"], {"claimName": "prefect"})
    assert PODS["prefect"].spec["securityContext"]["fsGroup"] == 10001
    assert manifest("Deployment", "prefect")["spec"]["strategy"] == {"type": "Recreate"}  # one holds the volume


def test_each_server_is_asked_whether_it_is_well() -> None:
    for name in ("mlflow", "prefect", "serve"):
        (container,) = PODS[name].spec["containers"]
        asks = compose()["services"][name]["environment"]["SMOOTH_HEALTH_URL"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if name == "serve":  # as the image's HEALTHCHECK does, with the token
                assert container[probe]["exec"] == {"command": ["python", "-m", "infra.healthcheck"]}
                assert environment_of(container)["SMOOTH_HEALTH_URL"] == asks
            else:
                assert asks.endswith(container[probe]["httpGet"]["path"])
    assert manifest("Deployment", "serve")["spec"]["replicas"] == 0  # nothing is in production at first


def test_commands_and_settings_are_those_of_compose_which_are_run() -> None:
    services = compose()["services"]
    for pod in ("mlflow", "prefect", "worker", "serve"):
        (container,) = PODS[pod].spec["containers"]
        assert container["args"] == services[pod]["command"]
        theirs = services[pod]["environment"]
        for name, value in environment_of(container).items():
            if value is None:
                assert f"{name}_FILE" in theirs
            elif "RAY_" not in name and name not in ("MLFLOW_ARTIFACTS_DESTINATION", f"{TOKEN_VARIABLE}_FILE"):
                assert theirs[name] == value
    (first,) = PODS["worker"].spec["initContainers"]
    assert first["args"] == services["deployments"]["command"]
    assert (PROJECT / first["args"][0]).is_file()
    assert f"--pool={POOL}" in PODS["worker"].spec["containers"][0]["args"]


def test_services_lead_to_ports_that_pods_open() -> None:
    for item in manifests():
        if item["kind"] != "Service":
            continue
        (pod,) = (pod for pod in PODS.values() if item["spec"]["selector"].items() <= pod.labels.items())
        opened = {port["containerPort"] for container in pod.containers for port in container["ports"]}
        assert {port["targetPort"] for port in item["spec"]["ports"]} <= opened
    names = {item["metadata"]["name"] for item in manifests() if item["kind"] == "Service"} | {"smooth-head-svc"}
    containers = [container for pod in PODS.values() for container in pod.containers]
    text = " ".join(value or "" for container in containers for value in environment_of(container).values())
    assert set(re.findall(r"://(?:smooth@)?([a-z-]+):\d+", text)) == names - {"serve"}  # which others ask
    claims = {item["metadata"]["name"] for item in manifests() if item["kind"] == "PersistentVolumeClaim"}
    volumes = [volume for pod in PODS.values() for volume in pod.spec.get("volumes", [])]
    assert {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v} == claims


POLICIES = [item["spec"] for item in manifests() if item["kind"] == "NetworkPolicy"]


# Network policies, as Kubernetes defines them: a selected pod may do what some policy that selects it allows.


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def _allows(way: str, own: dict[str, str], peer: dict[str, str] | str, port: int) -> bool:
    """Whether a pod may send to (``Egress``) or hear from (``Ingress``) a pod or an address at TCP ``port``."""
    side = {"Egress": "to", "Ingress": "from"}[way]
    policies = [spec for spec in POLICIES if _selects(spec["podSelector"], own) and way in spec["policyTypes"]]
    assert policies, "a pod that no policy selects may do anything"
    for rule in (rule for spec in policies for rule in spec.get(way.lower(), [])):
        ports = {(entry["protocol"], entry["port"]) for entry in rule.get("ports", [])}
        if ports and ("TCP", port) not in ports:
            continue
        for entry in rule[side]:
            if isinstance(peer, dict):
                if "podSelector" in entry and "namespaceSelector" not in entry and _selects(entry["podSelector"], peer):
                    return True
            elif "ipBlock" in entry:
                address, block = ipaddress.ip_address(peer), entry["ipBlock"]
                inside = [address in ipaddress.ip_network(cidr) for cidr in (block["cidr"], *block.get("except", []))]
                if inside[0] and not any(inside[1:]):
                    return True
    return False


NEEDED = {
    ("worker", "prefect", 4200),
    ("worker", "mlflow", 5000),
    ("worker", "headgroup", 8265),
    ("serve", "mlflow", 5000),
    ("mlflow", "postgres", 5432),
    ("prefect", "postgres", 5432),
    *((name, "mlflow", 5000) for name in RAY),
    *((one, other, port) for one in RAY for other in RAY for port in (6379, 8265, 52365)),
}


def test_pods_talk_to_those_they_need_and_to_no_others() -> None:
    found = set()
    for one in PODS.values():
        for other in PODS.values():
            for port in (4200, 5000, 5432, 6379, 8000, 8080, 8265, 52365):
                sends = _allows("Egress", one.labels, other.labels, port)
                if sends and _allows("Ingress", other.labels, one.labels, port):
                    found.add((one.name, other.name, port))
    within_ray = {(one, other, port) for one in RAY for other in RAY for port in (4200, 5000, 5432, 8000, 8080)}
    assert found - within_ray == NEEDED


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_only_ingest_reaches_the_web_and_never_a_private_address(pod: Pod) -> None:
    web = ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946")
    assert [_allows("Egress", pod.labels, address, 443) for address in web] == [pod.name == "ingest"] * 2
    assert not any(_allows("Egress", pod.labels, address, 22) for address in web)
    private = ("10.96.0.1", "169.254.169.254", "172.20.0.5", "192.168.1.1", "100.64.0.1", "::1", "fd00::1", "fe80::1")
    for address in private:
        assert not is_public(address)
        assert not _allows("Egress", pod.labels, address, 80)
    policy = manifest("NetworkPolicy", "ingest-to-web")["spec"]["egress"][0]["to"][0]["ipBlock"]
    assert not [cidr for cidr in policy["except"] if is_public(str(ipaddress.ip_network(cidr)[1]))]


def test_the_served_model_is_reached_from_the_namespaces_that_are_told_so() -> None:
    (rule,) = manifest("NetworkPolicy", "serve")["spec"]["ingress"]
    (peer,) = rule["from"]
    (label,) = peer.pop("namespaceSelector")["matchLabels"].items()
    assert (peer, rule["ports"]) == ({}, [{"protocol": "TCP", "port": 8000}])
    assert "label namespace NAME {}={}".format(*label) in (INFRA / "README.md").read_text()


def test_prefect_is_let_out_to_the_web_alone_and_by_a_file_of_its_own() -> None:
    assert TELLING["metadata"]["namespace"] == yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())["namespace"]
    assert TELLING["spec"]["podSelector"]["matchLabels"] == PODS["prefect"].labels
    fetching = manifest("NetworkPolicy", "ingest-to-web")["spec"]
    assert TELLING["spec"]["egress"] == fetching["egress"]
    assert TELLING["spec"]["policyTypes"] == ["Egress"]


def test_the_kustomization_names_every_file() -> None:
    named = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())
    apart = {"kustomization.yaml", "notify.yaml"}
    assert {path.name for path in KUBERAY.glob("*.yaml")} == {*named["resources"], *apart}
    (generated,) = named["configMapGenerator"]
    source = generated["files"][0].split("=")[1]
    assert "CREATE DATABASE mlflow" in (KUBERAY / source).read_text()
    mounted = next(v["configMap"]["name"] for v in PODS["postgres"].spec["volumes"] if "configMap" in v)
    assert mounted == generated["name"]
    backend = environment_of(PODS["mlflow"].containers[0])["MLFLOW_BACKEND_STORE_URI"]
    assert f"database_uri = {backend}\n" in (INFRA / "mlflow-auth.ini").read_text()


VALUES = {
    "SMOOTH_PROJECT": "/shared/smooth",
    "SMOOTH_HEAD_IP": "10.0.0.1",
    "SMOOTH_WORKER_IPS": "10.0.0.2,10.0.0.3",
    "SMOOTH_SSH_USER": "smooth",
    "SMOOTH_SSH_KEY": "~/.ssh/id_ed25519",
}


def test_ray_accepts_the_cluster_of_ones_own_machines() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = render((INFRA / "ray-cluster.yaml").read_text(), VALUES)
    config = yaml.safe_load(text)
    prepared = prepare_config(config)
    validate_config(prepared)
    (node,) = prepared["available_node_types"].values()
    assert (node["min_workers"], node["max_workers"], prepared["provider"]["head_ip"]) == (2, 2, "10.0.0.1")
    keys = ("head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    commands = [command for key in keys for command in config[key]]
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
        for path in re.findall(r"/shared/smooth/(\S+)", command):
            assert path.startswith(".venv/bin/") or (PROJECT / path).is_file()
    assert "$RAY_HEAD_IP:6379" in commands[-1]
    with pytest.raises(ValueError, match="SMOOTH_HEAD_IP"):
        render((INFRA / "ray-cluster.yaml").read_text(), VALUES | {"SMOOTH_HEAD_IP": ""})
