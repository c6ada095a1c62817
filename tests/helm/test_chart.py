"""The chart: rendered without a cluster, held against the schemas of three Kubernetes versions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from siem import config

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "helm" / "cityward"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
VERSIONS = ("1.29", "1.33", "1.37")
NAMES = [path.stem for path in VALUES]


def _values(path: Path) -> dict[str, Any]:
    return helm_python.values_from_yaml(path.read_text(encoding="utf-8"))


def _rendered(values: dict[str, Any]) -> dict[str, str]:
    chart = helm_python.Chart.load(CHART)
    chart.validate_schema(values)
    return chart.render(values, name="saltmere", namespace="watch")


def _objects(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, text in _rendered(values).items():
        if not name.endswith("NOTES.txt"):
            yield from (one for one in yaml.safe_load_all(text) if one)


def _one(values: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(one for one in _objects(values) if one["kind"] == kind)


def _settings(values: dict[str, Any]) -> str:
    return str(_one(values, "ConfigMap")["data"]["cityward.toml"])


def test_there_are_thirteen_value_files() -> None:
    assert len(VALUES) == 13


@pytest.mark.parametrize("path", VALUES, ids=NAMES)
def test_lint_has_nothing_to_say(path: Path) -> None:
    for version in VERSIONS:
        report = helm_python.lint(
            CHART, _values(path), strict=True, kube_version=f"v{version}.0", namespace="watch"
        )

        assert (report["errors"], [one for one in report["messages"] if one["severity"] > 1]) == (
            [],
            [],
        )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", VALUES, ids=NAMES)
def test_every_object_is_what_kubernetes_wants(path: Path, version: str) -> None:
    for one in _objects(_values(path)):
        kubernetes_validate.validate(one, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_would_be_found() -> None:
    service = _one(_values(VALUES[0]), "Service")
    service["spec"]["prots"] = []

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, "1.29", strict=True)


@pytest.mark.parametrize("path", VALUES, ids=NAMES)
def test_the_settings_that_come_out_are_settings(path: Path) -> None:
    values = _values(path)
    settings = config.parse(tomllib.loads(_settings(values)))

    assert settings.operator == values["settings"]["operator"]
    assert settings.state_dir == "/var/lib/cityward"
    assert settings.console.host == "0.0.0.0"
    assert settings.console.secure_cookie or settings.console.tls_cert
    is_hub = values.get("part") == "hub"
    assert (settings.hub is not None) == is_hub
    assert not settings.hub or settings.hub.listen.startswith("0.0.0.0:")


def test_whole_numbers_stay_whole_and_others_do_not() -> None:
    values = _values(VALUES[NAMES.index("06-node-zones-assets")])
    values["settings"]["name"] = "a = 3.0"

    said = tomllib.loads(_settings(values))

    assert [zone["purdue"] for zone in said["zone"]] == [2, 4.5]
    assert said["name"] == "a = 3.0"
    assert isinstance(said["asset"][0]["criticality"], int)


@pytest.mark.parametrize("path", VALUES, ids=NAMES)
def test_every_container_is_held_as_narrowly_as_it_can_be(path: Path) -> None:
    values = _values(path)
    pod = _one(values, "StatefulSet")["spec"]["template"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        held = container["securityContext"]
        listens = container["name"] == "path" and values.get("hostNetwork", False)
        assert held["readOnlyRootFilesystem"]
        assert not held["allowPrivilegeEscalation"]
        assert held["capabilities"]["drop"] == ["ALL"]
        assert held["capabilities"].get("add", []) == (["NET_RAW"] if listens else [])
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {"livenessProbe", "startupProbe"} <= container.keys()


@pytest.mark.parametrize("path", VALUES, ids=NAMES)
def test_nothing_comes_in_or_goes_out_but_what_the_values_name(path: Path) -> None:
    values = _values(path)
    policy = _one(values, "NetworkPolicy")["spec"]
    exchange = [one] if (one := values.get("exchange")) else []
    named = [one for one in (*values.get("ports", ()), *exchange) if one.get("from")]
    console = bool(values.get("console", {}).get("from"))

    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert len(policy["ingress"]) == len(named) + console
    assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])
    assert all(rule["to"] and rule["ports"] for rule in policy["egress"])
    assert len(policy["egress"]) == 1 + len(values.get("egress", ()))


@pytest.mark.parametrize("path", VALUES, ids=NAMES)
def test_workers_run_beside_a_node_that_names_a_redis_and_nowhere_else(path: Path) -> None:
    values = _values(path)
    containers = _one(values, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    workers = [one["args"] for one in containers if one["name"] == "worker"]

    has_redis = bool(values["settings"].get("response", {}).get("redis"))
    assert workers == ([["worker", "--processes", "4"]] if has_redis else [])


def test_what_is_selected_is_what_runs() -> None:
    for path in VALUES:
        objects = list(_objects(_values(path)))
        labels = next(one for one in objects if one["kind"] == "StatefulSet")["spec"]["template"][
            "metadata"
        ]["labels"]
        for one in objects:
            selector = one.get("spec", {}).get("selector") or one.get("spec", {}).get("podSelector")
            if selector:
                wanted = selector.get("matchLabels", selector)
                assert wanted.items() <= labels.items()


def test_a_change_of_the_settings_starts_the_pods_anew() -> None:
    def sums(values: dict[str, Any]) -> dict[str, str]:
        template = _one(values, "StatefulSet")["spec"]["template"]
        return dict(template["metadata"]["annotations"])

    values = _values(VALUES[0])
    before = sums(values)
    values["settings"]["mode"] = "exercise"

    assert sums(values)["checksum/settings"] != before["checksum/settings"]
    assert sums(values)["checksum/files"] == before["checksum/files"]


def test_no_password_stands_in_what_is_rendered() -> None:
    values = _values(VALUES[NAMES.index("10-hub-cluster-standby")])
    text = "\n".join(_rendered(values).values())

    assert "secretRef: {name: search}" in text
    assert not re.search(r"password:\s*\S", text, re.IGNORECASE)


WRONG = {
    "an unknown part": {"part": "sensor"},
    "an unknown value": {"replica": 2},
    "an unknown setting": {"settings": {"operater": "op"}},
    "a setting of another type": {"settings": {"retention": {"events_days": "x"}}},
    "two of one node": {"replicas": 2},
    "a standby without a cluster": {"part": "hub", "replicas": 2},
    "an open peer": {"console": {"from": [{}]}},
    "a port that is none": {"ports": [{"name": "x", "port": 70000}]},
    "no worker at all": {"worker": {"processes": 0}},
    "a digest that is none": {"image": {"digest": "sha256:1"}},
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG.keys())
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        _rendered(values)


def test_the_values_schema_is_the_one_of_the_settings() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "chart-schema"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )

    kept = (CHART / "values.schema.json").read_text(encoding="utf-8")
    assert json.loads(kept) == json.loads(made.stdout), (
        "run scripts/chart-schema > helm/cityward/values.schema.json"
    )


def test_the_versions_are_those_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert chart["version"] == chart["appVersion"] == project["version"]
