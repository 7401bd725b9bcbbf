"""`covidseg serve` as a process: it ends cleanly, loses nothing, and survives what is sent to it."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import signal
import ssl
import subprocess
import threading
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
from service_peers import ServeProcess, exchange, serving, wait_for, wait_for_end
from starlette.requests import Request

from covidseg_runtime import Segmenter, SegmentSettings, read_volume
from covidseg_runtime.service.service import Service
from covidseg_runtime.service.submission import take_in

CROP = Path(__file__).parents[2] / "data" / "lidc_0001_crop_ct.nii.gz"


def submit(process: ServeProcess, quality: str = "fast") -> str:
    fields = {"page": "false", "quality": quality}
    with CROP.open("rb") as file:
        answer = httpx.post(f"{process.url}/v1/jobs", files={"scan": file}, data=fields, timeout=60)
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["id"]
    return job


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_whatever_ends_it_the_next_start_does_what_was_accepted(tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "service"
    with serving(folder, "--device", "cpu", "--workers", "2") as process:
        jobs = [submit(process, "best"), submit(process)]
        assert process.end(number) == code
    with serving(folder, "--device", "cpu") as process, httpx.Client(base_url=process.url, timeout=60) as client:
        ended = [wait_for_end(client, job) for job in jobs]
        assert [job["state"] for job in ended] == ["done"] * 2
        content = client.get(ended[1]["results"]["labels"]).content
        assert process.end() == 0
    assert not any(path.name.startswith(".") for path in folder.rglob("*"))  # nothing is half written
    found = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)
    with Segmenter.open(device="cpu", settings=SegmentSettings(quality="fast")) as segmenter:
        np.testing.assert_array_equal(found, segmenter.segment(read_volume(CROP)).labels)


def test_an_answer_on_its_way_is_sent_before_the_end(tmp_path: Path, tiny_bundle: Path) -> None:
    """A body that is still coming in at SIGTERM becomes a job."""
    folder, content = tmp_path / "service", CROP.read_bytes()
    with serving(folder, "--model", str(tiny_bundle), "--device", "cpu") as process:
        go_on = threading.Event()

        def body():
            yield b'--b\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\n' + content[:1000]
            assert go_on.wait(30)
            yield content[1000:] + b"\r\n--b--\r\n"

        answers: list[httpx.Response] = []
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        sender = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{process.url}/v1/jobs", content=body(), headers=form, timeout=60)
            )
        )
        sender.start()
        wait_for(lambda: any((folder / "incoming").iterdir()))
        ending = threading.Thread(target=process.end)
        ending.start()
        go_on.set()
        sender.join(60)
        ending.join(60)
    assert answers[0].status_code == 202
    kept = [path.name for state in ("queued", "finished") for path in (folder / state).iterdir()]
    assert kept == [answers[0].json()["id"]]


def test_an_upload_that_is_being_accepted_when_the_service_gives_up_on_answers_becomes_a_job(
    settings, segmenter, monkeypatch
) -> None:
    service, accepting, go_on = Service(settings, segmenter), threading.Event(), threading.Event()
    queue = service.folders.queue

    def slow_disk(job) -> None:
        accepting.set()
        assert go_on.wait(30)
        queue(job)

    monkeypatch.setattr(service.folders, "queue", slow_disk)
    part = b'--b\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\n' + CROP.read_bytes()

    async def receive() -> dict:
        return {"type": "http.request", "body": part + b"\r\n--b--\r\n", "more_body": False}

    async def upload_until_cancelled() -> None:
        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": headers}
        task = asyncio.create_task(take_in(service, Request(scope, receive), None))
        assert await asyncio.to_thread(accepting.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.to_thread(wait_for, lambda: any((settings.folder / "queued").iterdir()))

    asyncio.run(upload_until_cancelled())
    (folder,) = (settings.folder / "queued").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["job.json", "scan.nii.gz"]


def test_it_prints_where_it_listens_and_that_it_is_for_research(tmp_path: Path, tiny_bundle: Path) -> None:
    with serving(tmp_path / "service", "--model", str(tiny_bundle), "--device", "cpu") as process:
        job = submit(process)
        with httpx.Client(base_url=process.url) as client:
            wait_for_end(client, job)
        assert process.end() == 0
    text = "".join(process.lines)
    assert text.startswith("Research use only; not a medical device. Results lie in ")
    assert "listening on http://127.0.0.1:" in text
    assert f"{job}: done" in text
    assert text.endswith("stopped; what waits is done by the next start\n")
    assert CROP.name not in text


def test_tls_is_spoken_where_there_is_a_certificate(tmp_path: Path, tiny_bundle: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, made = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(made)]
    more = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *more], check=True, capture_output=True)
    arguments = ("--model", str(tiny_bundle), "--device", "cpu", "--tls-cert", str(made), "--tls-key", str(key))
    with serving(tmp_path / "service", *arguments) as process:
        assert process.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(made))
        assert httpx.get(f"{process.url}/health/ready", verify=trusting).status_code == 200
        assert not exchange(process.port, "GET /health/live").startswith(b"HTTP/1.1 200")
        assert process.end() == 0
