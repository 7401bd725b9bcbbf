"""A scanner's own series (4D-Lung, patient 113): objects are valid, and other readers find our voxels and numbers.

The series is too large for the repository: it is looked for in COVIDSEG_TEST_DATA, else in ../shared/data beside it.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from dicom_phantom import WHEN, phantom_result, report_of  # noqa: E402
from dicom_tools import dciodvfy_errors, run_tool  # noqa: E402

from covidseg_runtime import Segmenter  # noqa: E402
from covidseg_runtime.dicom.read_series import read_series  # noqa: E402
from covidseg_runtime.dicom.results import WantedObjects, make_results, write_results  # noqa: E402
from covidseg_runtime.dicom.source_series import SourceSeries  # noqa: E402
from covidseg_runtime.volume import Volume, to_orientation  # noqa: E402

DATA = Path(os.environ.get("COVIDSEG_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
SERIES = DATA / "dicom" / "4DLung-113" / "series"

pytestmark = [
    pytest.mark.full_scan,
    pytest.mark.skipif(not SERIES.is_dir(), reason=f"no series in {SERIES}; set COVIDSEG_TEST_DATA"),
]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Volume, result and folder of objects; the labels are what is as light as lung, and a box in it."""
    headers = [pydicom.dcmread(path) for path in sorted(SERIES.iterdir())]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    voxels = np.stack([header.pixel_array.astype(np.int16) - 1000 for header in headers]).T
    affine = np.diag([-0.9766, -0.9766, 3.0, 1.0])
    affine[:3, 3] = np.array([float(v) for v in headers[0].ImagePositionPatient]) * (-1, -1, 1)
    volume = Volume(voxels, affine)
    labels = np.zeros(voxels.shape, np.uint8, order="F")
    labels[:256, :, 20:][voxels[:256, :, 20:] < -500] = 2
    labels[256:, :, 20:][voxels[256:, :, 20:] < -500] = 1
    labels[300:350, 220:270, 40:55] = 3
    result = phantom_result(labels, volume)
    wanted = WantedObjects(("seg", "sr", "sc", "pdf"), lung_segments=True)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        made = make_results(volume, result, report_of(result), SourceSeries(tuple(headers)), wanted, when=WHEN)
    folder = tmp_path_factory.mktemp("objects")
    write_results(folder, made)
    return volume, result, folder, heard


def test_no_library_warns_of_a_value_of_the_patient(case) -> None:
    assert case[3] == []


def test_every_object_is_valid(case) -> None:
    for path in sorted(case[2].iterdir()):
        assert dciodvfy_errors(path) == [], path.name


def test_the_infection_comes_back_voxel_for_voxel(case) -> None:
    volume, result, folder, _ = case
    segment = highdicom.seg.segread(folder / "seg.dcm")
    read = segment.get_volume(segment_numbers=[1], combine_segments=True)
    to_grid = np.linalg.inv(volume.affine) @ np.diag([-1, -1, 1, 1]) @ read.affine
    found = np.argwhere(read.array) @ to_grid[:3, :3].T + to_grid[:3, 3]
    mask = np.zeros(volume.shape, bool)
    mask[tuple(np.rint(found).astype(int).T)] = True
    assert np.array_equal(mask, result.labels == 3)


def test_dcmqi_finds_our_voxels_and_our_affine(case, tmp_path: Path) -> None:
    volume, result, folder, _ = case
    arguments = ("--inputDICOM", folder / "seg.dcm", "--outputDirectory", tmp_path, "--prefix", "q", "-t", "nii")
    run_tool("segimage2itkimage", *arguments)
    for number, label in ((1, 3), (2, 1), (3, 2)):
        image = nibabel.load(tmp_path / f"q-{number}.nii.gz")
        assert np.count_nonzero(np.asanyarray(image.dataobj)) == np.count_nonzero(result.labels == label)
        assert np.allclose(image.affine[:3, :3], volume.affine[:3, :3], atol=1e-6)
        # Only its slices are there, so its first is one of ours.
        first = np.linalg.inv(volume.affine) @ image.affine[:, 3]
        assert np.allclose(first[:2], 0, atol=1e-4)
        assert abs(first[2] - round(first[2])) < 1e-4


def test_dcmqi_reads_our_measures(case, tmp_path: Path) -> None:
    _, result, folder, _ = case
    run_tool("tid1500reader", "--inputDICOM", folder / "sr.dcm", "--outputMetadata", tmp_path / "sr.json")
    infection, *_ = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    values = {item["quantity"]["CodeValue"]: float(item["value"]) for item in infection["measurementItems"]}
    assert values["118565006"] == result.measures.infection_volume_ml.whole
    assert values["112031"] == result.measures.mean_infection_hu
    assert values["PI"] == result.measures.infection_percent.whole
    assert values["VOXELS"] == 50 * 50 * 15


def test_the_objects_fit_their_study(case, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in (*sorted(SERIES.iterdir()), *sorted(case[2].iterdir()))))
    assert "Error" not in run_tool("dcentvfy", "-f", listed)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Volume:
    """The series as dcm2niix converts it to NIfTI."""
    folder = tmp_path_factory.mktemp("nifti")
    run_tool("dcm2niix", "-z", "n", "-f", "other", "-o", folder, SERIES)
    (found,) = folder.glob("*.nii")
    image = nibabel.load(found)
    return Volume(np.asanyarray(image.dataobj), image.affine)


def test_dcm2niix_sees_the_same_voxels_at_the_same_place(converted) -> None:
    volume, source = read_series(SERIES)
    theirs = to_orientation(converted, volume.orientation)
    assert np.array_equal(theirs.voxels, volume.voxels)
    assert np.allclose(theirs.affine, volume.affine, atol=1e-3)
    assert len(source.headers) == volume.shape[2]


def test_both_get_the_same_labels(converted) -> None:
    volume, _ = read_series(SERIES)
    with Segmenter.open(engine="openvino", device="cpu") as segmenter:
        ours, theirs = segmenter.segment(volume).labels, segmenter.segment(converted).labels
    turned = to_orientation(Volume(theirs, converted.affine), volume.orientation)
    assert (ours == 3).any()
    assert np.array_equal(turned.voxels, ours)


@pytest.mark.parametrize(
    "command", [("dcmcjpeg",), ("dcmcjpeg", "+el"), ("dcmcjpls",), ("dcmcrle",)], ids=lambda one: " ".join(one)
)
def test_what_dcmtk_compressed_is_the_same(tmp_path: Path, command: tuple[str, ...]) -> None:
    some = sorted(SERIES.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))[40:44]
    for index, path in enumerate(some):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "packed").mkdir(exist_ok=True)
        (tmp_path / "plain" / str(index)).write_bytes(path.read_bytes())
        run_tool(*command, path, tmp_path / "packed" / str(index))
    plain, packed = (read_series(tmp_path / name)[0] for name in ("plain", "packed"))
    assert np.array_equal(plain.voxels, packed.voxels)
    assert np.array_equal(plain.affine, packed.affine)
