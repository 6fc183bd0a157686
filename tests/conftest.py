"""Fixtures that every test may use."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference outputs and real images that live beside the checkout, where they are present."""
    path = ROOT.parent / "shared"
    if not (path / "golden" / "MANIFEST.json").is_file():
        pytest.skip("needs the reference data beside the checkout (../shared)")
    return path
