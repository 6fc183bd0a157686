"""All that the platform uses of Ray beyond its public API, with the reason.

tests/ablation/cluster/test_ray_private.py fails when Ray changes it, and when another file uses more.
"""

from __future__ import annotations

from typing import Any


def memory_argument(size: int) -> dict[str, Any]:
    """The argument of `ray.init` that says how many bytes of memory trials may reserve together.

    Without it Ray takes what happens to be free at its start, and a plan that fits now would not fit an hour
    later. `ray start --memory` is public, and starts a cluster that outlives the driver.
    """
    return {"_memory": size}
