"""The queue of series: what was refused, limits, and a process that is killed at any change on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from covidseg_runtime.pacs import series_queue
from covidseg_runtime.pacs.series_queue import QueueFullError, SeriesQueue
from covidseg_runtime.pacs.settings import Limits

ROOMY = Limits(free_bytes=0)


def store(queue: SeriesQueue, *names: str, content: bytes = b"x") -> None:
    for name in names:
        queue.store("1.2", "1.2.3", name, content)


def queued_names(queue: SeriesQueue) -> list[int]:
    """Number of instances of each queued series."""
    return [len(list(job.folder.glob("*.dcm"))) for job in queue.queued()]


def test_a_series_of_which_something_was_refused_is_not_whole_until_it_comes(tmp_path: Path, monkeypatch) -> None:
    queue = SeriesQueue(tmp_path, ROOMY)
    store(queue, "1", "2")
    with monkeypatch.context() as patched:
        patched.setattr(series_queue.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(QueueFullError):
            store(queue, "3")
    queue.settle(0)
    (job,) = queue.queued()
    assert job.refused == 1
    queue.failed(job, "refused")
    store(queue, "4")  # of another one it does not become whole
    queue.settle(0)
    (job,) = queue.queued()
    assert job.refused == 1
    store(SeriesQueue(tmp_path, ROOMY), "3")  # of the one that was refused it does, in another process as well
    queue.settle(0)
    (job,) = queue.queued()
    assert (job.refused, queued_names(queue)) == (0, [4])


def test_what_the_node_makes_is_its_user_s_alone(tmp_path: Path) -> None:
    SeriesQueue(tmp_path / "made" / "queue", ROOMY)
    SeriesQueue(tmp_path, ROOMY)  # of a folder that somebody else made, what lies in it
    made = [
        tmp_path / "made" / "queue",
        *(tmp_path / "made" / "queue").iterdir(),
        tmp_path / "queued",
        tmp_path / "results",
    ]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}


@pytest.mark.parametrize("state", ["queued", "answered", "failed"])
def test_a_late_instance_that_is_refused_is_not_forgotten(tmp_path: Path, state: str) -> None:
    queue = SeriesQueue(tmp_path, Limits(instances=2, free_bytes=0))
    store(queue, "1", "2")
    queue.settle(0)
    (job,) = queue.queued()
    if state != "queued":
        queue.answered(job) if state == "answered" else queue.failed(job, "a reason")
    with pytest.raises(QueueFullError):
        store(queue, "3")
    assert queue.settle(60) == []  # a refusal is no quiet
    assert queue.settle(0) == [job.key]
    (again,) = queue.queued()
    assert (again.refused, queued_names(queue)) == (1, [2])
    assert queue.counts() == {"receiving": 0, "queued": 1, "answered": 0, "failed": 0}
    with pytest.raises(QueueFullError):
        store(queue, "4")
    assert queue.settle(0) == [job.key]
    assert next(queue.queued()).refused == 2


def test_of_a_series_that_was_all_refused_nothing_stays(tmp_path: Path) -> None:
    queue = SeriesQueue(tmp_path, Limits(free_bytes=1 << 60))
    with pytest.raises(QueueFullError):
        store(queue, "1")
    assert queue.settle(0) == []
    assert queue.counts() == {"receiving": 0, "queued": 0, "answered": 0, "failed": 0}


def test_limits_count_an_instance_once_and_in_every_state(tmp_path: Path) -> None:
    queue = SeriesQueue(tmp_path, Limits(instances=2, series_bytes=100, free_bytes=0))
    store(queue, "1", "2", "1", "2")
    queue.settle(0)
    with pytest.raises(QueueFullError, match="more than this node takes"):
        store(queue, "3")
    store(queue, "2")
    with pytest.raises(QueueFullError):
        store(queue, "2", content=bytes(100))


class _Killed(BaseException):
    pass


@contextmanager
def killed_at(step: int, monkeypatch) -> Iterator[list[int]]:
    """End at the given change on disk, before it is made; how many there were."""
    count = [0]

    def wrapped(change):
        def counted(*arguments, **named):
            if count[0] == step:
                raise _Killed
            count[0] += 1
            return change(*arguments, **named)

        return counted

    with monkeypatch.context() as patched:
        for place, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree"), (series_queue, "write_json")):
            patched.setattr(place, name, wrapped(getattr(place, name)))
        yield count


@pytest.mark.parametrize("state", ["receiving", "queued", "answered", "failed"])
def test_killed_at_any_step_of_queueing_nothing_is_lost(tmp_path: Path, monkeypatch, state: str) -> None:
    """Of a series that waits, none of what it had is away at any time: it may be answered at once."""
    for step in range(50):
        queue = SeriesQueue(tmp_path / str(step), ROOMY)
        store(queue, "1", "2", "3")
        if state != "receiving":
            queue.settle(0)
        if state in ("answered", "failed"):
            (job,) = queue.queued()
            queue.answered(job) if state == "answered" else queue.failed(job, "a reason")
        store(queue, "3", "4", "5")
        with killed_at(step, monkeypatch) as count:
            try:
                queue.settle(0)
                was_killed = False
            except _Killed:
                was_killed = True
        after = SeriesQueue(tmp_path / str(step), ROOMY)
        assert all(number >= 3 for number in queued_names(after)), step
        after.settle(0)
        assert queued_names(after) == [5], step
        assert after.counts() == {"receiving": 0, "queued": 1, "answered": 0, "failed": 0}
        if not was_killed:
            assert step == count[0]
            return
    pytest.fail("it never came to its end")


def test_quiet_counts_from_when_somebody_listens(tmp_path: Path) -> None:
    """A sender that a killed node cut off gets its time to go on."""
    queue = SeriesQueue(tmp_path, ROOMY)
    store(queue, "1")
    folder = next((tmp_path / "receiving").iterdir())
    series_queue.os.utime(folder, (1, 1))
    after = SeriesQueue(tmp_path, ROOMY)
    with after.held():
        assert after.settle(60) == []
    assert len(after.settle(0)) == 1
