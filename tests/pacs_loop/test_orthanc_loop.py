"""The closed loop on a real Orthanc: a scanner's series goes in, segmentation, report and picture come back beside it.

Orthanc, the node and every client run in a network namespace of their own. `make test-pacs` runs this; it needs root,
the Debian packages of .ci/install-pacs and the whole series of ../shared/data or COVIDSEG_TEST_DATA.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_tools import dciodvfy_errors, run_tool

DATA = Path(os.environ.get("COVIDSEG_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
SERIES = DATA / "dicom" / "4DLung-113" / "series"
ROOT = Path(__file__).parents[2]
HTTP, DICOM, NODE = 18042, 14242, 11112
DICOMWEB_PLUGIN = "libOrthancDicomWeb.so"


def has_namespaces() -> bool:
    """Whether this process may make a network of its own."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    return subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.pacs_loop,
    pytest.mark.skipif(not SERIES.is_dir(), reason=f"no series in {SERIES}; set COVIDSEG_TEST_DATA"),
    pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Orthanc is not installed: .ci/install-pacs"),
    pytest.mark.skipif(not has_namespaces(), reason="no network namespace can be made: it needs root"),
]


@dataclass
class Namespace:
    """A network that holds nothing but its own loopback."""

    pid: int

    def command(self, *command: object) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", *map(str, command)]

    def run(self, *command: object) -> bytes:
        done = subprocess.run(self.command(*command), capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str) -> Any:
        return json.loads(self.run("curl", "-sSf", f"http://127.0.0.1:{HTTP}{path}"))


@pytest.fixture(scope="module", params=["lua", "python", "stow"])
def loop(request, tmp_path_factory) -> Iterator[tuple[Namespace, Path]]:
    """Orthanc with our snippet, and our node beside it; results come back by C-STORE or, of the last, by STOW-RS."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "orthanc.json").write_text(json.dumps(configuration(folder, request.param)))
    starting = ["unshare", "-n", "bash", "-c", f"ip link set lo up; exec Orthanc {folder}/orthanc.json"]
    with (folder / "orthanc.log").open("wb") as log:
        orthanc = subprocess.Popen(starting, stdout=log, stderr=log)
    namespace = Namespace(orthanc.pid)
    try:
        wait(lambda: is_up(namespace))  # until then the process may still be in our own network
    except AssertionError:
        orthanc.kill()
        raise
    back = ("--stow", f"http://127.0.0.1:{HTTP}/dicom-web") if request.param == "stow" else ("--send-to", archive())
    arguments = ("pacs", "--queue", folder / "queue", "--port", NODE, "--settle", 2, *back)
    with (folder / "node.log").open("wb") as log:
        node = subprocess.Popen(namespace.command(sys.executable, "-m", "covidseg", *arguments), stderr=log, cwd=ROOT)
    try:
        wait(lambda: b"listening" in (folder / "node.log").read_bytes())
        namespace.run("storescu", "-aec", "ORTHANC", "+sd", "127.0.0.1", DICOM, SERIES)
        wait(lambda: len(namespace.get("/series")) == 4, 240)
        yield namespace, folder
    finally:
        node.send_signal(signal.SIGTERM)
        orthanc.terminate()
        assert node.wait(60) == 0
        orthanc.wait(60)


def archive() -> str:
    return f"ORTHANC@127.0.0.1:{DICOM}"


def configuration(folder: Path, script: str) -> dict[str, Any]:
    plugins = [next(Path("/usr").rglob(DICOMWEB_PLUGIN))]
    orders: dict[str, Any] = {"LuaScripts": [str(ROOT / "docs" / "orthanc" / "covidseg.lua")]}
    if script == "python":
        plugins.append(next(Path("/usr").rglob("libOrthancPython.so")))
        orders = {"PythonScript": str(ROOT / "docs" / "orthanc" / "covidseg_plugin.py")}
    return {
        **orders,
        "Name": "loop",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(one) for one in plugins],
        "HttpPort": HTTP,
        "DicomPort": DICOM,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "StableAge": 2,
        "OverwriteInstances": True,
        "AuthenticationEnabled": False,
        "DicomModalities": {"covidseg": ["COVIDSEG", "127.0.0.1", NODE]},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def is_up(namespace: Namespace) -> bool:
    command = namespace.command("curl", "-sf", f"http://127.0.0.1:{HTTP}/system")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def wait(is_so, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def objects(loop) -> dict[str, Path]:
    """What came back, by modality, fetched from Orthanc."""
    namespace, folder = loop
    found = {}
    for series in namespace.get("/series"):
        described = namespace.get(f"/series/{series}")
        modality = described["MainDicomTags"]["Modality"]
        if modality != "CT":
            (instance,) = described["Instances"]
            found[modality] = folder / f"{modality}.dcm"
            found[modality].write_bytes(
                namespace.run("curl", "-sSf", f"http://127.0.0.1:{HTTP}/instances/{instance}/file")
            )
    return found


def test_segmentation_report_and_picture_lie_beside_the_series(loop, objects) -> None:
    namespace, folder = loop
    assert sorted(objects) == ["OT", "SEG", "SR"]
    (study,) = namespace.get("/studies")
    assert len(namespace.get(f"/studies/{study}")["Series"]) == 4
    time.sleep(6)  # had a result come back as work, it would have settled and been answered by now
    assert len(namespace.get("/series")) == 4
    said = (folder / "node.log").read_text()
    assert said.count("answered with 3 objects") == 1
    source = pydicom.dcmread(next(SERIES.iterdir()), stop_before_pixels=True)
    assert str(source.PatientID) not in said


def test_each_object_is_valid(objects) -> None:
    assert {name: dciodvfy_errors(path) for name, path in objects.items()} == dict.fromkeys(objects, [])


def test_dcmqi_reads_back_what_the_command_finds_in_the_same_series(objects, tmp_path) -> None:
    """The label map that `covidseg segment` writes is the truth for voxels, mL and percentage."""
    command = [sys.executable, "-m", "covidseg", "segment", str(SERIES), "-o", str(tmp_path / "labels.nii.gz")]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    labels = nibabel.load(tmp_path / "labels.nii.gz")
    measures = json.loads((tmp_path / "labels.json").read_text())["measures"]
    prefix = ("--outputDirectory", tmp_path, "--prefix", "q", "-t", "nii")
    run_tool("segimage2itkimage", "--inputDICOM", objects["SEG"], *prefix)
    infected = np.asanyarray(labels.dataobj) == 3
    image = nibabel.load(tmp_path / "q-1.nii.gz")
    found = np.argwhere(np.asanyarray(image.dataobj) > 0)
    to_grid = np.linalg.inv(labels.affine) @ image.affine
    places = np.rint(found @ to_grid[:3, :3].T + to_grid[:3, 3]).astype(int)
    mask = np.zeros(infected.shape, bool)
    mask[tuple(places.T)] = True
    assert np.array_equal(mask, infected)
    run_tool("tid1500reader", "--inputDICOM", objects["SR"], "--outputMetadata", tmp_path / "sr.json")
    group, *_ = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    values = {item["quantity"]["CodeValue"]: float(item["value"]) for item in group["measurementItems"]}
    assert values["118565006"] == pytest.approx(measures["infection_volume_ml"]["whole"], abs=1e-6)
    assert values["PI"] == pytest.approx(measures["infection_percent"]["whole"], abs=1e-6)
    assert values["VOXELS"] == infected.sum()


def test_dicomweb_gives_the_pixels_that_were_sent(loop) -> None:
    namespace, _ = loop
    for path in sorted(SERIES.iterdir())[:3]:
        one = pydicom.dcmread(path)
        series = f"studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}"
        url = f"http://127.0.0.1:{HTTP}/dicom-web/{series}/instances/{one.SOPInstanceUID}"
        (told,) = json.loads(namespace.run("curl", "-sSf", "-H", "Accept: application/dicom+json", f"{url}/metadata"))
        assert told["00200032"]["Value"] == pytest.approx([float(value) for value in one.ImagePositionPatient])
        octets = "multipart/related; type=application/octet-stream"
        body = namespace.run("curl", "-sSf", "-H", f"Accept: {octets}", f"{url}/frames/1")
        assert one.PixelData in body
