"""The commands of docs/service.md run in their order, as they stand but for the ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import pytest
from pacs_peers import free_port
from service_peers import serving

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "service.md").read_text("utf-8")
SCAN = ROOT / "tests" / "data" / "lidc_0001_crop_ct.nii.gz"
SHIM = f'#!/bin/sh\nexec "{sys.executable}" -m covidseg "$@"\n'


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a scan, and the command on the path."""
    shutil.copy(SCAN, tmp_path / "scan.nii.gz")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "covidseg").write_text(SHIM)
    (tmp_path / "bin" / "covidseg").chmod(0o755)
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_run(place: Path) -> None:
    ports = {"8000": str(free_port()), "8001": str(free_port())}
    script = "\n".join(("set -eu -o pipefail", "trap 'kill $(jobs -p); wait' EXIT", *blocks("sh")))
    for written, free in ports.items():
        script = script.replace(f":{written}", f":{free}").replace(f"--port {written}", f"--port {free}")
    environment = {
        **os.environ,
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "COVIDSEG_SERVE_PORT": ports["8000"],
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert nibabel.load(place / "labels.nii.gz").shape == nibabel.load(SCAN).shape
    for name in ("report.json", "preview.png", "page.html", "token"):
        assert (place / name).stat().st_size > 0
    assert "listening on http://127.0.0.1:" in done.stderr
    assert "Warning: token and scans travel unencrypted" in done.stderr
    assert "stopped" in done.stderr


def test_the_python_example_runs(place: Path) -> None:
    (example,) = blocks("python")
    with serving(place / "jobs", "--device", "cpu") as process:
        code = example.replace(":8000", f":{process.port}")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "(1, 3, 96, 96, 96)\n", done.stderr


def test_the_table_of_limits_is_what_the_command_has(place: Path) -> None:
    from covidseg_runtime.service.settings import ServiceLimits, ServiceSettings

    limits, settings = ServiceLimits(), ServiceSettings(place)
    said = [
        f"| jobs that wait | {limits.queue} |",
        f"| one upload | {limits.upload_bytes >> 30} GiB |",
        f"| all uploads and results | {limits.disk_bytes >> 30} GiB, and {limits.free_bytes >> 30} GiB of the disk",
        f"| results are kept | {settings.keep_s / 3600:g} h, {limits.jobs:,} jobs |",
        f"| connections | {limits.connections} |",
        f"| {limits.header_s:g} s, {limits.idle_s:g} s, {limits.transfer_s / 60:g} min |",
        f"| {limits.infer_tiles} tiles, {limits.infer_bytes >> 20} MiB, {limits.infers} at a time |",
    ]
    assert [line for line in said if line not in PAGE] == []
