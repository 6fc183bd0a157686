"""The soak in short; `soak.py` runs it for long."""

from pathlib import Path

import pytest

from tests.support.soak import soak, toys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_few_faults_at_random_change_no_result(tmp_path: Path) -> None:
    assert soak(toys(6), 6, tmp_path, seed=393).total() == 6
