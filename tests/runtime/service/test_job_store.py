"""Jobs outlive the process, are bounded in number and bytes, and end once."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from service_peers import ROOMY, asking, wait_for

from covidseg_runtime.errors import OutputError, SettingsError
from covidseg_runtime.service import job_folders
from covidseg_runtime.service.job_folders import JobFolders
from covidseg_runtime.service.job_store import (
    GoneJobError,
    JobStore,
    KeyInUseError,
    QueueFullError,
    StorageFullError,
    UnknownJobError,
)
from covidseg_runtime.service.jobs import Failure, Job, JobOptions, Outcome, job_from_json, job_to_json, now
from covidseg_runtime.service.settings import ServiceLimits


@contextmanager
def opened(folder: Path, limits: ServiceLimits = ROOMY, keep_s: float = 3600) -> Iterator[JobStore]:
    store = JobStore(JobFolders(folder), limits, keep_s)
    with store.held():
        yield store


def accepted(store: JobStore, content: bytes = b"scan", key: str | None = None) -> Job:
    admission = store.admit(len(content), key)
    (admission.folder / "scan.nii").write_bytes(content)
    return store.accept(admission, Job(admission.job_id, "scan.nii", JobOptions(), "f", now(), key))


def begun(store: JobStore) -> Job:
    job = store.begin(threading.Event(), 0)
    assert job is not None
    return job


def done(store: JobStore, folder: Path, job: Job) -> Job:
    results = store._folders.working(job.id)
    (results / "report.json").write_text("{}")
    return store.end(job.id, Outcome("done"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "service"


def test_a_job_is_on_disk_what_it_is_in_memory() -> None:
    outcome = Outcome("failed", Failure("It is no scan.", 3), {"page": "why"})
    options = JobOptions("fast", 0.5, (-1250.0, 250.0), page=False)
    job = Job("0" * 32, "scan.nii", options, "f", now(), "k", tiles=(1, 2), results=("labels",), size=5)
    for one in (job, replace(job, started=now()).ended(outcome)):
        assert job_from_json(json.loads(json.dumps(job_to_json(one)))) == one


def test_after_a_kill_every_job_is_there_in_its_order(folder: Path) -> None:
    with opened(folder) as store:
        first, second, third = (accepted(store) for _ in range(3))
        ended = done(store, folder, begun(store))
        running = begun(store)
        assert (ended.id, running.id) == (first.id, second.id)
        store.admit(1)
        (folder / "incoming" / "x").mkdir()
        store._folders.working(running.id)
    # The block ended without a word to the store, as a process that is killed does.
    with opened(folder) as store:
        assert store.get(first.id) == ended
        assert [job.state for job in store.newest_first()] == ["queued", "queued", "done"]
        assert store.queue_length() == 2
        assert [begun(store).id for _ in range(2)] == [second.id, third.id]
        assert store.get(second.id).attempts == 2
        assert [path for name in ("incoming", "working") for path in (folder / name).iterdir()] == []


def test_killed_between_its_end_and_the_removal_of_its_scan_a_job_has_ended(folder: Path, monkeypatch) -> None:
    with opened(folder) as store:
        job = accepted(store)
        begun(store)
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
        ended = done(store, folder, job)
        monkeypatch.undo()
        assert (folder / "queued" / job.id).exists()
    with opened(folder) as store:
        assert [one.state for one in store.newest_first()] == ["done"]
        assert store.get(job.id) == ended
        assert not (folder / "queued" / job.id).exists()


def test_killed_between_its_mark_and_its_removal_a_job_is_gone(folder: Path) -> None:
    with opened(folder) as store:
        job = accepted(store)
        begun(store)
        done(store, folder, job)
        (folder / "gone" / job.id).touch()
    with opened(folder) as store:
        assert store.newest_first() == []
        with pytest.raises(GoneJobError):
            store.get(job.id)
        assert not (folder / "finished" / job.id).exists()


def test_what_was_removed_stays_known_as_gone(folder: Path) -> None:
    with opened(folder, keep_s=1e-6) as store:
        job = accepted(store)
        begun(store)
        done(store, folder, job)
        assert store.remove_expired() == 1
        with pytest.raises(GoneJobError):
            store.get(job.id)
    with opened(folder) as store, pytest.raises(GoneJobError):
        store.get(job.id)
    with opened(folder) as store, pytest.raises(UnknownJobError):
        store.get("0" * 32)


def test_results_that_were_removed_by_hand_do_not_stop_the_work(settings, segmenter, scan, monkeypatch) -> None:
    monkeypatch.setattr("covidseg_runtime.service.worker._WAIT_FOR_DISK_S", 0.05)
    with asking(replace(settings, keep_s=0.5), segmenter) as client:
        removed = client.ended(client.submit(scan, page="false").json()["id"])["id"]
        shutil.rmtree(settings.folder / "finished" / removed)
        wait_for(lambda: client.get(f"/v1/jobs/{removed}").status_code == 410)
        wait_for(lambda: client.service.store.used_bytes() == 0)
        assert client.lines == [f"{removed}: done"]


def test_an_upload_that_was_removed_by_hand_fails_its_job_and_the_next_goes_on(settings, gated, engine, scan) -> None:
    with asking(settings, gated) as client:
        first, removed, last = (client.submit(scan, page="false").json()["id"] for _ in range(3))
        wait_for(lambda: client.get(f"/v1/jobs/{first}").json()["state"] == "running")
        shutil.rmtree(settings.folder / "queued" / removed)
        engine.gate.set()
        assert client.ended(removed)["error"]["sentence"] == (
            "The upload is gone from the service's folder; send the scan again."
        )
        assert [client.ended(one)["state"] for one in (first, last)] == ["done", "done"]


def test_only_so_many_jobs_are_remembered_as_gone(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("covidseg_runtime.service.job_store.MOST_GONE", 2)
    monkeypatch.setattr(job_folders, "MOST_GONE", 2)
    with opened(folder, keep_s=1e-6) as store:
        for _ in range(4):
            done(store, folder, begun(store) if accepted(store) else None)
            store.remove_expired()
        assert len(list((folder / "gone").iterdir())) == 2


def test_places_are_bounded_and_given_back(folder: Path) -> None:
    with opened(folder, replace(ROOMY, queue=2)) as store:
        admission = store.admit(1)
        accepted(store)
        with pytest.raises(QueueFullError, match="2 jobs wait"):
            store.admit(1)
        store.abandon(admission)
        assert store.queue_length() == 1
        begun(store)
        assert store.queue_length() == 0


def test_bytes_are_bounded_and_given_back(folder: Path) -> None:
    with opened(folder, replace(ROOMY, disk_bytes=2000, upload_bytes=2000)) as store:
        admission = store.admit(1500)
        with pytest.raises(StorageFullError):
            store.admit(501)
        store.abandon(admission)
        job = accepted(store, bytes(1800))
        assert store.used_bytes() == 1800
        begun(store)
        ended = done(store, folder, job)
        assert store.used_bytes() == ended.size == len("{}")
        store.cancel_or_remove(job.id)
        assert store.used_bytes() == 0
    with opened(folder, replace(ROOMY, free_bytes=1 << 60)) as store, pytest.raises(StorageFullError):
        store.admit(1)


def test_uploads_on_their_way_leave_the_disk_as_free_as_one_does(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(JobFolders, "free_bytes", lambda _: 350)
    with opened(folder, replace(ROOMY, free_bytes=100, upload_bytes=100)) as store:
        first, _ = store.admit(100), store.admit(100)
        assert not store.has_room()
        with pytest.raises(StorageFullError):
            store.admit(100)
        store.abandon(first)
        store.admit(100)


def test_the_number_of_kept_jobs_is_bounded(folder: Path) -> None:
    with opened(folder, replace(ROOMY, jobs=1)) as store:
        job = accepted(store)
        begun(store)
        done(store, folder, job)
        with pytest.raises(StorageFullError, match="1 jobs are kept"):
            store.admit(1)
        store.cancel_or_remove(job.id)
        store.admit(1)


def test_one_key_has_one_upload_at_a_time(folder: Path) -> None:
    with opened(folder) as store:
        admission = store.admit(1, "key")
        with pytest.raises(KeyInUseError):
            store.admit(1, "key")
        store.admit(1, "other")
        store.abandon(admission)
        job = accepted(store, key="key")
        assert store.of_key("key") == job
    with opened(folder) as store:
        assert store.of_key("key") == job


def test_a_job_that_was_cancelled_has_no_results_though_they_were_made(folder: Path) -> None:
    with opened(folder) as store:
        job, cancel = accepted(store), threading.Event()
        store.begin(cancel, 0)
        assert store.cancel_or_remove(job.id) is not None
        assert cancel.is_set()
        ended = done(store, folder, job)
        assert (ended.state, ended.results) == ("cancelled", ())
        assert [path.name for path in (folder / "finished" / job.id).iterdir()] == ["job.json"]


def test_a_job_that_is_cancelled_while_the_service_stops_ends(folder: Path) -> None:
    with opened(folder) as store:
        job = accepted(store)
        begun(store)
        store.cancel_or_remove(job.id)
        store.put_back(job.id, attempts=0)
        assert store.get(job.id).state == "cancelled"
        assert store.begin(threading.Event(), 0) is None


def test_a_job_whose_cancelling_cannot_be_written_waits_and_ends_cancelled(folder: Path, monkeypatch) -> None:
    def full(path, value) -> None:
        raise OutputError("full")

    with opened(folder) as store:
        job = accepted(store)
        begun(store)
        store.cancel_or_remove(job.id)
        monkeypatch.setattr(job_folders, "write_json", full)
        for act in (lambda: store.end(job.id, Outcome("cancelled")), lambda: store.put_back(job.id, attempts=1)):
            with pytest.raises(OutputError):
                act()
        monkeypatch.undo()
        assert (store.get(job.id).state, store.queue_length()) == ("queued", 1)
        cancel = threading.Event()
        assert store.begin(cancel, 0) is not None
        assert cancel.is_set()
        assert store.end(job.id, Outcome("cancelled")).state == "cancelled"


def test_a_full_disk_changes_nothing(folder: Path, monkeypatch) -> None:
    def full(path, value) -> None:
        raise OutputError("full")

    with opened(folder) as store:
        job = accepted(store)
        monkeypatch.setattr(job_folders, "write_json", full)
        with pytest.raises(OutputError):
            begun(store)
        assert (store.get(job.id).state, store.queue_length()) == ("queued", 1)
        with pytest.raises(OutputError):
            store.cancel_or_remove(job.id)
        assert store.get(job.id).state == "queued"
        monkeypatch.undo()
        assert begun(store).attempts == 1


def test_a_folder_that_was_taken_away_is_503_and_not_ready(settings, segmenter, scan, monkeypatch) -> None:
    monkeypatch.setattr("covidseg_runtime.service.worker._WAIT_FOR_DISK_S", 0.05)
    with asking(settings, segmenter) as client:
        settings.folder.rename(settings.folder.with_name("elsewhere"))
        answer = client.submit(scan)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert str(settings.folder) not in answer.text
        assert client.get("/health/ready").status_code == 503
        settings.folder.with_name("elsewhere").rename(settings.folder)
        assert client.ended(client.submit(scan).json()["id"])["state"] == "done"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    with pytest.raises(SettingsError, match="holds something else"):
        JobFolders(tmp_path)
    assert (tmp_path / "incoming").is_dir()


def test_two_services_do_not_share_a_folder(folder: Path) -> None:
    with opened(folder), pytest.raises(SettingsError, match="Another service works"), opened(folder):
        pass


def test_a_damaged_job_is_named(folder: Path) -> None:
    with opened(folder) as store:
        job = accepted(store)
    (folder / "queued" / job.id / "job.json").write_text("[]")
    with pytest.raises(OutputError, match="is damaged; remove its folder"), opened(folder):
        pass


def test_the_folder_is_its_owners_alone(folder: Path) -> None:
    JobFolders(folder)
    assert folder.stat().st_mode & 0o077 == 0


def test_what_lies_in_a_folder_that_others_can_read_is_its_owners_alone(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    JobFolders(folder)
    assert [path.name for path in folder.iterdir() if path.is_dir() and path.stat().st_mode & 0o077] == []


def test_a_folder_whose_first_start_met_a_full_disk_is_taken_at_the_next(folder: Path, monkeypatch) -> None:
    def full(path, value) -> None:
        raise OutputError("full")

    with monkeypatch.context() as patch:
        patch.setattr(job_folders, "write_json", full)
        with pytest.raises(OutputError):
            JobFolders(folder)
    with opened(folder) as store:
        assert accepted(store).state == "queued"


def test_a_job_that_ended_the_process_thrice_fails(settings, segmenter, scan, folder: Path) -> None:
    """As of a scan that a system without memory kills the service for."""
    with opened(settings.folder) as store:
        admission = store.admit(len(scan))
        (admission.folder / "scan.nii.gz").write_bytes(scan)
        job = store.accept(admission, Job(admission.job_id, "scan.nii.gz", JobOptions(), "f", now()))
    for _ in range(3):
        with opened(settings.folder) as store:
            begun(store)
    with asking(settings, segmenter) as client:
        ended = client.ended(job.id)
    assert (ended["state"], ended["error"]["exit_code"]) == ("failed", 1)
    assert "begun 3 times" in ended["error"]["sentence"]


def test_a_fault_of_our_own_fails_one_job_and_tells_no_name(settings, segmenter, scan, monkeypatch) -> None:
    def fault(*_):
        raise ValueError("no value for PatientName DOE^JOHN")

    with asking(settings, segmenter) as client:
        with monkeypatch.context() as patch:
            patch.setattr("covidseg_runtime.service.worker.run_scan_job", fault)
            failed = client.ended(client.submit(scan).json()["id"])
        assert (failed["state"], "unexpected ValueError" in failed["error"]["sentence"]) == ("failed", True)
        assert "DOE" not in str(failed) + "".join(client.lines)
        assert client.ended(client.submit(scan).json()["id"])["state"] == "done"


def test_a_disk_that_was_full_is_tried_again(settings, segmenter, scan, monkeypatch) -> None:
    monkeypatch.setattr("covidseg_runtime.service.worker._WAIT_FOR_DISK_S", 0.05)
    tried = []
    from covidseg_runtime.service import worker

    original = worker.run_scan_job

    def full_at_first(*arguments):
        tried.append(arguments)
        if len(tried) == 1:
            raise OutputError("No space left on device.")
        return original(*arguments)

    monkeypatch.setattr(worker, "run_scan_job", full_at_first)
    with asking(settings, segmenter) as client:
        assert client.ended(client.submit(scan, page="false").json()["id"])["state"] == "done"
    assert len(tried) == 2
