"""Told apart without a library: NIfTI, a DICOM series, files for SimpleITK, folders of scans."""

import zipfile

import pytest

from covidseg_runtime.scan_kind import scan_kind

DICOM = b"\0" * 128 + b"DICM" + b"\2\0\0\0"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("scan.nii.gz", b"", "nifti"),
        ("SCAN.NII", DICOM, "nifti"),
        ("scan.mha", b"", "itk"),
        ("scan.nrrd", b"NRRD0004", "itk"),
        ("IM0001", DICOM, "dicom"),
        ("IM0001.dcm", DICOM, "dicom"),
        ("notes.txt", b"DICM" + b" " * 200, "nifti"),
        ("short", b"DICM", "nifti"),
    ],
)
def test_a_file(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    assert scan_kind(tmp_path / name) == kind


def test_a_zip_may_hold_a_series(tmp_path):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        archive.writestr("IM0001", DICOM)
    assert scan_kind(tmp_path / "study.zip") == "dicom"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["DICOM/1/IM0001", "README"], "dicom"),
        (["a.nii.gz", "b.nii.gz"], "folder"),
        (["IM0001", "below/z.nii.gz"], "folder"),
        ([], "folder"),
        (["README"], "folder"),
    ],
)
def test_a_folder(tmp_path, files, kind):
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DICOM if path.name.startswith("IM") else b"text")
    assert scan_kind(tmp_path) == kind
