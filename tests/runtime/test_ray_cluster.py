"""How a cluster is shared out; the clusters themselves are in test_ray_run.py and test_cli_segment_ray.py."""

from __future__ import annotations

import os

import pytest

from covidseg_runtime.errors import EngineError, SettingsError
from covidseg_runtime.ray_cluster import (
    ClusterSettings,
    WorkerPlan,
    gpus_of_a_worker,
    join_cluster,
    plan_workers,
)
from covidseg_runtime.wanted_segmenter import WantedSegmenter

AUTO = ClusterSettings("auto")


@pytest.mark.parametrize(
    ("cores", "plan"),
    [
        ([16], WorkerPlan(4, 4, 0)),
        ([10, 6], WorkerPlan(3, 4, 0)),  # 2 of 10, 1 of 6
        ([2, 8], WorkerPlan(5, 2, 0)),  # all of the smaller machine: 1 of 2, 4 of 8
        ([0, 8], WorkerPlan(2, 4, 0)),  # a head that works on nothing
        ([1], WorkerPlan(1, 1, 0)),
    ],
)
def test_cores_are_shared_in_groups_of_four_or_of_the_smallest_machine(cores: list[int], plan: WorkerPlan) -> None:
    assert plan_workers([{"CPU": float(count)} for count in cores], AUTO, 0) == plan


@pytest.mark.parametrize(
    ("machines", "plan"),
    [
        ([{"CPU": 32.0, "GPU": 4.0}], WorkerPlan(4, 4, 1)),
        ([{"CPU": 4.0, "GPU": 2.0}, {"CPU": 64.0}], WorkerPlan(2, 2, 1)),  # nothing on the machine without GPU
        ([{"CPU": 2.0, "GPU": 4.0}], WorkerPlan(2, 1, 1)),  # a worker needs a core
    ],
)
def test_each_gpu_has_a_worker(machines: list[dict[str, float]], plan: WorkerPlan) -> None:
    assert plan_workers(machines, AUTO, 1) == plan


def test_numbers_that_are_given_hold() -> None:
    machines = [{"CPU": 16.0}]
    assert plan_workers(machines, ClusterSettings("auto", workers=3, cores=5), 0) == WorkerPlan(3, 5, 0)
    assert plan_workers(machines, ClusterSettings("auto", cores=5), 0) == WorkerPlan(3, 5, 0)
    assert plan_workers(machines, ClusterSettings("auto", workers=99), 0).workers == 99, "a cluster may grow"


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        (ClusterSettings("auto", cores=5), 0),
        (AUTO, 1),
        (ClusterSettings("local", workers=2, cores=4), 0),  # this machine does not grow
    ],
)
def test_a_cluster_without_room_is_refused(settings: ClusterSettings, gpus: int) -> None:
    with pytest.raises(EngineError, match="4 cores and 0 GPUs on 1 machine: room for [01] workers of"):
        plan_workers([{"CPU": 4.0}], settings, gpus)


def test_a_gpu_is_taken_where_one_is_asked_for() -> None:
    machines = [{"CPU": 4.0}]
    assert gpus_of_a_worker(WantedSegmenter(device="cuda"), machines) == 1
    assert gpus_of_a_worker(WantedSegmenter(device="cpu"), [{"GPU": 1.0}]) == 0
    assert gpus_of_a_worker(WantedSegmenter(), machines) == 0


def test_a_certain_gpu_is_refused_since_ray_gives_them() -> None:
    with pytest.raises(SettingsError, match="--device cuda:1: Ray gives each worker its GPU; use --device cuda"):
        gpus_of_a_worker(WantedSegmenter(device="cuda:1"), [])


@pytest.mark.parametrize("options", [{"workers": 0}, {"cores": 0}, {"wait_s": 0.0}, {"wait_s": float("nan")}])
def test_numbers_that_are_none_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(options))} is "):
        ClusterSettings(**options)  # type: ignore[arg-type]


def test_an_address_that_does_not_answer_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    with pytest.raises(EngineError, match="no Ray cluster answers at localhost:1"), join_cluster("localhost:1"):
        pass
    assert dict(os.environ) == before
