"""What is used of Ray beyond its public API is still there, and is used in one file alone."""

import inspect
import re
from pathlib import Path

import ray

from ablation.cluster import ray_private

PLATFORM = Path(ray_private.__file__).parents[1]
PRIVATE = re.compile(r"\bray(\.\w+)*\.(_\w+|tune\.(execution|experiment))|temporary_state|\b_memory\W?[:=]")


def test_ray_can_be_told_how_much_memory_a_machine_has() -> None:
    assert ray_private.memory_argument(5) == {"_memory": 5}
    assert 'kwargs.pop("_memory"' in inspect.getsource(inspect.unwrap(ray.init))


def test_no_other_file_uses_private_names_of_ray() -> None:
    users = {
        path.name
        for path in PLATFORM.rglob("*.py")
        if any(PRIVATE.search(line) for line in path.read_text().splitlines())
    }
    assert users == {"ray_private.py"}
