"""`covidseg segment DIR`: exit codes of a batch, and whole files whatever happens to the process."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine, tiny_model, write_tiny_bundle

from covidseg.cli import main

ROOT = Path(__file__).parents[2]
KILLS = 10
LONGEST_RUN_S = 120


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, without a configuration file, with three scans."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    _put_scans(tmp_path / "scans", 3)
    return tmp_path


def _put_scans(folder: Path, count: int) -> None:
    """Scans in two folders, the n-th shifted by n voxels."""
    for number in range(count):
        path = folder / ("ward" if number % 2 else "") / f"p{number:02}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        hu = np.roll(phantom_hu(), -(number % 8), axis=1)
        nibabel.save(nibabel.Nifti1Image(hu, spl_affine(PHANTOM_SPACING_MM)), path)


def _segment(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["segment", *map(str, arguments)])


def _lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def test_a_folder_becomes_a_folder(here: Path, tiny_bundle: Path) -> None:
    result = _segment("scans", "-o", "out", "--model", tiny_bundle, "--engine", "onnxruntime", "--quality", "fast")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "scans              3",
        "done before        0",
        "segmented          3",
        "failed             0",
        "written            out",
        "Research use only. Not a medical device.",
    ]
    first, second, *each = result.stderr.splitlines()
    assert first == (
        "tiny 1.2.3 on onnxruntime f32 (CPUExecutionProvider, cpu, threads auto, batch 1), "
        "quality fast (step 1, tiles 16x16x16)"
    )
    assert second == "3 scans, 0 done before"
    assert [line.rpartition(", ")[0] for line in each] == [
        "[1/3] p00.nii.gz: infected lung 2.9 %",
        "[2/3] p02.nii.gz: infected lung 2.9 %",
        "[3/3] ward/p01.nii.gz: infected lung 2.9 %",
    ]
    labels = np.asarray(nibabel.load(here / "out" / "ward" / "p01_covidseg.nii.gz").dataobj)
    np.testing.assert_array_equal(labels, np.roll(phantom_labels(), -1, axis=1))


def test_a_bad_scan_is_exit_4_and_the_others_are_done(here: Path, tiny_bundle: Path) -> None:
    (here / "scans" / "p02.nii.gz").write_bytes(b"no scan")
    result = _segment("scans", "-o", "out", "--model", tiny_bundle, "--json")
    assert result.exit_code == 4
    summary = json.loads(result.stdout)
    assert (summary["scans"], summary["segmented"], summary["failed"]) == (3, 2, 1)
    assert summary["settings"]["model"] == "tiny 1.2.3"
    assert "[2/3] p02.nii.gz: failed: p02.nii.gz is not a whole gzip file" in result.stderr
    assert result.stderr.splitlines()[-1] == "1 of 3 scans failed"
    assert summary["manifest"] == "out/manifest.jsonl"
    assert {line["scan"]: line["exit_code"] for line in _lines(here / "out")}["p02.nii.gz"] == 3


def test_the_same_command_goes_on_and_overwrite_begins_anew(here: Path, tiny_bundle: Path) -> None:
    command = ("scans", "-o", "out", "--model", tiny_bundle)
    assert _segment(*command).exit_code == 0
    _put_scans(here / "scans", 4)
    again = _segment(*command)
    assert "4 scans, 3 done before" in again.stderr
    assert "segmented          1" in again.stdout
    assert "segmented          4" in _segment(*command, "--overwrite").stdout


def test_a_window_is_that_of_every_scan_and_another_one_does_them_again(here: Path, tiny_bundle: Path) -> None:
    for path in (here / "scans").rglob("*.nii.gz"):
        image = nibabel.load(path)
        levels = np.rint((np.asarray(image.dataobj) + 1250) / 1500 * 255).astype(np.uint8)
        levels[0, 0, :20] = np.arange(219, 239)  # more grey levels than a label map has
        nibabel.save(nibabel.Nifti1Image(levels, image.affine), path)
    command = ("scans", "-o", "out", "--model", tiny_bundle)
    assert _segment(*command).exit_code == 4
    assert all("give it with --window LOW,HIGH" in line["error"] for line in _lines(here / "out"))
    assert _segment(*command, "--window=-1250,250").exit_code == 0
    labels = np.asarray(nibabel.load(here / "out" / "ward" / "p01_covidseg.nii.gz").dataobj)
    np.testing.assert_array_equal(labels, np.roll(phantom_labels(), -1, axis=1))
    last = _lines(here / "out")[-1]
    assert last["warnings"][0].startswith("The scan was given as grey levels of a window from -1250 to 250 HU")
    assert last["settings"]["window_hu"] == [-1250, 250]
    assert "3 scans, 3 done before" in _segment(*command, "--window=-1250,250").stderr
    assert "3 scans, 0 done before" in _segment(*command, "--window=-1200,250").stderr


def test_parts_share_the_scans(here: Path, tiny_bundle: Path) -> None:
    for part in range(2):
        command = ("scans", "-o", "out", "--model", tiny_bundle, "--num-parts", 2, "--part-id", part)
        assert _segment(*command).exit_code == 0
    assert "3 scans, 3 done before" in _segment("scans", "-o", "out", "--model", tiny_bundle).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs -o, the folder for the results"),
        (["-o", "scans/p00.nii.gz"], "is a file; a folder of scans needs a folder"),
        (["-o", "scans/out"], "lie within each other"),
        (["-o", "out", "--truth", "scans/p00.nii.gz"], "--truth is for one scan"),
        (["-o", "out", "--preview", "p.png"], "--preview is for one scan"),
        (["-o", "out", "--report", "r.json"], "--report is for one scan"),
        (["-o", "out", "--num-parts", "2", "--part-id", "2"], "part 2 of 2"),
        (["-o", "out", "--deterministic", "--engine", "openvino"], "--deterministic computes with --engine"),
    ],
)
def test_wrong_usage_is_exit_2_and_nothing_is_written(
    here: Path, tiny_bundle: Path, arguments: list[str], message: str
) -> None:
    result = _segment("scans", "--model", tiny_bundle, *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (here / "out").exists()


def test_a_folder_without_scans_is_exit_3(here: Path, tiny_bundle: Path) -> None:
    (here / "empty").mkdir()
    result = _segment("empty", "-o", "out", "--model", tiny_bundle)
    assert result.exit_code == 3
    assert "empty holds no scan" in result.stderr
    assert not (here / "out").exists()


def test_the_examples_of_the_documentation_run(here: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVIDSEG_SEGMENT_MODEL", str(tiny_bundle))
    page = (ROOT / "docs" / "folders.md").read_text(encoding="utf-8")
    commands = [line for line in re.findall(r"^covidseg (segment .*)$", page, re.MULTILINE) if " --ray " not in line]
    assert len(commands) >= 5
    for command in commands:
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, (command, result.output)
    assert set(_lines(here / "results")[-1]) == set(re.findall(r"`(\w+)`", "".join(_first_column(page))))


def _first_column(page: str) -> list[str]:
    """The fields in the table of the manifest."""
    table = page.partition("## manifest.jsonl")[2].partition("## Exit codes")[0]
    return re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)


# A process of its own

# `covidseg`, which kills itself at a chosen call of a function of os, so that it always falls into the same moment; of
# what was to be written, half is. Arguments: function, call, then those of covidseg.
KILLS_ITSELF = """
import os, signal, sys
from covidseg.cli import main

name, call = sys.argv[1], int(sys.argv[2])
original, calls = getattr(os, name), []

def killed(*args, **kwargs):
    calls.append(name)
    if len(calls) == call:
        if name == "write":
            original(args[0], args[1][: len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(os, name, killed)
main(sys.argv[3:])
"""


class Child:
    """`covidseg segment` on a folder, in a process of its own."""

    def __init__(self, bundle: Path, source: Path, output: Path, python: tuple[str, ...] = ("-m", "covidseg")) -> None:
        command = [sys.executable, *python, "segment", source, "-o", output, "--model", bundle]
        self.process = subprocess.Popen(
            [*map(str, command), "--engine", "onnxruntime", "--threads", "1"],
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def wait_for(self, beginning: str) -> None:
        """Read its messages up to one."""
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if beginning in line:
                return
        raise AssertionError(f"no {beginning!r} in {self.lines}")

    def end(self) -> int:
        """Its exit code, when it has ended by itself."""
        self.lines.extend(self.process.stderr.read().splitlines())
        self.process.stderr.close()
        return self.process.wait(LONGEST_RUN_S)


def _environment() -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "runtime"))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """Twelve scans, a bundle, and what a run that nothing disturbed makes of them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    bundle = write_tiny_bundle(folder / "tiny", tiny_model())
    _put_scans(folder / "scans", 12)
    child = Child(bundle, folder / "scans", folder / "out")
    child.wait_for("12 scans, 0 done before")
    start = time.monotonic()
    assert child.end() == 0, child.lines
    return folder, bundle, time.monotonic() - start


def _label_maps(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*_covidseg.nii.gz")}


def _without_times(output: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Reports, and lines of the manifest; no scan may have two."""
    reports = {}
    for path in output.rglob("*_covidseg.json"):
        report = json.loads(path.read_bytes())
        del report["timings_s"]
        reports[path.relative_to(output).as_posix()] = report
    lines = {}
    for line in _lines(output):
        del line["finished"], line["seconds"], line["outputs"]["report"]["sha256"]
        assert line["scan"] not in lines
        lines[line["scan"]] = line
    return reports, lines


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(undisturbed, tmp_path: Path) -> None:
    folder, bundle, seconds = undisturbed
    expected, output = _label_maps(folder / "out"), tmp_path / "out"
    moments, kills = random.Random(7), 0
    while kills < KILLS:
        child = Child(bundle, folder / "scans", output)
        child.wait_for("done before")
        left = 12 - int(re.search(r", (\d+) done", child.lines[-1])[1])
        time.sleep(moments.uniform(0, seconds * max(left, 1) / 12))
        child.process.kill()
        kills += child.end() == -signal.SIGKILL
        assert _label_maps(output).items() <= expected.items(), "a file under a final name is whole"
        for report in output.rglob("*.json"):
            json.loads(report.read_bytes())
        if left == 0:
            shutil.rmtree(output)
    last = Child(bundle, folder / "scans", output)
    assert last.end() == 0, last.lines
    assert _label_maps(output) == expected
    assert _without_times(output) == _without_times(folder / "out")
    assert not [path for path in output.rglob(".*") if path.is_file()]


def test_killed_within_the_writing_of_each_file_it_goes_on_to_the_same_bytes(undisturbed, tmp_path: Path) -> None:
    folder, bundle, _ = undisturbed
    expected, output = _label_maps(folder / "out"), tmp_path / "out"
    for place, unfinished_files, whole_lines, torn_lines in (
        (("fsync", "1"), 1, 0, 0),  # the report is written beside its name
        (("replace", "2"), 1, 0, 0),  # the report has its name, the label map is beside its
        (("write", "2"), 0, 1, 1),  # two scans are written, and half of the second's line
        (("fsync", "5"), 0, 2, 0),  # the second's line is written, and not yet synced
    ):
        child = Child(bundle, folder / "scans", output, ("-c", KILLS_ITSELF, *place))
        assert child.end() == -signal.SIGKILL, child.lines
        assert _label_maps(output).items() <= expected.items()
        assert len([path for path in output.rglob(".*") if path.is_file()]) == unfinished_files, place
        *whole, torn = (output / "manifest.jsonl").read_bytes().split(b"\n")
        assert (len(whole), len(torn) > 0) == (whole_lines, torn_lines), place
    last = Child(bundle, folder / "scans", output)
    assert last.end() == 0, last.lines
    assert _label_maps(output) == expected
    assert _without_times(output) == _without_times(folder / "out")
    assert not [path for path in output.rglob(".*") if path.is_file()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_130_and_a_last_line(undisturbed, tmp_path: Path, number: signal.Signals) -> None:
    folder, bundle, _ = undisturbed
    child = Child(bundle, folder / "scans", tmp_path / "out")
    child.wait_for("[1/12]")
    child.process.send_signal(number)
    assert child.end() == 130, child.lines
    done = len(_lines(tmp_path / "out"))
    assert child.lines[-1] == f"Interrupted: {12 - done} of 12 scans are left; the same command goes on."
    assert len(_label_maps(tmp_path / "out")) == done
    again = Child(bundle, folder / "scans", tmp_path / "out")
    assert again.end() == 0
    assert _without_times(tmp_path / "out") == _without_times(folder / "out")


DISK = """
set -e
mount -t tmpfs -o size=28k tmpfs {out}
set +e
{command}; echo "full $?"
mount -o remount,ro {out}; {command}; echo "read-only $?"
mount -o remount,rw,size=4m {out}; {command}; echo "mended $?"
cp -r {out} {copy}
"""


def test_a_full_disk_and_a_read_only_one_end_it_and_it_goes_on_when_they_are_mended(
    undisturbed, tmp_path: Path
) -> None:
    """On a real file system of 28 KiB, where this machine lets a test mount one."""
    folder, bundle, _ = undisturbed
    out, copy = tmp_path / "out", tmp_path / "copy"
    out.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:  # noqa: S603, S607
        pytest.skip("this machine gives no mount namespace")
    command = f"{sys.executable} -m covidseg segment {folder / 'scans'} -o {out} --model {bundle} --engine onnxruntime"
    command += " --threads 1"  # as undisturbed: the report tells them
    script = DISK.format(out=out, copy=copy, command=command)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=LONGEST_RUN_S,
        check=False,
    )
    codes = re.findall(r"^(?:full|read-only|mended) \d+$", done.stdout, re.MULTILINE)
    assert codes == ["full 1", "read-only 1", "mended 0"], done
    assert "No space left on device" in done.stderr
    assert "Read-only file system" in done.stderr
    assert re.search(r"give another place\. \d+ of 12 scans are left; the same command goes on\.", done.stderr)
    assert _label_maps(copy) == _label_maps(folder / "out")
    assert _without_times(copy) == _without_times(folder / "out")
