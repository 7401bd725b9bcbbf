"""Does the service lose a job under load, and how long do its callers wait?

    python benchmarks/service_load.py [--clients 50] [--seconds 120] [--queue 16] [--model BUNDLE]

Each client sends one of four small crops of a real scan, asks until the job has ended, fetches the label map, and
compares it with what a Segmenter in this process gives for the same crop; then it sends the next. Clients and service
share the machine. The run fails if a job is lost, ends otherwise than done, has other labels, or if more jobs wait than
may. Of a client that is told to come again (429), the wait is what it was told. It needs the extra `serve`, and httpx.
"""

import argparse
import gzip
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import nibabel
import numpy as np
from numpy.typing import NDArray
from record import keep_result

from covidseg_runtime import Segmenter, Volume, read_volume

SCAN = Path(__file__).parent.parent / "tests" / "data" / "lidc_0001_crop_ct.nii.gz"
_CORNERS = ((0, 0), (60, 0), (0, 40), (60, 40))
_SIZE = (180, 140)
_BETWEEN_STATUS_S, _BETWEEN_METRICS_S, _LONGEST_WAIT_S = 0.25, 0.2, 600.0


@dataclass(frozen=True, eq=False)
class Crop:
    """What is sent, and what has to come back."""

    content: bytes
    labels: NDArray[np.uint8]


@dataclass
class Seen:
    """What the clients saw; each list and counter is appended to under the lock."""

    submit_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    status_s: list[float] = field(default_factory=list)
    job_s: list[float] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    longest_queue: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def make_crops(segmenter: Segmenter) -> list[Crop]:
    """Four crops, with the labels that the segmenter gives."""
    scan = read_volume(SCAN)
    crops = []
    for x, y in _CORNERS:
        voxels = np.ascontiguousarray(scan.voxels[x : x + _SIZE[0], y : y + _SIZE[1]])
        content = gzip.compress(nibabel.Nifti1Image(voxels, scan.affine).to_bytes(), 1)
        crops.append(Crop(content, segmenter.segment(Volume(voxels, scan.affine)).labels))
    return crops


def call(client: httpx.Client, crop: Crop, seen: Seen) -> float:
    """One job from its upload to its labels; the seconds to wait come back, more than 0 where it was refused."""
    began = time.perf_counter()
    answer = client.post("/v1/jobs", files={"scan": ("crop.nii.gz", crop.content)}, data={"page": "false"})
    took = time.perf_counter() - began
    with seen.lock:
        if answer.status_code == 429:
            seen.refused_s.append(took)
            return float(answer.headers["retry-after"])
        if answer.status_code != 202:
            seen.faults.append(f"submit: {answer.status_code} {answer.text}")
            return 1.0
        seen.submit_s.append(took)
        seen.accepted.append(answer.json()["id"])
    follow(client, answer.json()["id"], crop, seen)
    with seen.lock:
        seen.job_s.append(time.perf_counter() - began)
    return 0.0


def follow(client: httpx.Client, job_id: str, crop: Crop, seen: Seen) -> None:
    """Ask after a job until it has ended, and compare its labels."""
    end = time.perf_counter() + _LONGEST_WAIT_S
    while time.perf_counter() < end:
        began = time.perf_counter()
        job = client.get(f"/v1/jobs/{job_id}").json()
        with seen.lock:
            seen.status_s.append(time.perf_counter() - began)
        if job["finished"]:
            break
        time.sleep(_BETWEEN_STATUS_S)
    fault = None
    if job["state"] != "done":
        fault = f"{job_id}: {job['state']} {job['error']}"
    else:
        content = gzip.decompress(client.get(job["results"]["labels"]).content)
        found = np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj)
        if not np.array_equal(found, crop.labels):
            fault = f"{job_id}: {int((found != crop.labels).sum())} voxels have other labels"
    if fault is not None:
        with seen.lock:
            seen.faults.append(fault)


def be_client(url: str, crops: list[Crop], seen: Seen, until: float, seed: int) -> None:
    """Send one job after the other until the time is over."""
    chosen = random.Random(seed)
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        while time.perf_counter() < until:
            wait = call(client, chosen.choice(crops), seen)
            time.sleep(wait * (1 + chosen.random() / 2))  # not all at once


def watch(url: str, seen: Seen, stop: threading.Event) -> None:
    """See how many jobs wait."""
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        while not stop.wait(_BETWEEN_METRICS_S):
            found = re.search(r"^covidseg_queue_length (\S+)", client.get("/metrics").text, re.MULTILINE)
            seen.longest_queue = max(seen.longest_queue, int(float(found[1])) if found else 0)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest, in seconds."""
    if not seconds:
        return {}
    p50, p95 = np.percentile(seconds, (50, 95))
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "max": round(max(seconds), 3)}


def memory_mib(pid: int, name: str) -> float:
    """VmRSS or VmHWM of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024, 1)


def start_service(folder: str, arguments: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """The process and its address."""
    command = [sys.executable, "-m", "covidseg", "serve", "--port", "0", "--folder", folder, "--device", "cpu"]
    command += ["--queue", str(arguments.queue), *(("--model", arguments.model) if arguments.model else ())]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    for line in process.stderr or ():
        if found := re.search(r"listening on (\S+)", line):
            threading.Thread(target=lambda: list(process.stderr or ()), daemon=True).start()
            return process, found[1]
    raise SystemExit("the service did not start")


def load(url: str, crops: list[Crop], arguments: argparse.Namespace) -> Seen:
    """Let all clients work until the time is over and their last jobs have ended."""
    seen, stop = Seen(), threading.Event()
    watcher = threading.Thread(target=watch, args=(url, seen, stop))
    watcher.start()
    until = time.perf_counter() + arguments.seconds
    with ThreadPoolExecutor(arguments.clients) as pool:
        clients = [pool.submit(be_client, url, crops, seen, until, seed) for seed in range(arguments.clients)]
    stop.set()
    watcher.join()
    for client in clients:
        client.result()
    return seen


def find_lost(url: str, accepted: list[str]) -> list[str]:
    """Those that were accepted and are not done."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        states = {job_id: client.get(f"/v1/jobs/{job_id}").json().get("state") for job_id in accepted}
    return [job_id for job_id, state in states.items() if state != "done"]


def main() -> None:
    """Load it, watch it, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--model", help="another bundle than the default one")
    arguments = parser.parse_args()
    with Segmenter.open(arguments.model, device="cpu") as segmenter:
        crops = make_crops(segmenter)
        engine = f"{segmenter.engine.name} {segmenter.engine.precision}"
    with tempfile.TemporaryDirectory() as folder:
        process, url = start_service(folder, arguments)
        before, began = memory_mib(process.pid, "VmRSS"), time.perf_counter()
        seen = load(url, crops, arguments)
        took = time.perf_counter() - began
        lost = find_lost(url, seen.accepted)
        memory = {"before": before, "peak": memory_mib(process.pid, "VmHWM"), "after": memory_mib(process.pid, "VmRSS")}
        process.terminate()
        code = process.wait(60)
    keep_result(
        "service_load",
        {
            "clients": arguments.clients,
            "seconds": round(took, 1),
            "queue": arguments.queue,
            "engine": engine,
            "crop": [*_SIZE, crops[0].labels.shape[2]],
            "crop_bytes": len(crops[0].content),
            "accepted": len(seen.accepted),
            "jobs_per_minute": round(60 * len(seen.job_s) / took, 1),
            "refused_with_429": len(seen.refused_s),
            "lost": len(lost),
            "faults": seen.faults[:10],
            "longest_queue": seen.longest_queue,
            "submit_s": percentiles(seen.submit_s),
            "refused_s": percentiles(seen.refused_s),
            "status_s": percentiles(seen.status_s),
            "job_s": percentiles(seen.job_s),
            "service_mib": memory,
            "exit_code_after_sigterm": code,
        },
    )
    if lost or seen.faults or seen.longest_queue > arguments.queue or code != 0:
        raise SystemExit("the service lost jobs, gave other labels, or let more wait than may")


if __name__ == "__main__":
    main()
