"""Picture and page show the overlay, say that they are research, and name no patient."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from dicom_phantom import PATIENT_ID, WHEN, phantom_result, phantom_series, phantom_volume, report_of  # noqa: E402
from dicom_tools import run_tool  # noqa: E402
from PIL import Image  # noqa: E402

from covidseg_runtime.dicom.results import ResultObject, WantedObjects, make_results, write_results  # noqa: E402
from covidseg_runtime.preview import render_preview  # noqa: E402


def object_of(kind: str, **changes) -> ResultObject:
    result = phantom_result()
    report = {**report_of(result), **changes}
    (made,) = make_results(phantom_volume(), result, report, phantom_series(), WantedObjects((kind,)), when=WHEN)
    return made


def dataset_of(kind: str, **changes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(object_of(kind, **changes).content))


def test_the_secondary_capture_is_the_preview_below_a_burned_in_banner() -> None:
    dataset = dataset_of("sc")
    assert dataset.BurnedInAnnotation == "YES"
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
    assert dataset.Laterality == ""
    assert list(dataset.PatientOrientation) == ["L", "P"]
    assert dataset.PhotometricInterpretation == "RGB"
    pixels = dataset.pixel_array
    preview = np.asarray(Image.open(io.BytesIO(render_preview(phantom_volume(), phantom_result().labels))))
    banner = pixels[: -len(preview)]
    assert np.array_equal(pixels[-len(preview) :, : preview.shape[1]], preview)
    assert (banner[:30].reshape(-1, 3) == (255, 90, 70)).all(axis=1).any()


def test_long_warnings_do_not_widen_the_picture() -> None:
    assert dataset_of("sc", limits="word " * 400).Columns == dataset_of("sc").Columns


def test_the_page_is_a_whole_pdf_of_one_page() -> None:
    dataset = dataset_of("pdf")
    document = dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength]
    assert dataset.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert document.startswith(b"%PDF-")
    assert document.rstrip().endswith(b"%%EOF")
    assert b"/Count 1" in document
    assert b"20210304050607" in document
    assert len(dataset.SourceInstanceSequence) == 28


def test_a_page_with_many_warnings_still_has_its_picture() -> None:
    full = dataset_of("pdf", warnings=["word " * 100] * 30)
    assert full.EncapsulatedDocumentLength > 20_000


def test_no_picture_names_the_patient() -> None:
    """The words of the page are pixels; its own metadata is looked at here."""
    dataset = dataset_of("pdf")
    assert dataset.BurnedInAnnotation == "NO"
    for secret in (b"Muster", PATIENT_ID.encode(), b"19500102"):
        assert secret not in dataset.EncapsulatedDocument


def test_dcmtk_takes_the_page_out_again(tmp_path: Path) -> None:
    (path,) = write_results(tmp_path, [object_of("pdf")])
    run_tool("dcm2pdf", path, tmp_path / "page.pdf")
    dataset = dataset_of("pdf")
    assert (tmp_path / "page.pdf").read_bytes() == dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength]
