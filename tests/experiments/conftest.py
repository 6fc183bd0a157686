"""Processors with and without bf16 arithmetic, and an option that rewrites the golden trial keys."""

import pytest

from experiments.detection import small


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-keys", action="store_true", help="rewrite the golden trial keys")


@pytest.fixture(params=["bf16", "fp32"])
def suffix(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a small profile's name ends in on a processor with bf16 arithmetic, and on one without."""
    monkeypatch.setattr(small, "supported_precision", lambda: (request.param, []))
    return {"bf16": "", "fp32": "-fp32"}[request.param]
