"""Every row is measured in a process of its own, and what cannot run says why."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from phantom import phantom_labels

from covidseg_runtime.benchmark_chart import render_benchmark_chart
from covidseg_runtime.benchmark_report import benchmark_report
from covidseg_runtime.benchmark_rows import (
    Benchmark,
    Contestant,
    Measurement,
    Row,
    Selection,
    Workload,
    list_contestants,
)
from covidseg_runtime.benchmarking import measure_contestants
from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.errors import EngineError, SettingsError
from covidseg_runtime.machine_facts import describe_machine, installed_size_mb
from covidseg_runtime.process_memory import peak_memory_mib

OPENVINO = Contestant("openvino", "f32", "cpu")
ONNXRUNTIME = Contestant("onnxruntime", "f32", "cpu")
PEER = Contestant("peer", "bf16", "auto", opener="peer_of_this_test:open_peer", packages=("numpy",))
MEASUREMENT = Measurement("cpu", 0.5, (10.0, 30.0, 11.0), (4.0, 9.0, 2.0), 100.0, ("openvino",))


def test_two_engines_are_measured_and_agree_with_the_truth(phantom_scan: Path, tiny_bundle: Path) -> None:
    started: list[int] = []
    workload = Workload(tiny_bundle, phantom_scan, repeats=2, threads=1)
    benchmark = measure_contestants(
        workload, (OPENVINO, ONNXRUNTIME), phantom_labels() == 3, lambda number, _: started.append(number)
    )
    assert started == [0, 1]
    assert benchmark.reference == OPENVINO
    assert [row.contestant for row, _ in benchmark.measured] == [OPENVINO, ONNXRUNTIME]
    for row, measured in benchmark.measured:
        assert (row.problem, row.dsc_reference, row.dsc_truth) == (None, 1.0, 1.0)
        assert row.contestant.engine in measured.packages
        assert (len(measured.tile_ms), len(measured.scan_s)) == (5, 2)
        assert min(*measured.tile_ms, *measured.scan_s, measured.load_s, row.installed_mb or 0) > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="other systems keep no peak of a process alone")
def test_the_memory_of_a_row_is_not_that_of_its_parent(phantom_scan: Path, tiny_bundle: Path) -> None:
    held = np.ones(700 * 2**20, np.uint8)
    benchmark = measure_contestants(Workload(tiny_bundle, phantom_scan, repeats=1), (ONNXRUNTIME,))
    own = peak_memory_mib()
    assert own is not None
    assert own > held.nbytes / 2**20
    ((_, measured),) = benchmark.measured
    assert measured.peak_memory_mib is not None
    assert 20 < measured.peak_memory_mib < 500


@pytest.fixture
def peer_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a module with `open_peer` can be written; the row's process finds it, as it has our path."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder / "peer_of_this_test.py"


def test_a_peer_that_differs_grossly_is_shown(phantom_scan: Path, tiny_bundle: Path, peer_module: Path) -> None:
    peer_module.write_text(
        "import numpy as np\n"
        "class Peer:\n"
        "    device = 'cpu'\n"
        "    def predict(self, tiles): return tiles\n"
        "    def segment(self, volume): return np.full(volume.shape, 3, np.uint8)\n"
        "def open_peer(bundle, contestant, threads): return Peer()\n"
    )
    benchmark = measure_contestants(Workload(tiny_bundle, phantom_scan, repeats=1), (OPENVINO, PEER))
    _, row = benchmark.rows
    infected = int((phantom_labels() == 3).sum())
    assert row.dsc_reference == pytest.approx(2 * infected / (infected + phantom_labels().size))
    assert row.dsc_truth is None
    assert row.contestant.device == "cpu"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise ValueError('the weights are gone')", "its process ended with exit code 1: ValueError: the weights are"),
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL; was there too little memory?"),
        (
            "from covidseg_runtime.errors import EngineError; raise EngineError('no such GPU')",
            "no such GPU",
        ),
    ],
)
def test_a_row_that_cannot_run_has_its_reason(
    phantom_scan: Path, tiny_bundle: Path, peer_module: Path, code: str, problem: str
) -> None:
    peer_module.write_text(f"def open_peer(bundle, contestant, threads):\n    {code}\n")
    benchmark = measure_contestants(Workload(tiny_bundle, phantom_scan, repeats=1), (PEER,))
    (row,) = benchmark.rows
    assert row.problem is not None
    assert row.problem.startswith(problem)
    assert benchmark.reference is None
    assert benchmark.measured == ()


def test_a_precision_without_a_file_has_its_reason(phantom_scan: Path, tiny_bundle: Path) -> None:
    workload = Workload(tiny_bundle, phantom_scan, repeats=1)
    (row,) = measure_contestants(workload, (Contestant("openvino", "int8", "cpu"),)).rows
    assert row.problem == "bundle 'tiny' has no ONNX model of precision int8; it has fp32"


def test_the_reference_comes_first_and_peers_last() -> None:
    contestants = list_contestants(Selection(device="cpu"), peers=(PEER,))
    assert contestants[:2] == (OPENVINO, ONNXRUNTIME)
    assert contestants[-1] == PEER
    assert len(set(contestants)) == len(contestants)
    # bf16 is not computed by ONNX Runtime: no row, as nobody asked for one
    assert Contestant("openvino", "bf16", "cpu") in contestants
    assert Contestant("onnxruntime", "bf16", "cpu") not in contestants


def test_what_is_asked_for_by_both_names_has_a_row_even_if_it_cannot_be() -> None:
    contestants = list_contestants(Selection(("onnxruntime", "peer"), ("bf16", "f32"), "cpu"), peers=(PEER,))
    assert Contestant("onnxruntime", "bf16", "cpu") in contestants
    assert Contestant("peer", "f32", "auto", PEER.opener, PEER.packages) in contestants


@pytest.mark.parametrize(
    "selection", [Selection(("peer",)), Selection(precisions=("int8",)), Selection(("onnxruntime",), device="cuda")]
)
def test_a_reference_is_added_where_none_was_asked_for(selection: Selection) -> None:
    assert list_contestants(selection, peers=(PEER,))[0] == OPENVINO


def test_the_added_reference_is_an_engine_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert list_contestants(Selection(precisions=("int8",)))[0] == ONNXRUNTIME


@pytest.mark.parametrize(
    ("selection", "error", "message"),
    [
        (Selection(("torchscript",)), SettingsError, "engine 'torchscript' is unknown: expected one of .*, peer$"),
        (Selection(("auto",)), SettingsError, "engine 'auto' is unknown"),
        (Selection(precisions=("f8",)), SettingsError, "precision 'f8' is unknown: expected one of f32"),
        (Selection(device="gpu"), EngineError, "device 'gpu' is unknown"),
    ],
)
def test_unknown_names_are_refused(selection: Selection, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list_contestants(selection, peers=(PEER,))


def test_medians_and_throughput() -> None:
    assert MEASUREMENT.median_tile_ms == 11.0
    assert MEASUREMENT.median_scan_s == 4.0
    assert MEASUREMENT.scans_per_hour == 900.0


def test_the_report_has_every_repeat_and_null_for_what_was_not_measured(phantom_scan: Path, tiny_bundle: Path) -> None:
    rows = (
        Row(OPENVINO, measurement=MEASUREMENT, dsc_reference=float("nan"), installed_mb=186.49),
        Row(Contestant("onnxruntime", "f16", "cpu"), problem="no file"),
    )
    workload = Workload(tiny_bundle, phantom_scan, threads=2)
    report = benchmark_report(Benchmark(rows, OPENVINO), load_bundle(tiny_bundle), workload, {"file": "phantom.nii.gz"})
    json.dumps(report, allow_nan=False)
    first, second = report["rows"]
    assert first["all_s_per_scan"] == [4.0, 9.0, 2.0]
    assert (first["s_per_scan"], first["ms_per_tile"], first["scans_per_hour"]) == (4.0, 11.0, 900.0)
    assert first["dsc_reference"] is None
    assert first["installed_mb"] == 186.5
    assert second["problem"] == "no file"
    assert {name for name, value in second.items() if value is not None} == {"engine", "precision", "device", "problem"}
    assert report["reference"] == {"engine": "openvino", "precision": "f32", "device": "cpu"}
    assert report["model"]["files"] == {"model.onnx": load_bundle(tiny_bundle).files[0].sha256}
    assert report["notice"] == "Research use only. Not a medical device."
    assert set(report["versions"]) >= {"openvino", "onnxruntime"}


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["threads"] >= 1
    assert machine["cores"] is None or machine["cores"] >= 1


def test_an_installed_size_is_that_of_the_files() -> None:
    openvino = installed_size_mb(("openvino",))
    assert openvino is not None
    assert 50 < openvino < 1000
    assert installed_size_mb(("no_such_package",)) is None
    assert installed_size_mb(("numpy",)) is None  # the runtime needs it anyway


def test_requirements_count_and_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(name: str, size: int, requires: tuple[str, ...] = ()) -> None:
        (tmp_path / f"{name}.py").write_bytes(b"#" * size)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *lines]))
        (info / "RECORD").write_text(f"{name}.py,,\n")
        (info / "top_level.txt").write_text(f"{name}\n")

    install("bench_engine", 3_000_000, ("bench_base>=1; python_version > '3'", "bench-gpu; extra == 'cuda'", "gone"))
    install("bench_base", 1_000_000, ("bench_engine", "bench_docs; extra == 'docs'", "numpy"))
    install("bench_gpu", 500_000)
    install("bench_docs", 9_000_000)
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_size_mb(("bench_engine", "bench_base")) == pytest.approx(4.5)


def test_the_longest_bar_is_that_of_the_slowest_row() -> None:
    image = pytest.importorskip("PIL.Image")
    slow = Measurement("cpu", 0.5, (10.0,), (8.0,), None, ())
    rows = (
        Row(OPENVINO, measurement=MEASUREMENT, dsc_reference=1.0, dsc_truth=0.75),
        Row(ONNXRUNTIME, problem="not installed"),
        Row(PEER, measurement=slow, dsc_reference=0.5),
    )
    picture = np.asarray(image.open(io.BytesIO(render_benchmark_chart(Benchmark(rows, OPENVINO), ("tiny 1.2.3",)))))
    top = picture[:100]
    green, yellow = ((top == colour).all(-1).sum(axis=1).max() for colour in ((60, 220, 120), (255, 225, 0)))
    assert yellow == pytest.approx(2 * green, abs=2)  # 8 s and 4 s
