"""An option that rewrites the golden trial keys."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-keys", action="store_true", help="rewrite the golden trial keys")
