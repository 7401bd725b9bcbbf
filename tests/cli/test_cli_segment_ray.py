"""`covidseg segment DIR --ray`: real scans, real clusters, and workers that are killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import pytest
from click.testing import CliRunner

from covidseg.cli import main

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "tests" / "data" / "demo" / "coronacases_002_ct.nii.gz"
PAGE = ROOT / "docs" / "folders.md"
SCANS = 8
LONGEST_RUN_S = 120
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
LISTENING = "0A"
# For the cluster that is started and for those who join it: the loopback is enough.
OF_CLUSTER = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# A cluster on a machine that does not see the folder `hidden`.
NODE = "mount -t tmpfs tmpfs {hidden} && exec {ray} start --head --block {options}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pieces of a real scan in `scans`, and in `plain` what a run without Ray makes of them."""
    folder = tmp_path_factory.mktemp("ray")
    demo = nibabel.load(DEMO)
    for number in range(SCANS):
        path = folder / "scans" / ("ward" if number % 2 else "") / f"p{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        z = 10 + 13 * number
        nibabel.save(demo.slicer[50:110, 90:150, z : z + 60], path)
    plain = Child(folder, "scans", "-o", "plain", "--threads", "1")
    assert plain.end() == 0, plain.lines
    return folder


class Child:
    """`covidseg segment` in a process of its own, with warnings as errors and folders that are its own."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        # Sockets lie there, whose paths must be short.
        self.temporary = Path(tempfile.mkdtemp(prefix="cs-"))
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        path = os.pathsep.join(str(ROOT / part) for part in (".", "runtime"))
        own = {"PYTHONPATH": path, "TMPDIR": str(self.temporary), "HOME": str(self.home)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "covidseg", "segment", *arguments],
            cwd=folder,
            env={**os.environ, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.printed = ""

    def wait_for(self, beginning: str) -> None:
        """Read its messages up to one."""
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if beginning in line:
                return
        raise AssertionError(f"no {beginning!r} in {self.lines}")

    def family(self) -> list[int]:
        """It and all processes that came from it."""
        return _family(self.process.pid)

    def end(self) -> int:
        """Its exit code, when it has ended by itself."""
        try:
            self.printed, messages = self.process.communicate(timeout=LONGEST_RUN_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.communicate()
        self.lines.extend(messages.splitlines())
        assert list(self.temporary.iterdir()) == [], "nothing is left beside the results"
        assert list(self.home.iterdir()) == [], "nor in the home folder"
        self.temporary.rmdir()
        return self.process.returncode


def _family(of: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # ended meanwhile
    found = [of]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _are_gone(pids: list[int]) -> bool:
    """Whether processes have ended; one that nobody has waited for has no command line any more."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if not any(map(_command_line, pids)):
            return True
        time.sleep(0.1)
    return False


def _results(output: Path) -> tuple[dict[str, bytes], dict[str, dict], dict[str, dict]]:
    """Label maps as bytes, and reports and lines of the manifest without times; no scan may have two lines."""
    reports, lines = {}, {}
    for path in output.rglob("*_covidseg.json"):
        reports[path.name] = json.loads(path.read_bytes())
        del reports[path.name]["timings_s"]
    for text in (output / "manifest.jsonl").read_text().splitlines():
        line = json.loads(text)
        del line["finished"], line["seconds"], line["outputs"]["report"]["sha256"]
        assert line["scan"] not in lines
        lines[line["scan"]] = line
    labels = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*_covidseg.nii.gz")}
    return labels, reports, lines


def _documented(address: str) -> list[str]:
    """The arguments of the one command in the documentation for an address."""
    (line,) = re.findall(rf"^covidseg segment (.* --ray {address})$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return line.split()


def _on_two_workers(output: str) -> list[str]:
    arguments = [output if argument == "results" else argument for argument in _documented("local")]
    return [*arguments, "--ray-actors", "2", "--cores-per-actor", "1"]


# A cluster of this machine


def test_a_worker_that_is_killed_changes_no_bit_and_the_cluster_is_of_this_machine_alone(folder: Path) -> None:
    child = Child(folder, *_on_two_workers("killed"), "--json")
    child.wait_for("[1/8]")
    child.process.send_signal(signal.SIGSTOP)  # so that it cannot end before a worker is killed
    family = child.family()
    os.kill(next(pid for pid in family if _command_line(pid).startswith(b"ray::RayWorker")), signal.SIGKILL)
    _require_loopback(family)
    child.process.send_signal(signal.SIGCONT)
    assert child.end() == 0, child.lines
    first, second, *others = child.lines
    assert first.startswith("default ")
    assert "threads 1" in first
    assert first.endswith(", 2 workers of 1 core")
    assert second == "8 scans, 0 done before"
    deaths = [line for line in others if line.startswith("a worker on ")]
    assert len(deaths) == 1, others
    numbers = [line.partition(" ")[0] for line in others if line not in deaths]
    assert numbers == [f"[{number}/8]" for number in range(1, 9)]
    assert json.loads(child.printed)["segmented"] == SCANS, "and nothing else is on standard output"
    assert _results(folder / "killed") == _results(folder / "plain")
    assert not [path for path in (folder / "killed").rglob(".*") if path.is_file()]
    assert _are_gone(family)


def _require_loopback(pids: list[int]) -> None:
    """Of every socket of processes: those that listen do so on the loopback, the others are connected over it."""
    inodes = {target for pid in pids for target in _targets(pid)}
    ours = [
        fields
        for table in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if f"socket:[{fields[9]}]" in inodes
    ]
    assert len([fields for fields in ours if fields[3] == LISTENING]) >= 3
    for fields in ours:
        assert fields[1].partition(":")[0] in LOOPBACK, fields
        assert fields[3] == LISTENING or fields[2].partition(":")[0] in LOOPBACK, fields


def _targets(pid: int) -> Iterator[str]:
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            yield str(descriptor.readlink())
    except OSError:
        return  # ended meanwhile


@pytest.mark.parametrize(("output", "number"), [("stopped", signal.SIGTERM), ("ended", signal.SIGINT)])
def test_a_signal_ends_it_with_130_and_a_run_without_ray_goes_on(
    folder: Path, output: str, number: signal.Signals
) -> None:
    child = Child(folder, *_on_two_workers(output))
    child.wait_for("[1/8]")
    family = child.family()
    os.killpg(child.process.pid, number)  # as a terminal does
    assert child.end() == 130, child.lines
    done = len(_results(folder / output)[2])
    assert child.lines[-1] == f"Interrupted: {SCANS - done} of 8 scans are left; the same command goes on."
    assert len(_results(folder / output)[0]) == done
    assert not [path for path in (folder / output).rglob(".*") if path.is_file()]
    assert _are_gone(family)
    if number == signal.SIGINT:  # one of the two is enough
        return
    again = Child(folder, "scans", "-o", output, "--threads", "1")
    assert again.end() == 0, again.lines
    assert f"8 scans, {done} done before" in again.lines
    assert _results(folder / output) == _results(folder / "plain")


# A cluster that runs


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[str]:
    """Address of one that was started as the documentation says, on a machine that does not see `hidden`."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:  # noqa: S603, S607
        pytest.skip("this machine gives no mount namespace")
    shutil.copytree(folder / "scans", folder / "hidden")
    temporary = Path(tempfile.mkdtemp(prefix="cs-"))
    port, client_port = _free_ports()
    line = re.search(r"^ray start --head (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    options = f"{line[1]} --port {port} --ray-client-server-port {client_port} --num-cpus 2 --temp-dir {temporary}"
    script = NODE.format(hidden=folder / "hidden", ray=Path(sys.executable).with_name("ray"), options=options)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "runtime")),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        **OF_CLUSTER,
    }
    process = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    try:
        for text in process.stdout:
            lines.append(text)
            if "Ray runtime started" in text:
                break
        else:
            raise AssertionError("".join(lines))
        yield f"127.0.0.1:{port}"
    finally:
        family = _family(process.pid)
        process.terminate()
        process.communicate(timeout=LONGEST_RUN_S)
        assert _are_gone(family)
        shutil.rmtree(temporary)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def test_the_documented_command_runs_on_the_documented_cluster(folder: Path, cluster: str) -> None:
    child = Child(folder, *_documented("auto"), "--cores-per-actor", "1", RAY_ADDRESS=cluster, **OF_CLUSTER)
    assert child.end() == 0, child.lines
    assert _results(folder / "results") == _results(folder / "plain")


def test_a_worker_that_does_not_see_a_scan_ends_the_run(folder: Path, cluster: str) -> None:
    child = Child(folder, "hidden", "-o", "unseen", "--ray", cluster, **OF_CLUSTER)
    assert child.end() == 2, child.lines
    assert re.search(
        r"^Error: the worker on \S+ does not see \S+/hidden/p\d.nii.gz, which is here; scans have to lie on a file "
        r"system that all machines share\. 8 of 8 scans are left; the same command goes on\.$",
        child.lines[-1],
    )
    assert not list((folder / "unseen").rglob("*.nii.gz"))


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scans/p0.nii.gz", "--ray", "local"], "--ray is for a folder of scans"),
        (["scans", "-o", "out", "--ray-actors", "2"], "--ray-actors and --cores-per-actor go with --ray"),
        (["scans", "-o", "out", "--ray", "local", "--threads", "2"], "--threads is --cores-per-actor"),
        (["scans", "-o", "out", "--ray", "head"], "'head' is no address of a Ray cluster: local, auto, host:port"),
        (["scans", "-o", "out", "--ray", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["scans", "-o", "out", "--ray", "ray://127.0.0.1:1"], "no Ray cluster answers at ray://127.0.0.1:1"),
    ],
)
def test_wrong_usage_is_exit_2_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    result = CliRunner().invoke(main, ["segment", *arguments])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (folder / "out").exists()


def test_without_the_extra_it_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(main, ["segment", "scans", "-o", "out", "--ray", "local"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["Error: --ray needs ray, which is not installed: pip install 'covidseg[ray]'"]
