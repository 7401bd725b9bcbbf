"""Services for tests: within the process, or as a process of their own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.service.server import make_server
from covidseg_runtime.service.service import Service
from covidseg_runtime.service.settings import ServiceLimits

ROOMY = ServiceLimits(free_bytes=0)


class GatedEngine(PointwiseEngine):
    """A fake engine that computes nothing until its gate is opened.

    Attributes:
        gate: Set: open.
        asked: Set as soon as tiles wait.
    """

    def __init__(self, function) -> None:
        super().__init__(function)
        self.gate, self.asked = threading.Event(), threading.Event()

    def predict(self, tiles: np.ndarray) -> np.ndarray:
        self.asked.set()
        if not self.gate.wait(60):
            raise TimeoutError("nobody opened the gate")
        return super().predict(tiles)


class Asked(httpx.Client):
    """A client of a service within the process.

    Attributes:
        service: The service.
        lines: What it reported.
        port: Where it listens.
    """

    def __init__(self, service: Service, lines: list[str], port: int) -> None:
        super().__init__(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        self.service, self.lines, self.port = service, lines, port

    def submit(self, scan: bytes, **fields: str) -> httpx.Response:
        return self.post("/v1/jobs", files={"scan": ("DOE^JOHN.nii.gz", scan)}, data=fields)

    def ended(self, job_id: str, seconds: float = 60) -> dict:
        return wait_for_end(self, job_id, seconds)


@contextmanager
def asking(settings, segmenter) -> Iterator[Asked]:
    """A service that runs, and listens on a free port, while the block does."""
    lines: list[str] = []
    service, stop = Service(settings, segmenter, lines.append), threading.Event()
    server = make_server(service, stop)
    with socket.create_server(("127.0.0.1", 0)) as bound, service.running():
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
        thread.start()
        try:
            with Asked(service, lines, bound.getsockname()[1]) as client:
                yield client
        finally:
            stop.set()
            thread.join(60)
    assert not thread.is_alive()


def exchange(port: int, request: str, *headers: str, body: bytes = b"", seconds: float = 30) -> bytes:
    """What is answered to bytes that no HTTP library would send, until the answer or the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        head = "\r\n".join((f"{request} HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers, "", ""))
        connection.sendall(head.encode("latin-1") + body)
        return read_answer(connection)


def read_answer(connection: socket.socket) -> bytes:
    """One answer of a stated length, or what came until the connection ended."""
    found = b""
    while part := connection.recv(1 << 16):
        found += part
        head, separator, rest = found.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if separator and length and len(rest) >= int(length[1]):
            break
    return found


def wait_for(is_so, seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def wait_for_end(client, job_id: str, seconds: float = 60) -> dict:
    """The job when it has ended."""
    end = time.monotonic() + seconds
    while True:
        answer = client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job = answer.json()
        if job["finished"] is not None:
            return job
        assert time.monotonic() < end, job
        time.sleep(0.02)


class ServeProcess:
    """`covidseg serve` as a process.

    Attributes:
        url: Where it listens.
        lines: What it wrote until it listened.
    """

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "covidseg", "serve", "--port", "0", *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})}
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self.url = self._read_url()
        # Read on, so that a full pipe does not stop it.
        self._reader = threading.Thread(target=lambda: self.lines.extend(self._process.stderr), daemon=True)
        self._reader.start()

    def _read_url(self) -> str:
        for line in self._process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on (\S+)", line):
                return found[1]
        raise RuntimeError(f"it did not listen: {self.lines}")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal; the exit code comes back."""
        self._process.send_signal(number)
        code = self._process.wait(seconds)
        self._reader.join(10)
        self._process.stderr.close()
        return code

    def is_alive(self) -> bool:
        return self._process.poll() is None


@contextmanager
def serving(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[ServeProcess]:
    """A process that is ended when the block is."""
    process = ServeProcess("--folder", str(folder), *arguments, env=env)
    try:
        yield process
    finally:
        if process.is_alive():
            process.end()
