"""TLS, STOW-RS, hostile callers, and the two commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest
from click.testing import CliRunner
from dicom_files import series, write
from hostile.pdus import attack
from pacs_peers import Archive, echo, free_port, numbered_series, running, send, wait_for

from covidseg.cli import main
from covidseg_runtime.errors import SettingsError
from covidseg_runtime.pacs.module_contract import find_tasks
from covidseg_runtime.pacs.sender import SendError, StoreDestination, StowDestination
from covidseg_runtime.pacs.series_queue import SeriesQueue
from covidseg_runtime.pacs.settings import Limits, PacsSettings, Tls, parse_networks

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_node


@pytest.fixture
def settings(tmp_path: Path) -> PacsSettings:
    return PacsSettings(queue=tmp_path / "queue", port=0, settle_s=0.3, limits=Limits(free_bytes=0))


def no_answer(*_: object) -> tuple[Path, ...]:
    return ()


class NoDestination:
    def send(self, files) -> None:
        assert not files


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that caller's thread ends
def test_a_node_outlives_hostile_callers(settings) -> None:
    with running(settings, no_answer, NoDestination()) as node:
        for seed in range(300):
            attack(node.port, seed)
        wait_for(lambda: echo(node.port), 60, every=1.0)
        assert node.node.queue.counts() == {"receiving": 0, "queued": 0, "answered": 0, "failed": 0}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate of localhost that signed itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "cert.pem", folder / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*command, *subject], check=True, capture_output=True)  # noqa: S603
    return made, key


def test_tls_lets_in_who_shows_a_certificate(settings, certificate) -> None:
    made, key = certificate
    tls = Tls(made, key, authority=made)
    known, unknown = ssl.create_default_context(cafile=made), ssl.create_default_context(cafile=made)
    known.load_cert_chain(made, key)
    with running(replace(settings, tls=tls), no_answer, NoDestination()) as node:
        assert echo(node.port, tls_args=(known, "localhost"))
        assert not echo(node.port, tls_args=(unknown, "localhost"))
        assert not echo(node.port)


class _Dicomweb(BaseHTTPRequestHandler):
    """STOW-RS that keeps what it is sent in the server's `kept`."""

    def do_POST(self) -> None:  # noqa: N802 - the name that the library calls
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer secret" or self.path != "/dicom-web/studies":
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        message = BytesParser().parsebytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
        self.server.kept += [part.get_payload(decode=True) for part in message.get_payload()]
        answer = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def dicomweb() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Dicomweb) as server:
        server.kept, server.answer = [], {}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_stow_sends_the_bytes_as_they_are(tmp_path: Path, dicomweb) -> None:
    files = sorted(write(tmp_path / "s", series()[:2]).iterdir())
    url = f"http://127.0.0.1:{dicomweb.server_port}/dicom-web"
    StowDestination(url, {"Authorization": "Bearer secret"}).send(files)
    assert dicomweb.kept == [path.read_bytes() for path in files]
    with pytest.raises(SendError, match="401"):
        StowDestination(url, {}).send(files)
    dicomweb.answer = {"00081198": {"vr": "SQ", "Value": [{}]}}
    with pytest.raises(SendError, match="did not store 1 of 2"):
        StowDestination(url, {"Authorization": "Bearer secret"}).send(files)


def test_an_archive_that_refuses_an_object_is_named(tmp_path: Path) -> None:
    files = sorted(write(tmp_path / "s", series()[:1]).iterdir())
    kept = Archive()
    kept.status = 0xA700
    with kept.listening() as port, pytest.raises(SendError, match="ARCHIVE did not store CT Image Storage: .*0xA700"):
        StoreDestination("127.0.0.1", port, "ARCHIVE").send(files)


@pytest.mark.parametrize("title", ["", "   ", "A" * 17, "A\\B", "Ä"])
def test_what_is_no_title(tmp_path: Path, title: str) -> None:
    with pytest.raises(SettingsError, match="is no AE title"):
        PacsSettings(queue=tmp_path, ae_title=title)


def test_what_is_no_network() -> None:
    with pytest.raises(SettingsError, match="an address or a network such as"):
        parse_networks(["hospital"])


def test_the_command_answers_and_ends_on_sigterm(tmp_path: Path, tiny_bundle: Path) -> None:
    kept, port = Archive(), free_port()
    with kept.listening() as archive:
        arguments = ("--queue", tmp_path / "q", "--port", port, "--send-to", f"ARCHIVE@127.0.0.1:{archive}")
        command = [sys.executable, "-m", "covidseg", "pacs", *map(str, arguments)]
        command += ["--settle", "0.3", "--model", str(tiny_bundle), "--device", "cpu", "--lungs"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)  # noqa: S603
        assert child.stderr is not None
        assert f"listening as COVIDSEG on 127.0.0.1:{port}" in child.stderr.readline()
        assert set(send(numbered_series(1), port)) == {0}
        wait_for(lambda: len(kept.objects) == 3)
        wait_for(lambda: SeriesQueue(tmp_path / "q", Limits()).counts()["answered"] == 1)
        child.send_signal(signal.SIGTERM)
        said = child.communicate(timeout=60)[1]
    assert (child.returncode, "stopped; what is queued is answered" in said) == (0, True)
    (segmentation,) = [one for one in kept.objects.values() if one.Modality == "SEG"]
    assert len(segmentation.SegmentSequence) == 3
    status = CliRunner().invoke(main, ["pacs", "--queue", str(tmp_path / "q"), "--status"])
    assert status.output.split() == ["receiving", "0", "queued", "0", "answered", "1", "failed", "0"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "either --send-to AE@HOST:PORT or --stow URL"),
        (("--send-to", "archive"), "is no AE@HOST:PORT"),
        (("--stow", "file:///etc"), "is no http or https URL"),
        (("--stow", "http://x", "--tls-cert", __file__), "go together"),
        (("--send-to", "A@h:1", "--allow-address", "here"), "an address or a network"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = CliRunner().invoke(main, ["pacs", "--queue", str(tmp_path / "q"), *arguments])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


def _platform(name: str, folder: Path) -> tuple[dict[str, str], Path]:
    """Environment of a platform that hands the phantom over, and where its results are to lie."""
    incoming, outgoing = folder / "in", folder / "out"
    if name == "kaapana":
        incoming, outgoing = folder / "batch" / "case" / "in", folder / "batch" / "case" / "out"
    write(incoming, series())
    for path in incoming.iterdir():
        path.rename(path.with_name(f"1.2.3#{path.name}.dcm"))
    if name == "mercure":
        (incoming / "task.json").write_text(json.dumps({"process": {"settings": {"note": "x"}}}))
    environments = {
        "mercure": {"MERCURE_IN_DIR": str(incoming), "MERCURE_OUT_DIR": str(outgoing)},
        "kaapana": {
            "WORKFLOW_DIR": str(folder),
            "BATCH_NAME": "batch",
            "OPERATOR_IN_DIR": "in",
            "OPERATOR_OUT_DIR": "out",
        },
        "holoscan": {"HOLOSCAN_INPUT_PATH": str(incoming), "HOLOSCAN_OUTPUT_PATH": str(outgoing)},
    }
    return environments[name], outgoing


@pytest.mark.parametrize("name", ["mercure", "kaapana", "holoscan"])
def test_platforms_get_their_results(tmp_path: Path, tiny_bundle: Path, monkeypatch, name: str) -> None:
    environment, outgoing = _platform(name, tmp_path)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    result = CliRunner().invoke(main, ["module", "--model", str(tiny_bundle), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    names = {path.name for path in outgoing.iterdir()}
    assert names == {"seg.dcm", "sr.dcm", "sc.dcm"} | ({"result.json"} if name == "mercure" else set())
    assert pydicom.dcmread(outgoing / "sr.dcm").Modality == "SR"
    if name == "mercure":
        found = json.loads((outgoing / "result.json").read_text())
        assert "Research use only" in found["__mercure_notification"]["text"]
        assert found["infection_volume_ml"] > 0
        assert find_tasks(environment)[0].settings == {"note": "x"}


def test_without_a_platform_and_with_half_of_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="speaks of no platform"):
        find_tasks({})
    with pytest.raises(SettingsError, match="mercure but lacks MERCURE_OUT_DIR"):
        find_tasks({"MERCURE_IN_DIR": str(tmp_path)})
