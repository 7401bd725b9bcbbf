"""What goes wrong around a node: its own faults, full disks, parts of series, other nodes, archives that misbehave."""

from __future__ import annotations

import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from dicom_files import series, write
from pacs_peers import numbered_series, running, send, wait_for
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom.dsutils import encode

from covidseg.cli import main
from covidseg_runtime.errors import OutputError, SettingsError
from covidseg_runtime.pacs import series_queue
from covidseg_runtime.pacs.node import PacsNode
from covidseg_runtime.pacs.receiver import _read_header
from covidseg_runtime.pacs.sender import SendError, StowDestination
from covidseg_runtime.pacs.settings import Limits, PacsSettings, parse_networks

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_node
ROOMY = Limits(free_bytes=0)


@pytest.fixture
def settings(tmp_path: Path) -> PacsSettings:
    return PacsSettings(queue=tmp_path / "queue", port=0, settle_s=0.3, limits=ROOMY)


class Away:
    """A destination that takes nothing until it is back; it keeps what it took."""

    def __init__(self, *, back: bool = True) -> None:
        self.back, self.taken = back, []

    def send(self, files) -> None:
        if not self.back:
            raise SendError("The archive is away.")
        self.taken.append([path.read_text() for path in files])


def count_instances(series: Path, results: Path, when) -> list[Path]:
    """An answer that tells how many instances there are."""
    (results / "answer").write_text(str(len(list(series.glob("*.dcm")))))
    return [results / "answer"]


def test_a_fault_of_our_own_puts_one_series_aside_and_tells_no_name(settings) -> None:
    kept, calls = Away(), []

    def answer(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise ValueError("no value for PatientName DOE^JOHN")
        return count_instances(*arguments)

    with running(settings, answer, kept) as node:
        send(numbered_series(1), node.port)
        node.wait_for(failed=1)
        send(numbered_series(2), node.port)
        node.wait_for(failed=1, answered=1)
        (reason,) = node.node.queue.reasons().values()
    assert "unexpected ValueError" in reason
    assert "DOE" not in reason + "".join(node.lines)


def test_results_are_made_once_while_the_archive_is_away(settings, monkeypatch) -> None:
    monkeypatch.setattr("covidseg_runtime.pacs.node._FIRST_WAIT_S", 0.1)
    kept, made = Away(back=False), []

    def answer(*arguments):
        made.append(arguments)
        return count_instances(*arguments)

    images = numbered_series(1)
    with running(settings, answer, kept) as node:
        send(images[:-1], node.port)
        wait_for(lambda: sum("is away" in line for line in node.lines) > 2)
        assert len(made) == 1
        send(images[-1:], node.port)  # a late slice: what was made is out of date
        wait_for(lambda: len(made) == 2)
        kept.back = True
        node.wait_for(answered=1, queued=0)
    assert kept.taken == [[str(len(images))]]


def test_a_full_disk_does_not_end_the_node(settings, monkeypatch) -> None:
    monkeypatch.setattr("covidseg_runtime.pacs.node._FIRST_WAIT_S", 0.1)
    kept, write_json = Away(), series_queue.write_json

    def full(path, value) -> None:
        raise OutputError(f"{path.name} cannot be written: No space left on device.")

    with running(settings, count_instances, kept) as node:
        monkeypatch.setattr(series_queue, "write_json", full)
        send(numbered_series(1), node.port)
        wait_for(lambda: any("No space left" in line for line in node.lines))
        monkeypatch.setattr(series_queue, "write_json", write_json)
        node.wait_for(answered=1)


def test_two_nodes_do_not_share_a_queue(settings) -> None:
    with running(settings, count_instances, Away()):
        second = PacsNode(settings, count_instances, Away(), lambda line: None)
        with pytest.raises(SettingsError, match="Another node works on the queue"):
            second.run(threading.Event())


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # of the sender
def test_an_object_without_its_uids_is_not_understood(settings) -> None:
    images = numbered_series(1)[:3]
    images[0].SeriesInstanceUID = ""
    images[1].StudyInstanceUID = "../../x"
    del images[2].SeriesInstanceUID
    with running(settings, count_instances, Away()) as node:
        assert send(images, node.port) == [0xC000] * 3
        assert node.node.queue.counts()["receiving"] == 0


def test_a_deflated_object_is_not_unfolded() -> None:
    """A megabyte of deflate may hold a gigabyte of zeros."""
    image = series()[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [packer.compress(encode(image, is_implicit_vr=False, is_little_endian=True))] + [
        packer.compress(bytes(1 << 20)) for _ in range(200)
    ]
    data = BytesIO(b"".join(parts) + packer.flush())
    tracemalloc.start()
    try:
        header = _read_header(data, DeflatedExplicitVRLittleEndian)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert header.SeriesInstanceUID == image.SeriesInstanceUID
    assert peak < 32 << 20


def test_a_caller_by_ipv4_is_known_behind_ipv6(settings) -> None:
    inside = replace(settings, allowed_addresses=parse_networks(["10.0.0.0/8"]))
    assert inside.lets_in("::ffff:10.0.0.5")
    assert not inside.lets_in("::ffff:11.0.0.5")


def test_a_refused_part_is_never_answered(settings) -> None:
    kept = Away()
    small = replace(settings, limits=Limits(instances=20, free_bytes=0), settle_s=2.0)  # no pause of a busy machine
    with running(small, count_instances, kept) as node:
        assert send(numbered_series(1), node.port).count(0xA700) == 8
        node.wait_for(failed=1, queued=0, receiving=0)
        (reason,) = node.node.queue.reasons().values()
    assert kept.taken == []
    assert "8 instances were refused" in reason


@contextmanager
def web(status: int | None, body: bytes = b"", **headers: str) -> Iterator[tuple[StowDestination, list[str]]]:
    """A server that answers everything alike, without a sound status line where `status` is None."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802 - the name that the library calls
            asked.append(f"{self.command} {self.headers.get('Authorization')}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if status is None:
                self.wfile.write(body)
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        do_GET = do_POST  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield StowDestination(f"http://127.0.0.1:{server.server_port}", {"Authorization": "Bearer secret"}), asked
        server.shutdown()
        thread.join()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "object.dcm").write_bytes(b"DICM")
    return [tmp_path / "object.dcm"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_stow_follows_no_redirection(files, status: int) -> None:
    """It would be a GET without the results, and show the token to a stranger."""
    with web(200, b"{}") as (stranger, asked), web(status, Location=stranger.url) as (destination, _):
        with pytest.raises(SendError, match=str(status)):
            destination.send(files)
        assert asked == []


def test_stow_reads_an_array_of_answers(files) -> None:
    with web(200, b"[{}]") as (destination, asked):
        destination.send(files)
        assert asked == ["POST Bearer secret"]
    refusing = b'[{"00081198": {"vr": "SQ", "Value": [{}]}}]'
    with web(202, refusing) as (destination, _), pytest.raises(SendError, match="did not store 1 of 1"):
        destination.send(files)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (None, b"nonsense\r\nmore\r\n\r\n", {}),
        (200, b"{", {"Content_Length": "500"}),
        (200, b"<html>", {}),
        (200, b'"text"', {}),
        (200, b'{"00081198": [1]}', {}),
        (200, b"[1]", {}),
    ],
)
def test_what_is_no_store_response_is_told_on_one_line(files, status, body, headers) -> None:
    with web(status, body, **headers) as (destination, _), pytest.raises(SendError, match="did not take") as caught:
        destination.send(files)
    assert "\n" not in str(caught.value)


def test_status_makes_no_queue(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["pacs", "--queue", str(tmp_path / "typo"), "--status"])
    assert (result.exit_code, (tmp_path / "typo").exists()) == (2, False)


def test_of_several_series_one_that_fails_does_not_stop_the_others(tmp_path, tiny_bundle, monkeypatch) -> None:
    images = series()
    write(tmp_path / "batch" / "a" / "in", [one for k, one in enumerate(images) if k != 5])
    write(tmp_path / "batch" / "b" / "in", series())
    kaapana = {
        "WORKFLOW_DIR": str(tmp_path),
        "BATCH_NAME": "batch",
        "OPERATOR_IN_DIR": "in",
        "OPERATOR_OUT_DIR": "out",
    }
    for key, value in kaapana.items():
        monkeypatch.setenv(key, value)
    result = CliRunner().invoke(main, ["module", "--model", str(tiny_bundle), "--device", "cpu"])
    assert result.exit_code == 4
    assert "series 1 of 2 failed" in result.output
    assert {path.name for path in (tmp_path / "batch" / "b" / "out").iterdir()} == {"seg.dcm", "sr.dcm", "sc.dcm"}
