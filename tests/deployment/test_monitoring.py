"""Prometheus asks Ray's nodes, and Grafana's dashboard shows numbers that Ray gives."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")


def test_prometheus_takes_its_configuration(docker: Path, validate: Callable[..., None]) -> None:
    validate("promtool", "check", "config", docker / "prometheus/prometheus.yml")


def test_prometheus_asks_every_ray_service_at_the_port_where_it_exports(docker: Path) -> None:
    [job] = yaml.safe_load((docker / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    [found] = job["dns_sd_configs"]
    services = yaml.safe_load((docker / "compose.yaml").read_text())["services"]
    assert found["names"] == [name for name in services if name.startswith("ray-")]
    for name in found["names"]:
        assert f"--metrics-export-port={found['port']}" in services[name]["command"]


def _expressions(docker: Path) -> list[str]:
    dashboard = json.loads((docker / "grafana/ray.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_number_on_the_dashboard_is_one_that_ray_exports(docker: Path) -> None:
    ray = pytest.importorskip("ray")
    panels = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards/default_dashboard_panels.py"
    exported = set(re.findall(r"\bray_\w+", panels.read_text()))
    asked = {name for expression in _expressions(docker) for name in re.findall(r"\bray_\w+", expression)}
    assert len(asked) > 10 and asked <= exported


def test_prometheus_understands_every_question(
    docker: Path, validate: Callable[..., None], tmp_path: Path
) -> None:
    rules = [{"record": f"panel:{i}", "expr": expr} for i, expr in enumerate(_expressions(docker))]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    validate("promtool", "check", "rules", path)


def test_panels_ask_the_data_source_that_is_provisioned(docker: Path) -> None:
    [source] = yaml.safe_load((docker / "grafana/datasources.yaml").read_text())["datasources"]
    panels = json.loads((docker / "grafana/ray.json").read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


def test_grafana_finds_its_files_where_they_are_mounted(docker: Path) -> None:
    [provider] = yaml.safe_load((docker / "grafana/dashboards.yaml").read_text())["providers"]
    mounts = yaml.safe_load((docker / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    places = {mount.split(":")[0]: mount.split(":")[1] for mount in mounts}
    assert Path(places["./grafana/ray.json"]).parent == Path(provider["options"]["path"])
    for kind in ("datasources", "dashboards"):
        assert places[f"./grafana/{kind}.yaml"] == f"/etc/grafana/provisioning/{kind}/{kind}.yaml"
