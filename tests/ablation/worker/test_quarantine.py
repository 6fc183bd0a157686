"""A device that cannot be used is not allocated to other trials."""

import subprocess
import sys
import textwrap

import pytest

HOLD = """
    import ray

    from ablation.resources import Resources
    from ablation.worker import quarantine as device
    from ablation.cluster.connection import environment

    with environment({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}):
        ray.init(address="local", num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False)
    here = device.this_device(workers=2)
    bad = device.Device(here.node, here.host, here.address, ("2",), 2)
    device.allocate(bad, Resources(workers=2, cpus=1, gpus=1))
    held = [gpu for process in device._holders for gpu in ray.get(process.gpus.remote())]
    assert len(held) == 2 and "2" in held, held
    # What was asked for to find it comes free again.
    others = [ray.remote(device._Holder).options(num_gpus=1).remote() for _ in range(2)]
    left = [gpu for process in others for gpu in ray.get(process.gpus.remote(), timeout=60)]
    assert sorted(held + left) == ["0", "1", "2", "3"], (held, left)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_group_keeps_its_bad_gpu_and_as_many_others_as_it_had() -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLD)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
