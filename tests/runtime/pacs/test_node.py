"""A node on this machine: real senders, a real archive, the tiny network on the phantom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from pacs_peers import Archive, echo, files_of, free_port, numbered_series, running, send, wait_for

from covidseg_runtime import Segmenter
from covidseg_runtime.pacs.node import PacsNode
from covidseg_runtime.pacs.segment_answer import SegmentAnswer
from covidseg_runtime.pacs.sender import StoreDestination
from covidseg_runtime.pacs.settings import Limits, PacsSettings, parse_networks

LIMITS = Limits(free_bytes=0)

# pynetdicom leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def settings(tmp_path: Path) -> PacsSettings:
    return PacsSettings(queue=tmp_path / "queue", port=0, settle_s=0.3, limits=LIMITS)


@pytest.fixture
def segment_answer(tiny_bundle: Path) -> Iterator[SegmentAnswer]:
    with Segmenter.open(str(tiny_bundle), device="cpu", threads=1) as segmenter:
        yield SegmentAnswer(segmenter)


@pytest.fixture
def archive() -> Iterator[tuple[Archive, StoreDestination]]:
    kept = Archive()
    with kept.listening() as port:
        yield kept, StoreDestination("127.0.0.1", port, "ARCHIVE")


def test_a_series_comes_back_as_segmentation_report_and_picture(settings, segment_answer, archive) -> None:
    kept, destination = archive
    images = numbered_series(1)
    with running(settings, segment_answer, destination) as node:
        assert echo(node.port)
        assert set(send(images, node.port)) == {0}
        node.wait_for(answered=1, queued=0, receiving=0)
    assert sorted(one.Modality for one in kept.objects.values()) == ["OT", "SEG", "SR"]
    assert {one.StudyInstanceUID for one in kept.objects.values()} == {"1.2.9.1"}
    assert set(kept.received.values()) == {1}
    said = "\n".join(node.lines)
    assert "answered with 3 objects" in said
    for secret in (str(images[0].PatientName), images[0].PatientID, "1.2.9.1"):
        assert secret not in said
    assert not any("1.2.9" in name for name in files_of(settings.queue))


def test_twenty_series_of_four_senders_at_once_are_each_answered_once(settings, segment_answer, archive) -> None:
    kept, destination = archive
    with running(settings, segment_answer, destination) as node:
        statuses: list[int] = []

        def sender(first: int) -> None:
            for number in range(first, 20, 4):
                statuses.extend(send(numbered_series(number), node.port))

        senders = [threading.Thread(target=sender, args=(first,)) for first in range(4)]
        for one in senders:
            one.start()
        for one in senders:
            one.join()
        assert set(statuses) == {0}
        wait_for(lambda: node.node.queue.counts()["answered"] == 20, 120)
    studies = [one.StudyInstanceUID for one in kept.objects.values()]
    assert sorted(studies) == sorted(f"1.2.9.{number}" for number in range(20) for _ in range(3))
    assert set(kept.received.values()) == {1}


def test_a_late_slice_makes_a_new_answer_of_the_whole_series(settings, segment_answer, archive) -> None:
    kept, destination = archive
    images = numbered_series(1)
    with running(settings, segment_answer, destination) as node:
        send(images[:-1], node.port)
        node.wait_for(answered=1)
        first = set(kept.objects)
        send(images[-1:], node.port)
        wait_for(lambda: len(kept.objects) == 2 * len(first))
        node.wait_for(answered=1, queued=0, receiving=0)
    second = [one for uid, one in kept.objects.items() if uid not in first and one.Modality == "SR"]
    assert len(second) == 1


def test_what_cannot_be_answered_is_put_aside_and_the_node_goes_on(settings, segment_answer, archive) -> None:
    kept, destination = archive
    broken, sound = numbered_series(1), numbered_series(2)
    with running(settings, segment_answer, destination) as node:
        send([one for k, one in enumerate(broken) if k != 5], node.port)
        send(sound, node.port)
        node.wait_for(answered=1, failed=1)
        (reason,) = node.node.queue.reasons().values()
    assert "slices are missing" in reason
    assert {one.StudyInstanceUID for one in kept.objects.values()} == {"1.2.9.2"}


def test_an_archive_that_is_away_is_asked_again(settings, segment_answer, monkeypatch) -> None:
    monkeypatch.setattr("covidseg_runtime.pacs.node._FIRST_WAIT_S", 0.5)
    kept, port = Archive(), free_port()
    with running(settings, segment_answer, StoreDestination("127.0.0.1", port, "ARCHIVE")) as node:
        send(numbered_series(1), node.port)
        wait_for(lambda: any("does not take a connection" in line for line in node.lines))
        node.wait_for(queued=1)
        with kept.listening(port):
            node.wait_for(answered=1)
    assert len(kept.objects) == 3


def test_strangers_are_not_let_in(settings, segment_answer, archive) -> None:
    _, destination = archive
    with running(replace(settings, allowed_titles=("SCANNER",)), segment_answer, destination) as node:
        assert echo(node.port)
        assert not echo(node.port, calling="STRANGER")
        assert not echo(node.port, title="ANOTHER")
        assert send(numbered_series(1), node.port, calling="STRANGER") == []
    elsewhere = replace(settings, allowed_addresses=parse_networks(["10.0.0.0/8"]))
    with running(elsewhere, segment_answer, destination) as node:
        assert not echo(node.port)


def test_own_results_are_no_work(settings, segment_answer, archive) -> None:
    kept, destination = archive
    own = numbered_series(2)
    for one in own:
        one.Manufacturer = "covidseg"
    with running(settings, segment_answer, destination) as node:
        send(numbered_series(1), node.port)
        node.wait_for(answered=1)
        assert set(send(own, node.port)) == {0xA900}
        back = StoreDestination("127.0.0.1", node.port, "COVIDSEG")
        for number, result in enumerate(kept.objects.values()):
            path = settings.queue.parent / f"{number}.dcm"
            result.save_as(path, enforce_file_format=True)
            with pytest.raises(Exception, match="not take"):
                back.send([path])
        assert node.node.queue.counts() == {"receiving": 0, "queued": 0, "answered": 1, "failed": 0}


@pytest.mark.parametrize("limits", [Limits(instances=3, free_bytes=0), Limits(free_bytes=1 << 60)])
def test_what_is_too_much_is_refused_as_out_of_resources(settings, segment_answer, archive, limits) -> None:
    with running(replace(settings, limits=limits), segment_answer, archive[1]) as node:
        assert 0xA700 in send(numbered_series(1), node.port)


_NODE = """
import sys, threading
from pathlib import Path
from covidseg_runtime import Segmenter
from covidseg_runtime.pacs.node import PacsNode
from covidseg_runtime.pacs.segment_answer import SegmentAnswer
from covidseg_runtime.pacs.sender import StoreDestination
from covidseg_runtime.pacs.settings import Limits, PacsSettings
queue, port, archive, model = sys.argv[1:]
settings = PacsSettings(queue=Path(queue), port=int(port), settle_s=0.3, limits=Limits(free_bytes=0))
with Segmenter.open(model, device="cpu", threads=1) as segmenter:
    destination = StoreDestination("127.0.0.1", int(archive), "ARCHIVE")
    node = PacsNode(settings, SegmentAnswer(segmenter), destination, print)
    node.run(threading.Event(), lambda port: print("up", flush=True))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_in_the_middle_every_series_is_answered(tmp_path, tiny_bundle, archive) -> None:
    kept, destination = archive
    port = free_port()
    command = [sys.executable, "-c", _NODE, str(tmp_path / "queue"), str(port), str(destination.port), str(tiny_bundle)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def start() -> subprocess.Popen[str]:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603
        while child.stdout is not None and child.stdout.readline() != "up\n":
            assert child.poll() is None
        return child

    for round_ in range(3):
        child = start()
        for number in range(3 * round_, 3 * round_ + 3):
            assert set(send(numbered_series(number), port)) == {0}
        seen = len(kept.objects)
        wait_for(lambda seen=seen: len(kept.objects) > seen)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    child = start()
    wait_for(lambda: len(kept.objects) == 27, 60)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    reports = [one.StudyInstanceUID for one in kept.objects.values() if one.Modality == "SR"]
    assert sorted(reports) == sorted(f"1.2.9.{number}" for number in range(9))


def test_stopping_ends_the_segmentation_and_keeps_the_series(settings, tiny_bundle, archive) -> None:
    """The event that ends the node ends the network as well, tile by tile."""
    stop, began = threading.Event(), threading.Event()

    with Segmenter.open(str(tiny_bundle), device="cpu", threads=1) as segmenter:
        inner = SegmentAnswer(segmenter, cancel=stop)

        def answer(series: Path, results: Path, when: datetime):
            began.set()
            stop.set()
            return inner(series, results, when)

        node = PacsNode(settings, answer, archive[1], lambda line: None)
        ports: list[int] = []
        thread = threading.Thread(target=node.run, args=(stop, ports.append))
        thread.start()
        wait_for(lambda: ports)
        send(numbered_series(1), ports[0])
        assert began.wait(30)
        thread.join(30)
    assert node.queue.counts()["queued"] == 1
    assert archive[0].objects == {}
