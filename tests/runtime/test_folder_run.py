"""A folder of scans: what is taken for a scan, what is done again, and what is never left behind."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, pointwise_logits, spl_affine

from covidseg_runtime import scan_results
from covidseg_runtime.bundle import load_bundle, sha256_of
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.errors import OutputError, SegmentationCancelled, SettingsError, VolumeError
from covidseg_runtime.folder_manifest import ScanRecord
from covidseg_runtime.folder_run import open_folder_run
from covidseg_runtime.folder_scans import FolderJob, Part, find_scans
from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import write_label_map

NAMES = ["a.nii", "deep/b.nii.gz", "deep/er/c.nii.gz"]


@pytest.fixture
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter(load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits))


@pytest.fixture
def job(tmp_path: Path) -> FolderJob:
    """Three phantoms in three folders."""
    for name in NAMES:
        _put_scan(tmp_path / "scans" / name)
    return FolderJob(tmp_path / "scans", tmp_path / "out")


def _put_scan(path: Path, shift: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.roll(phantom_hu(), shift, axis=1)
    nibabel.save(nibabel.Nifti1Image(hu, spl_affine(PHANTOM_SPACING_MM)), path)


def _run(job: FolderJob, segmenter: Segmenter) -> list[ScanRecord]:
    """What a run did."""
    records: list[ScanRecord] = []
    with open_folder_run(job, segmenter) as run:
        run.segment(records.append)
    return records


def _names(job: FolderJob) -> list[str]:
    return [scan.name for scan in find_scans(job)]


def _lines(job: FolderJob) -> list[dict]:
    return [json.loads(line) for line in (job.output / "manifest.jsonl").read_text().splitlines()]


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# What is a scan


def test_scans_are_found_in_all_folders_sorted(job: FolderJob) -> None:
    assert _names(job) == NAMES


@pytest.mark.parametrize(
    "name",
    [".hidden.nii.gz", "._a.nii.gz", ".trash/d.nii.gz", "notes.txt", "a.json", "a.mha", "a.nii.gz.part", "A.NIIX"],
)
def test_other_files_are_passed_over(job: FolderJob, name: str) -> None:
    _put_scan(job.source / "x.nii.gz")
    (job.source / name).parent.mkdir(exist_ok=True)
    (job.source / "x.nii.gz").rename(job.source / name)
    assert _names(job) == NAMES


@pytest.mark.parametrize("name", ["X.NII.GZ", "X.NII", "X.Nii.gz"])
def test_a_scan_whose_ending_is_in_capitals_is_segmented(job: FolderJob, segmenter: Segmenter, name: str) -> None:
    _put_scan(job.source / "x.nii.gz" if name.lower().endswith("z") else job.source / "x.nii")
    next(job.source.glob("x.nii*")).rename(job.source / name)
    assert _names(job) == [name, *NAMES]
    assert [record.status for record in _run(job, segmenter)] == ["ok"] * 4
    assert (job.output / "X_covidseg.nii.gz").is_file()


@pytest.mark.parametrize("name", ["a_covidseg.nii.gz", "mine.nii.gz", "mine.nii"])
def test_label_maps_of_this_tool_are_passed_over_whatever_their_name(job: FolderJob, name: str) -> None:
    like = Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))
    write_label_map(job.source / "deep" / name, phantom_labels(), like)
    assert _names(job) == NAMES


def test_a_linked_scan_is_a_scan_and_a_linked_folder_is_not_entered(job: FolderJob, tmp_path: Path) -> None:
    _put_scan(tmp_path / "elsewhere" / "d.nii")
    (job.source / "link.nii").symlink_to(tmp_path / "elsewhere" / "d.nii")
    (job.source / "folder").symlink_to(tmp_path / "elsewhere")
    (job.source / "loop").symlink_to(job.source)
    assert _names(job) == [*NAMES, "link.nii"]


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeError, match="empty holds no scan"):
        find_scans(FolderJob(tmp_path / "empty", tmp_path / "out"))


@pytest.mark.parametrize("output", ["scans", "scans/deep/out", ".", "link/out"])
def test_results_never_lie_where_scans_are_looked_for(job: FolderJob, tmp_path: Path, output: str) -> None:
    (tmp_path / "link").symlink_to(job.source)
    with pytest.raises(SettingsError, match="lie within each other"):
        replace(job, output=tmp_path / output)


def test_parts_are_disjoint_complete_and_told_by_the_hash_of_the_path(job: FolderJob) -> None:
    for number in range(20):
        (job.source / f"{number}.nii").write_bytes(b"")
    parts = [_names(replace(job, part=Part(number, 3))) for number in range(3)]
    assert sorted(sum(parts, [])) == _names(job)
    assert min(len(part) for part in parts) > 0
    for name in parts[1]:
        assert int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 3 == 1


@pytest.mark.parametrize(("number", "total"), [(2, 2), (-1, 2), (0, 0)])
def test_a_part_that_is_none_is_refused(number: int, total: int) -> None:
    with pytest.raises(SettingsError, match=f"part {number} of {total}"):
        Part(number, total)


# What is written


def test_results_mirror_the_folders_and_stand_in_the_manifest(job: FolderJob, segmenter: Segmenter) -> None:
    _run(job, segmenter)
    stems = ["a_covidseg", "deep/b_covidseg", "deep/er/c_covidseg"]
    assert _files(job.output) == sorted(
        [*(f"{stem}.nii.gz" for stem in stems), *(f"{stem}.json" for stem in stems), "manifest.jsonl"]
    )
    for stem in stems:
        labels = nibabel.load(job.output / f"{stem}.nii.gz")
        np.testing.assert_array_equal(np.asarray(labels.dataobj), phantom_labels())
    first, *_ = lines = _lines(job)
    assert [line["scan"] for line in lines] == NAMES
    scan = job.source / "a.nii"
    assert first["status"] == "ok"
    assert first["input"] == {
        "size_bytes": scan.stat().st_size,
        "mtime_ns": scan.stat().st_mtime_ns,
        "sha256": sha256_of(scan),
    }
    for kind, ending in (("labels", ".nii.gz"), ("report", ".json")):
        file = f"a_covidseg{ending}"
        assert first["outputs"][kind] == {"file": file, "sha256": sha256_of(job.output / file)}
    assert first["settings"] == {
        "model": "tiny 1.2.3",
        "model_sha256": sha256_of(segmenter.bundle.folder / "bundle.json"),
        "engine": "fake-pointwise",
        "provider": None,
        "precision": "f32",
        "min_lesion_ml": 0.05,
        "quality": "balanced",
        "window_hu": None,
    }
    assert first["measures"]["infection_volume_ml"] == pytest.approx(6 * 7 * 7 * 4.5 / 1000)
    report = json.loads((job.output / "a_covidseg.json").read_text())
    assert report["settings"] == {"min_lesion_ml": 0.05, "quality": "balanced", "window_hu": None}
    assert report["scan"]["file"] == "a.nii"


def test_the_last_scan_is_written_while_the_network_works(
    job: FolderJob, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other to have begun: one after the other, they would wait in vain."""
    writes, works_on_the_next = threading.Event(), threading.Event()
    original, begun = scan_results.write_label_map, []

    class Waiting(Segmenter):
        def segment(self, *arguments, **options):
            begun.append(arguments)
            if len(begun) == 2:
                assert writes.wait(20)
                works_on_the_next.set()
            return super().segment(*arguments, **options)

    def write(*arguments: object) -> None:
        writes.set()
        assert works_on_the_next.wait(20)
        original(*arguments)

    monkeypatch.setattr(scan_results, "write_label_map", write)
    records = _run(job, Waiting(load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits)))
    assert [record.status for record in records] == ["ok"] * 3


# What fails


def test_a_bad_scan_is_recorded_and_stops_no_other(job: FolderJob, segmenter: Segmenter) -> None:
    (job.source / "a.nii").write_bytes(b"no scan")
    first, *others = _run(job, segmenter)
    assert (first.scan, first.status, first.exit_code) == ("a.nii", "failed", 3)
    assert "not a single-file NIfTI" in (first.error or "")
    assert first.input["size_bytes"] == len(b"no scan")
    assert [record.status for record in others] == ["ok", "ok"]
    assert not list(job.output.glob("a_*"))


def test_two_scans_whose_results_would_have_one_name_are_told_apart(job: FolderJob, segmenter: Segmenter) -> None:
    _put_scan(job.source / "a.nii.gz", shift=2)
    records = {record.scan: record for record in _run(job, segmenter)}
    assert records["a.nii"].status == "ok"
    assert records["a.nii.gz"].exit_code == 2
    assert "the names of those of a.nii; rename one" in (records["a.nii.gz"].error or "")
    np.testing.assert_array_equal(np.asarray(nibabel.load(job.output / "a_covidseg.nii.gz").dataobj), phantom_labels())


def test_a_scan_that_vanishes_is_one_failure(job: FolderJob, segmenter: Segmenter) -> None:
    with open_folder_run(job, segmenter) as run:
        (job.source / "deep" / "b.nii.gz").unlink()
        records: list[ScanRecord] = []
        run.segment(records.append)
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert records[1].input == {}
    assert "is not a file" in (records[1].error or "")


def test_a_folder_that_vanishes_ends_the_run(job: FolderJob, segmenter: Segmenter) -> None:
    with open_folder_run(job, segmenter) as run:
        job.source.rename(job.source.with_name("unplugged"))
        with pytest.raises(VolumeError, match="scans cannot be read any more"):
            run.segment(lambda record: None)
    assert not _lines(job)


def test_a_scan_that_changes_meanwhile_is_no_result(
    job: FolderJob, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a scan is still being copied."""
    original = Segmenter.segment

    def segment_slowly(self, *arguments, **options):
        os.utime(job.source / "a.nii", ns=(1, 1))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Segmenter, "segment", segment_slowly)
    first, *_ = _run(job, segmenter)
    assert "was changed while it was segmented" in (first.error or "")
    assert not list(job.output.glob("a_*"))


def test_a_name_that_cannot_be_written_is_one_failure(job: FolderJob, segmenter: Segmenter) -> None:
    """A file lies where the folder of results of `deep` should be."""
    job.output.mkdir()
    (job.output / "deep").write_bytes(b"")
    records = _run(job, segmenter)
    assert [record.status for record in records] == ["ok", "failed", "failed"]
    assert "deep cannot be made" in (records[1].error or "")
    assert records[1].exit_code == 1


def test_a_place_that_takes_nothing_any_more_ends_the_run(
    job: FolderJob, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise OutputError(f"{path} cannot be written") from OSError(28, "No space left on device")

    monkeypatch.setattr(scan_results, "write_label_map", refuse)
    with open_folder_run(job, segmenter) as run, pytest.raises(OutputError, match=r"a_covidseg\.nii\.gz"):
        run.segment(lambda record: None)
    assert _files(job.output) == ["manifest.jsonl"]


def test_a_folder_that_cannot_be_made_is_an_output_error(job: FolderJob, segmenter: Segmenter) -> None:
    with (
        pytest.raises(OutputError, match="cannot be written"),
        open_folder_run(replace(job, output=Path("/proc/none/out")), segmenter),
    ):
        pass


# What is done again


def test_what_is_done_is_not_done_again(job: FolderJob, segmenter: Segmenter) -> None:
    assert len(_run(job, segmenter)) == 3
    assert _run(job, segmenter) == []
    assert len(_run(replace(job, overwrite=True), segmenter)) == 3


def test_what_failed_is_tried_again(job: FolderJob, segmenter: Segmenter) -> None:
    whole = (job.source / "a.nii").read_bytes()
    (job.source / "a.nii").write_bytes(whole[:1000])
    _run(job, segmenter)
    (job.source / "a.nii").write_bytes(whole)
    (again,) = _run(job, segmenter)
    assert (again.scan, again.status) == ("a.nii", "ok")


def test_a_scan_that_changed_is_done_again_and_a_copy_of_it_is_not(job: FolderJob, segmenter: Segmenter) -> None:
    _run(job, segmenter)
    os.utime(job.source / "a.nii", ns=(1, 1))  # as a copy on another machine
    assert _run(job, segmenter) == []
    _put_scan(job.source / "a.nii", shift=3)  # of the same size
    (again,) = _run(job, segmenter)
    assert again.scan == "a.nii"


@pytest.mark.parametrize("settings", [SegmentSettings(quality="fast"), SegmentSettings(min_lesion_ml=1)])
def test_other_settings_are_done_again(job: FolderJob, segmenter: Segmenter, settings: SegmentSettings) -> None:
    _run(job, segmenter)
    other = Segmenter(segmenter.bundle, segmenter.engine, settings)
    assert len(_run(job, other)) == 3
    assert len(_run(job, segmenter)) == 3, "the results of before were replaced"
    assert _run(job, segmenter) == []


def test_another_model_is_done_again(job: FolderJob, segmenter: Segmenter) -> None:
    _run(job, segmenter)
    description = segmenter.bundle.folder / "bundle.json"
    description.write_text(description.read_text().replace("1.2.3", "1.2.4"))
    assert len(_run(job, Segmenter(load_bundle(segmenter.bundle.folder), segmenter.engine))) == 3


@pytest.mark.parametrize("ending", [".nii.gz", ".json"])
def test_a_lost_result_is_done_again(job: FolderJob, segmenter: Segmenter, ending: str) -> None:
    _run(job, segmenter)
    (job.output / f"a_covidseg{ending}").unlink()
    (again,) = _run(job, segmenter)
    assert again.scan == "a.nii"


def test_a_label_map_that_a_person_corrected_is_kept(job: FolderJob, segmenter: Segmenter) -> None:
    _run(job, segmenter)
    corrected = job.output / "a_covidseg.nii.gz"
    corrected.write_bytes(b"by hand")
    assert _run(job, segmenter) == []
    assert corrected.read_bytes() == b"by hand"


def test_what_one_number_of_parts_did_is_done_for_another(job: FolderJob, segmenter: Segmenter) -> None:
    done = [len(_run(replace(job, part=Part(number, 2)), segmenter)) for number in range(2)]
    assert sum(done) == 3
    assert _run(job, segmenter) == []


def test_a_cancelled_run_is_gone_on_with(job: FolderJob, segmenter: Segmenter) -> None:
    cancel = threading.Event()
    records: list[ScanRecord] = []

    def cancel_after_the_first(record: ScanRecord) -> None:
        records.append(record)
        cancel.set()

    with open_folder_run(job, segmenter) as run, pytest.raises(SegmentationCancelled):
        run.segment(cancel_after_the_first, cancel)
    assert len(_run(job, segmenter)) == 3 - len(records)
    assert sorted(line["scan"] for line in _lines(job)) == NAMES


# What a killed process leaves


def test_a_torn_line_is_cut_off_and_its_scan_done_again(job: FolderJob, segmenter: Segmenter) -> None:
    _run(job, segmenter)
    manifest = job.output / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    (again,) = _run(job, segmenter)
    assert again.scan == NAMES[-1]
    assert [line["scan"] for line in _lines(job)] == NAMES


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[1]", b'{"scan": 3, "status": "ok"}', b"\xff\xfe", b"[" * 100_000, b'{"scan": "a.nii"}']
)
def test_a_line_that_is_no_record_is_passed_over(job: FolderJob, segmenter: Segmenter, line: bytes) -> None:
    _run(job, segmenter)
    manifest = job.output / "manifest.jsonl"
    manifest.write_bytes(line + b"\n" + manifest.read_bytes())
    assert _run(job, segmenter) == []


def test_unfinished_files_are_removed_and_those_of_others_are_not(job: FolderJob, segmenter: Segmenter) -> None:
    _run(job, segmenter)
    (job.output / "deep" / ".b_covidseg.nii.gz.abc_1234").write_bytes(b"half")
    (job.output / ".a_covidseg.json.zzzzzzzz").write_bytes(b"half")
    (job.output / ".z_covidseg.json.zzzzzzzz").write_bytes(b"of another part")
    _run(job, segmenter)
    assert [path for path in _files(job.output) if Path(path).name.startswith(".")] == [".z_covidseg.json.zzzzzzzz"]


def test_a_part_that_another_process_does_is_refused(job: FolderJob, segmenter: Segmenter) -> None:
    with (
        open_folder_run(job, segmenter),
        pytest.raises(SettingsError, match="another covidseg is working on"),
        open_folder_run(job, segmenter),
    ):
        pass


def test_a_name_that_is_not_utf_8_comes_back_from_the_manifest(job: FolderJob, segmenter: Segmenter) -> None:
    name = os.fsdecode(b"M\xfcller.nii")
    (job.source / "a.nii").rename(job.source / name)
    assert {record.scan for record in _run(job, segmenter) if record.status == "ok"} == {name, *NAMES[1:]}
    assert _run(job, segmenter) == []
