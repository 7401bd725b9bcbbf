"""Whatever is uploaded: the service answers in a sentence, lives, and takes no more memory than for scans."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import httpx
from hostile.uploads import CONTENT_TYPE, form, hostile_upload
from service_peers import serving, wait_for

CORPUS = Path(__file__).with_name("corpus")
_SEEDS = range(150)
_EXCESS_MIB = 256
_REFUSED = {400, 413, 415, 422}


def peak_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) / 1024


def test_no_upload_breaks_the_service(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = tmp_path / "service"
    with (
        serving(folder, "--model", str(tiny_bundle), "--device", "cpu", "--queue", "1000") as process,
        httpx.Client(base_url=process.url, timeout=60) as client,
    ):

        def send(body: bytes) -> httpx.Response:
            return client.post("/v1/jobs", content=body, headers={"Content-Type": CONTENT_TYPE})

        before = peak_mib(process.pid)
        uploads = [hostile_upload(Random(seed)) for seed in _SEEDS]
        answers = [send(one.body) for one in uploads]
        answers += [send(form(path.read_bytes(), path.name, {})) for path in sorted(CORPUS.iterdir())]
        assert {answer.status_code for answer in answers} <= {202, *_REFUSED}
        refused = [answer for answer in answers if answer.status_code != 202]
        assert all(answer.headers["content-type"] == "application/problem+json" for answer in refused)
        assert 20 < len(refused) < len(answers) - 50

        wait_for(lambda: not client.get("/v1/jobs", params={"state": "queued"}).json()["jobs"], 120)
        wait_for(lambda: not client.get("/v1/jobs", params={"state": "running"}).json()["jobs"], 120)
        jobs = client.get("/v1/jobs", params={"limit": 1000}).json()["jobs"]
        assert {job["state"] for job in jobs} == {"done", "failed"}
        errors = [job["error"] for job in jobs if job["state"] == "failed"]
        assert {error["exit_code"] for error in errors} == {3}
        assert not [error["sentence"] for error in errors if "unexpected" in error["sentence"].lower()]
        assert not [error["sentence"] for error in errors if str(tmp_path) in error["sentence"]]
        assert len(jobs) == len(answers) - len(refused)
        assert client.get("/health/ready").status_code == 200
        assert peak_mib(process.pid) - before < _EXCESS_MIB
        assert process.end() == 0
    assert not [line for line in process.lines if "Traceback" in line]
    assert {path.name for path in tmp_path.iterdir()} == {"service", "tiny"}
