"""All that the platform uses of Ray beyond its public API, with the reason.

tests/ablation/cluster/test_ray_private.py fails when Ray changes it, and when another file uses more.
"""

from __future__ import annotations

from typing import Any


def gpus_here() -> int:
    """The GPUs that Ray will find on this machine when it starts.

    The shares of trials are divided before Ray starts, and it has no public function that counts them.
    """
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    found = int(manager.get_current_node_num_accelerators())
    visible = manager.get_current_process_visible_accelerator_ids()
    return found if visible is None else min(found, len(visible))


def memory_argument(size: int) -> dict[str, Any]:
    """The argument of `ray.init` that says how many bytes of memory trials may reserve together.

    Without it Ray takes what happens to be free at its start, and a plan that fits now would not fit an hour
    later. `ray start --memory` is public, and starts a cluster that outlives the driver.
    """
    return {"_memory": size}
