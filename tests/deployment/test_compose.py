"""docker/compose.yaml: valid, closed to other machines, at one with the files and programs it names."""

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

# Read by the images' own programs, or by libraries inside our code, rather than by name in it.
KNOWN_VARIABLES = {
    "ray": {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"},
    "libpq": {"PGPASSWORD"},
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS"},
    "mlflow": {
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "MLFLOW_S3_ENDPOINT_URL",
    },
    "boto3 and seaweedfs": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_BUCKET"},
    "grafana": {"GF_SECURITY_ADMIN_PASSWORD", "GF_ANALYTICS_REPORTING_ENABLED", "GF_USERS_ALLOW_SIGN_UP"},
}


@pytest.fixture(scope="module")
def text(docker: Path) -> str:
    return (docker / "compose.yaml").read_text()


@pytest.fixture(scope="module")
def services(text: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def test_it_fits_the_schema_of_compose(docker: Path, validate: Callable[..., None]) -> None:
    files = docker / "compose.yaml", docker / "compose.cuda.yaml"
    validate("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files)


def test_all_yaml_here_is_plain_and_has_no_key_twice(docker: Path, validate: Callable[..., None]) -> None:
    rules = (
        "{extends: default, rules: {document-start: disable, line-length: {max: 120}, "
        "comments: {min-spaces-from-content: 1}}}"
    )
    validate("yamllint", "--strict", "-d", rules, docker)


def test_every_port_is_published_on_the_loopback_device(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


def test_what_keeps_data_is_reached_by_other_services_alone(services: dict[str, dict[str, Any]]) -> None:
    assert not services["postgres"].get("ports") and not services["storage"].get("ports")


def test_every_service_says_whether_it_is_healthy_and_gains_no_privileges(
    services: dict[str, dict[str, Any]],
) -> None:
    for name, service in services.items():
        assert service["healthcheck"]["test"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name


def test_every_image_is_ours_or_named_with_its_version(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]


def test_every_target_that_is_built_is_in_the_dockerfile(docker: Path) -> None:
    targets = re.findall(r" AS (\S+)", (docker / "Dockerfile").read_text())
    for name in ("compose.yaml", "compose.cuda.yaml"):
        assert set(re.findall(r"target: ([a-z]+)", (docker / name).read_text())) <= set(targets)


def test_services_wait_only_for_services_that_exist(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert service.get("depends_on", {}).keys() <= services.keys()


# --- secrets ----------------------------------------------------------------------------------------------


def _example(docker: Path) -> dict[str, str]:
    lines = (docker / ".env.example").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def test_the_example_names_every_variable_and_no_other(docker: Path, text: str) -> None:
    assert _example(docker).keys() == set(re.findall(r"\$\{(\w+)", text))


def test_what_has_no_default_is_a_secret_and_empty_in_the_example(docker: Path, text: str) -> None:
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == {name for name, value in _example(docker).items() if not value}
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)", text):
        assert _example(docker)[name] == default


def test_no_secret_stands_in_the_files(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|KEY", name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", value), name


def test_git_ignores_the_file_with_the_secrets(docker: Path) -> None:
    assert ".env" in (docker / ".gitignore").read_text().split()


# --- agreement with the code -----------------------------------------------------------------------------


def test_every_variable_is_read_by_somebody(
    root: Path, docker: Path, services: dict[str, dict[str, Any]]
) -> None:
    sources = [*(root / "platform").rglob("*.py"), *(root / "experiments").rglob("*.py")]
    code = "".join(path.read_text() for path in sources) + (docker / "postgres/init.sh").read_text()
    known = set().union(*KNOWN_VARIABLES.values())
    given = {name for service in services.values() for name in service.get("environment", {})}
    assert {name for name in given - known if not re.search(rf"\b{name}\b", code)} == set()


@pytest.mark.parametrize(
    ("service", "command"),
    [
        ("ray-head", ("ray", "start")),
        ("ray-worker", ("ray", "start")),
        ("mlflow", ("mlflow", "server")),
    ],
)
def test_its_commands_take_the_options_given(
    services: dict[str, dict[str, Any]],
    options_of: Callable[..., set[str]],
    service: str,
    command: tuple[str],
) -> None:
    words = services[service]["command"]
    assert tuple(words[:2]) == command
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options_of(*command)


def test_addresses_name_services_and_the_ports_that_they_listen_on(
    docker: Path, services: dict[str, dict[str, Any]]
) -> None:
    def listening(service: str, option: str) -> int:
        [port] = [w.partition("=")[2] for w in services[service]["command"] if w.startswith(f"{option}=")]
        return int(port)

    ports = {
        "ray-head": listening("ray-head", "--port"),
        "mlflow": listening("mlflow", "--port"),
        "postgres": 5432,
        "storage": 8333,
        "prometheus": 9090,
    }
    found = 0
    for path in ("compose.yaml", "mlflow/auth.ini", "grafana/datasources.yaml"):
        for host, port in re.findall(
            r"(?:://|@|address[=, ]+\"?)([a-z-]+):(\d+)", (docker / path).read_text()
        ):
            assert ports[host] == int(port), (path, host, port)
            found += 1
    assert found >= 7


def test_healthchecks_ask_the_port_that_is_published(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        asked = re.findall(r"127\.0\.0\.1:(\d+)", " ".join(service["healthcheck"]["test"]))
        for port in service.get("ports", []) if asked else []:
            assert asked == [port.rpartition(":")[2]], name


def test_ray_is_healthy_when_it_exports_its_numbers(services: dict[str, dict[str, Any]]) -> None:
    for name in ("ray-head", "ray-worker"):
        [port] = re.findall(r"\$\$HOSTNAME:(\d+)/metrics", services[name]["healthcheck"]["test"][1])
        assert f"--metrics-export-port={port}" in services[name]["command"]


def test_files_that_are_mounted_exist(docker: Path, services: dict[str, dict[str, Any]]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    files = [mount.split(":") for mount in mounts if mount.startswith("./")]
    assert len(files) == 5
    for source, _, mode in files:
        assert (docker / source).is_file() and mode == "ro", source


def test_every_named_volume_is_declared(text: str, services: dict[str, dict[str, Any]]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    named = {mount.partition(":")[0] for mount in mounts if mount[0].isalpha()}
    assert named == yaml.safe_load(text)["volumes"].keys()


def test_the_dashboard_serves_the_results_folder_and_can_write_nothing(
    services: dict[str, dict[str, Any]],
) -> None:
    service = services["dashboard"]
    assert service["command"][-1] == "/workspace/results"  # ./results, for containers run in /workspace
    assert service["read_only"] and service["volumes"] == ["workspace:/workspace:ro"]


def test_mlflow_asks_for_a_login_and_refuses_other_host_names(services: dict[str, dict[str, Any]]) -> None:
    command = services["mlflow"]["command"]
    assert "--app-name=basic-auth" in command
    assert any(word.startswith("--allowed-hosts=mlflow:5000,127.0.0.1:5000") for word in command)


# --- what starts PostgreSQL --------------------------------------------------------------------------------


def test_the_script_that_makes_accounts_is_sound(docker: Path, validate: Callable[..., None]) -> None:
    path = docker / "postgres/init.sh"
    assert path.stat().st_mode & stat.S_IXUSR
    validate("shellcheck", path)


def test_every_database_that_an_address_names_is_made(docker: Path, text: str) -> None:
    made = re.findall(r"CREATE DATABASE (\w+) OWNER (\w+)", (docker / "postgres/init.sh").read_text())
    addresses = text + (docker / "mlflow/auth.ini").read_text()
    named = re.findall(r"postgresql\+psycopg://(\w+)@postgres:5432/(\w+)", addresses)
    assert {(database, account) for account, database in named} == set(made)
