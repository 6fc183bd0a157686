"""What is said of trials that the nodes are too small for."""

from ablation.driver.capacity import lacking
from ablation.resources import Node, Resources

GIB = 1 << 30
NODES = [Node("a", 96, 8, 500 * GIB), Node("b", 96, 8, 500 * GIB), Node("c", 4, 0, 15 * GIB)]
NAMES = {"a": "gpu-1", "b": "gpu-2", "c": "head"}


def test_trials_that_fit_lack_nothing() -> None:
    needs = {"small": Resources(), "large": Resources(16, 12, 1, 60 * GIB), "shared": Resources(1, 1, 0.25)}
    assert lacking(NODES, NAMES, needs) == []


def test_what_a_trial_lacks_is_said_by_node() -> None:
    needs = {"table8/ATSS": Resources(8, 4, 4), "table8/FCOS": Resources(8, 4, 4), "table3/k=9": Resources()}
    assert lacking(NODES, NAMES, needs) == [
        "each of table8/ATSS and 1 more needs 8 workers of 4 CPUs, 4 GPUs at once; each of gpu-1 and 1 more "
        "with 96 CPUs, 8 GPUs, 500 GiB has room for 2; head with 4 CPUs, 15 GiB has room for 0"
    ]
    (line,) = lacking(NODES[2:], NAMES, {"table1/a": Resources(1, 1, 0, 16 * GIB)})
    assert line == "table1/a needs 1 CPU, 16 GiB at once; head with 4 CPUs, 15 GiB has room for 0"
    assert lacking([], {}, {"x": Resources()}) == ["x needs 1 CPU at once; the cluster has no nodes"]
