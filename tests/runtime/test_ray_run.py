"""A folder on a Ray cluster: the results of a run without one, whatever happens to workers."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from deadly_scan import DEADLY_HU, FAULTY_HU, DeadlyWanted, DeadWanted, OtherWanted
from phantom import PHANTOM_SPACING_MM, phantom_hu, spl_affine, tiny_model, write_tiny_bundle

import covidseg_runtime
from covidseg_runtime.errors import BundleError, EngineError, OutputError, SegmentationCancelled
from covidseg_runtime.folder_manifest import ScanRecord
from covidseg_runtime.folder_run import open_folder_run
from covidseg_runtime.folder_scans import FolderJob, Part
from covidseg_runtime.ray_cluster import ClusterSettings, join_cluster
from covidseg_runtime.ray_crew import require_alike
from covidseg_runtime.ray_run import open_ray_run
from covidseg_runtime.scan_worker import ScanWorker, SharedFolders, WorkerFacts
from covidseg_runtime.wanted_segmenter import WantedSegmenter

NAMES = [f"{'ward/' if number % 2 else ''}p{number}.nii.gz" for number in range(6)]
TWO = ClusterSettings(workers=2, cores=1)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One of two cores, whatever the machine has, for all tests; its workers find the modules of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        with join_cluster("local"):
            yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", tiny_model())


@pytest.fixture
def wanted(bundle: Path, tmp_path: Path) -> DeadlyWanted:
    """Nothing dies unless a scan is deadly."""
    (tmp_path / "deaths").mkdir()
    return DeadlyWanted(str(bundle), engine="onnxruntime", threads=1, deaths=tmp_path / "deaths")


@pytest.fixture
def job(tmp_path: Path) -> FolderJob:
    for number, name in enumerate(NAMES):
        _put_scan(tmp_path / "scans" / name, shift=number)
    return FolderJob(tmp_path / "scans", tmp_path / "out")


def _put_scan(path: Path, shift: int = 0, highest: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.roll(phantom_hu(), shift, axis=1)
    if highest is not None:
        hu[0, 0, 0] = highest
    nibabel.save(nibabel.Nifti1Image(hu, spl_affine(PHANTOM_SPACING_MM)), path)


def _run(job: FolderJob, wanted: WantedSegmenter, settings: ClusterSettings = TWO) -> tuple[list[ScanRecord], str]:
    """What a run on the cluster did, and what it said of workers."""
    records: list[ScanRecord] = []
    said: list[str] = []
    with open_ray_run(job, wanted, settings, said.append, threading.Event()) as run:
        run.segment(records.append)
    return records, "\n".join(said)


def _run_here(job: FolderJob, wanted: WantedSegmenter) -> list[ScanRecord]:
    """What a run without Ray did."""
    records: list[ScanRecord] = []
    with wanted.open() as segmenter, open_folder_run(job, segmenter) as run:
        run.segment(records.append)
    return records


def _results(output: Path) -> tuple[dict[str, bytes], dict[str, dict], dict[str, dict]]:
    """Label maps as bytes, and reports and lines of the manifest without times; no scan may have two lines."""
    reports, lines = {}, {}
    for path in output.rglob("*_covidseg.json"):
        reports[path.name] = json.loads(path.read_bytes())
        del reports[path.name]["timings_s"]
    for text in (output / "manifest.jsonl").read_text().splitlines():
        line = json.loads(text)
        del line["finished"], line["seconds"]
        line["outputs"].get("report", {}).pop("sha256", None)
        assert line["scan"] not in lines
        lines[line["scan"]] = line
    labels = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*_covidseg.nii.gz")}
    return labels, reports, lines


def _unfinished(output: Path) -> list[Path]:
    return [path for path in output.rglob(".*") if path.is_file()]


def test_the_results_are_those_of_a_run_without_ray(job: FolderJob, wanted: DeadlyWanted, tmp_path: Path) -> None:
    (job.source / "p2.nii.gz").write_bytes(b"no scan")
    _put_scan(job.source / "p4.nii", shift=2)
    here = replace(job, output=tmp_path / "here")
    _run_here(here, wanted)
    records, said = _run(job, wanted)
    assert sorted(record.status for record in records) == ["failed"] * 2 + ["ok"] * 5
    assert _results(job.output) == _results(here.output)
    lines = _results(job.output)[2]
    assert "not a whole gzip file" in lines["p2.nii.gz"]["error"]
    assert "the names of those of p4.nii; rename one" in lines["p4.nii.gz"]["error"]
    assert not said
    assert not _unfinished(job.output)


def test_it_goes_on_with_what_a_part_without_ray_began(job: FolderJob, wanted: DeadlyWanted) -> None:
    first = replace(job, part=Part(0, 2))
    done = {record.scan for record in _run_here(first, wanted)}
    assert 0 < len(done) < 6
    records, _ = _run(replace(job, part=Part(1, 2)), wanted)
    assert {record.scan for record in records} == set(NAMES) - done
    assert _run(job, wanted) == ([], "")


def test_what_a_dead_worker_had_in_work_is_done_again(job: FolderJob, wanted: DeadlyWanted, tmp_path: Path) -> None:
    _put_scan(job.source / "p0.nii.gz", highest=DEADLY_HU)
    here = replace(job, output=tmp_path / "here")
    _run_here(here, wanted)
    job.output.mkdir()
    half = job.output / ".p0_covidseg.nii.gz.abc_1234"  # as a worker leaves it that is killed while it writes
    said: list[str] = []
    with open_ray_run(job, replace(wanted, most=1), TWO, said.append, threading.Event()) as run:
        half.write_bytes(b"half")
        run.segment(lambda record: None)
        assert not half.exists()
    assert len(list(wanted.deaths.iterdir())) == 1
    assert len(said) == 1
    assert "p0.nii.gz" in said[0]
    assert _results(job.output) == _results(here.output)


def test_a_scan_that_kills_three_workers_has_failed_and_the_others_are_done(
    job: FolderJob, wanted: DeadlyWanted
) -> None:
    _put_scan(job.source / "p0.nii.gz", highest=DEADLY_HU)
    _put_scan(job.source / "ward" / "p1.nii.gz", highest=FAULTY_HU)
    records, said = _run(job, replace(wanted, most=99))
    failed = {record.scan: record.error or "" for record in records if record.status == "failed"}
    assert failed.keys() == {"p0.nii.gz", "ward/p1.nii.gz"}
    assert failed["p0.nii.gz"].startswith("p0.nii.gz: 3 workers died while they segmented it, the last one on ")
    assert failed["ward/p1.nii.gz"] == "p1.nii.gz: unexpected KeyError: 'a fault of ours'"
    assert len(records) == 6
    assert len(list(wanted.deaths.iterdir())) == 3
    assert said.count("died with") == 3


def test_a_cancelled_run_records_what_is_written_and_is_gone_on_with(job: FolderJob, wanted: DeadlyWanted) -> None:
    cancel = threading.Event()
    records: list[ScanRecord] = []

    def cancel_after_the_first(record: ScanRecord) -> None:
        records.append(record)
        cancel.set()

    with open_ray_run(job, wanted, TWO, print, cancel) as run, pytest.raises(SegmentationCancelled):
        run.segment(cancel_after_the_first, cancel)
    assert 0 < len(records) < 6
    assert len(list(job.output.rglob("*_covidseg.nii.gz"))) == len(records)
    assert not _unfinished(job.output)
    assert len(_run_here(job, wanted)) == 6 - len(records)


def test_a_place_that_takes_nothing_ends_the_run(job: FolderJob, wanted: DeadlyWanted) -> None:
    """As a full disk does: in the place of the folder of results there is one that takes no file."""
    with open_ray_run(job, wanted, TWO, print, threading.Event()) as run:
        job.output.rename(job.output.with_name("unplugged"))
        job.output.symlink_to("/proc/sys")
        with pytest.raises(OutputError, match=r"^on .*: .*cannot be (written|made)"):
            run.segment(lambda record: None)


def test_a_cluster_without_room_is_told_after_the_wait(job: FolderJob, wanted: DeadlyWanted) -> None:
    import ray

    taken = ray.util.placement_group([{"CPU": 2}])
    ray.get(taken.ready())
    try:
        with pytest.raises(EngineError, match=r"no worker found a place in 1 s: .* has 2 cores .*, 0 cores"):
            _run(job, wanted, replace(TWO, wait_s=1))
    finally:
        ray.util.remove_placement_group(taken)


def test_a_run_that_is_cancelled_before_a_worker_is_ready_ends(job: FolderJob, wanted: DeadlyWanted) -> None:
    cancel = threading.Event()
    cancel.set()
    with (
        pytest.raises(SegmentationCancelled, match="before a worker was ready"),
        open_ray_run(job, wanted, TWO, print, cancel),
    ):
        pass


def test_a_model_that_is_missing_is_told_before_workers_are_started(job: FolderJob, wanted: DeadlyWanted) -> None:
    with pytest.raises(BundleError, match="no model bundle"):
        _run(job, replace(wanted, model="/none"))


def test_what_a_worker_cannot_load_is_told_with_its_machine(job: FolderJob, wanted: DeadlyWanted) -> None:
    with pytest.raises(BundleError, match=r"^the worker on .* cannot begin: .*f(p)?16"):
        _run(job, replace(wanted, precision="f16"))


def test_a_worker_that_does_not_see_the_folders_says_so(job: FolderJob, wanted: DeadlyWanted, tmp_path: Path) -> None:
    job.output.mkdir()
    (job.output / "mark").touch()
    folders = SharedFolders(job.source, job.output, job.output / "mark")
    assert ScanWorker(wanted, folders).facts.threads == 1
    for unseen in (replace(folders, source=tmp_path / "none"), replace(folders, mark=job.output / "none")):
        with pytest.raises(EngineError, match="a file system that all machines share"):
            ScanWorker(wanted, unseen)


def test_a_worker_of_another_version_ends_the_run(
    job: FolderJob, wanted: DeadlyWanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covidseg_runtime, "__version__", "9.9")
    with pytest.raises(EngineError, match=r"^the worker on \S+ has covidseg \S+, this command covidseg 9\.9; install"):
        _run(job, wanted)


def test_a_worker_with_another_model_ends_the_run(job: FolderJob, bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    description = other / "bundle.json"
    description.write_text(description.read_text().replace("1.2.3", "1.2.4"))
    with pytest.raises(EngineError, match=r"has another model tiny 1\.2\.4 than this command: its bundle\.json"):
        _run(job, OtherWanted(str(bundle), engine="onnxruntime", other=str(other)))


def test_workers_that_are_not_alike_are_refused() -> None:
    first = WorkerFacts("tiny", {"model": "tiny 1.2.3", "precision": "int8"}, 4, {"openvino": "2026.0"})
    require_alike(first, replace(first, choice="of another wording"), "n2")
    for other, message in (
        (replace(first, settings={**first.settings, "precision": "f32"}), "precision is f32, on another int8;"),
        (replace(first, threads=2), "threads is 2, on another 4;"),
        (replace(first, packages={"openvino": None}), "openvino is None, on another 2026.0;"),
    ):
        with pytest.raises(EngineError, match=f"workers are not alike: on n2 {message}"):
            require_alike(first, other, "n2")


def test_workers_that_die_before_they_can_begin_end_the_run(job: FolderJob, bundle: Path) -> None:
    with pytest.raises(EngineError, match="^workers die before they can begin, the last one on "):
        _run(job, DeadWanted(str(bundle)), replace(TWO, workers=1))
