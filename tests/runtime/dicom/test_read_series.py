"""The phantom written as DICOM files and read back: chosen, judged, ordered, decoded."""

import warnings
import zipfile
from datetime import date

import numpy as np
import pytest
from dicom_files import SLICES, compress, enhanced, image, save, series, write
from dicom_phantom import SERIES_UID, phantom_volume
from phantom import PHANTOM_SPACING_MM
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from covidseg_runtime.dicom.read_series import read_series
from covidseg_runtime.dicom.series_choice import list_series
from covidseg_runtime.dicom.source_series import SourceSeries
from covidseg_runtime.errors import VolumeError


def assert_is_phantom(volume):
    expected = phantom_volume()
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, expected.voxels)
    assert np.allclose(volume.affine, expected.affine)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda uid: uid.name,
)
def test_plain_syntaxes_give_the_phantom_whatever_the_order_of_files(tmp_path, syntax):
    order = np.random.default_rng(0).permutation(SLICES)
    volume, source = read_series(write(tmp_path / "s", series(order), syntax))
    assert_is_phantom(volume)
    assert [int(one.InstanceNumber) for one in source.headers] == list(range(1, SLICES + 1))
    assert source.series_uid == SERIES_UID
    assert not any("PixelData" in one for one in source.headers)


COMPRESSED = {
    "JPEG Lossless": "JPEGLosslessProcess14",
    "JPEG Lossless, first order": "JPEGLosslessProcess14_1",
    "JPEG-LS": "JPEGLSLossless",
    "JPEG 2000": "JPEG2000Lossless",
    "RLE": "RLELossless",
}


@pytest.mark.parametrize("name", COMPRESSED.values(), ids=COMPRESSED)
def test_lossless_syntaxes_give_the_phantom(tmp_path, name):
    folder = write(tmp_path / "s", series())
    compress(folder, name)
    volume, _ = read_series(folder)
    assert_is_phantom(volume)


def test_a_zip_is_read_where_it_lies(tmp_path):
    folder = write(tmp_path / "s", series())
    compress(folder, "RLELossless")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("README", "no DICOM")
        for path in folder.iterdir():
            archive.write(path, f"../../{path.name}")  # a name that must lead nowhere
    assert_is_phantom(read_series(tmp_path / "s.zip")[0])
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s.zip"}


def test_frames_of_an_enhanced_ct_are_put_in_order(tmp_path):
    order = list(range(SLICES))[::-1]
    volume, source = read_series(save(enhanced(order), tmp_path / "IM0001"))
    assert_is_phantom(volume)
    assert source.frame_of_slice == tuple(order)
    assert len(source.headers) == 1


def test_slices_may_have_rescalings_of_their_own(tmp_path):
    images = [image(k, intercept=-1024 - 10 * k) for k in range(SLICES)]
    assert_is_phantom(read_series(write(tmp_path / "s", images))[0])


def test_signed_values_of_12_bits_and_padding(tmp_path):
    images = series()
    for k, one in enumerate(images):
        hu = phantom_volume().voxels[:, :, k].T
        one.BitsStored, one.HighBit, one.PixelRepresentation, one.RescaleIntercept = 12, 11, 1, 0
        stored = np.clip(hu, -2048, 2047).astype(np.int16).view(np.uint16) & 0x0FFF
        stored[0, 0] = 0x0800 | 0xA000  # padding, with bits above that belong to no pixel
        one.PixelData, one.PixelPaddingValue = stored.tobytes(), -2048
    volume, _ = read_series(write(tmp_path / "s", images))
    assert (volume.voxels[0, 0] == -1024).all()
    assert np.array_equal(volume.voxels[1:], np.clip(phantom_volume().voxels[1:], -2048, 2047))


def test_values_beyond_int16_become_float(tmp_path):
    images = series()
    images[0].RescaleIntercept = 34_000
    assert read_series(write(tmp_path / "s", images))[0].voxels.dtype == np.float32


def test_localizers_other_series_and_files_that_are_no_dicom_are_passed_over(tmp_path):
    localizer, other = image(0), [image(k) for k in range(8, 12)]
    localizer.ImageType, localizer.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.3.99"
    for k, one in enumerate(other):
        one.SeriesInstanceUID, one.SOPInstanceUID = "1.2.3.5", f"1.2.3.5.{k}"
    folder = write(tmp_path / "s", [localizer, *series(), *other])
    (folder / "notes.txt").write_text("no DICOM")
    assert_is_phantom(read_series(folder)[0])
    assert read_series(folder, series_uid="1.2.3.5")[0].shape[2] == 4
    assert [(one.images, one.problem) for one in list_series(folder)] == [(SLICES, None), (4, None)]
    with pytest.raises(VolumeError, match=r"no series 1\.2\.3\.6; there are"):
        read_series(folder, series_uid="1.2.3.6")


def test_equally_good_series_are_named_and_not_guessed(tmp_path):
    twin = series()
    for k, one in enumerate(twin):
        one.SeriesInstanceUID, one.SOPInstanceUID = "1.2.3.5", f"1.2.3.5.{k}"
    with pytest.raises(VolumeError, match=r"2 series are equally good: .*--series UID"):
        read_series(write(tmp_path / "s", [*series(), *twin]))


def without_patient(images):
    for one in images:
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyID", "AccessionNumber"):
            del one[keyword]
    return images


def test_absent_patient_data_are_no_obstacle(tmp_path):
    assert_is_phantom(read_series(write(tmp_path / "s", without_patient(series())))[0])


def test_the_same_instance_twice_counts_once(tmp_path):
    assert_is_phantom(read_series(write(tmp_path / "s", [*series(), image(3)]))[0])


def change(index, **values):
    images = series()
    for keyword, value in values.items():
        setattr(images[index], keyword, value)
    return images


def tilted(degrees):
    images = series()
    for k, one in enumerate(images):
        x, y, z = (float(value) for value in one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y + np.tan(np.radians(degrees)) * PHANTOM_SPACING_MM[0] * k, z]
    return images


def coronal():
    images = series()
    for one in images:
        one.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    return images


def of_class(uid, modality):
    images = series()
    for one in images:
        one.SOPClassUID, one.Modality = uid, modality
    return images


REFUSED = {
    "a missing slice": (series([k for k in range(SLICES) if k != 5]), r"slices are missing: 1 after -242\.00 mm"),
    "a double slice": (
        [*series(), *change(3, SOPInstanceUID="1.2.3.77")[3:4]],
        "Different slices lie at one place",
    ),
    "uneven gaps": (change(-1, ImagePositionPatient=[-31.0, -17.0, 0.0]), "slices are missing|unevenly spaced"),
    "mixed orientations": (change(2, ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), "several orientations"),
    "mixed spacings": (change(2, PixelSpacing=[1.75, 1.75]), "several pixel spacings"),
    "tilt": (tilted(15), r"tilted by 15\.0°.*--shear-tilt"),
    "no CT": (of_class(MRImageStorage, "MR"), "modality MR, no CT images"),
    "coronal": (coronal(), "not axial"),
    "two slices": (series([0, 1]), "2 slices, 3 or more"),
    "no position": (change(2, ImagePositionPatient=None), "does not say where it lies|impossible"),
    "an impossible size": (change(0, Rows=60000, Columns=60000), "several sizes"),
    "colour": (change(0, PhotometricInterpretation="RGB"), "MONOCHROME2 is expected"),
    "too few pixels": (change(4, PixelData=b"\0\0"), "2 bytes of pixels where"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(tmp_path, name):
    images, sentence = REFUSED[name]
    with pytest.raises(VolumeError, match=sentence) as caught:
        read_series(write(tmp_path / "s", images))
    assert "Muster" not in str(caught.value)
    assert "PID" not in str(caught.value)


def test_a_tilt_is_undone_if_asked_for(tmp_path):
    upright = phantom_volume()
    volume, _ = read_series(write(tmp_path / "s", tilted(15)), shear_tilt=True)
    assert np.allclose(volume.affine, upright.affine)
    shift = np.tan(np.radians(15)) * PHANTOM_SPACING_MM[0] / PHANTOM_SPACING_MM[1]
    k = 4
    expected = np.interp(np.arange(upright.shape[1]) - k * shift, np.arange(upright.shape[1]), upright.voxels[9, :, k])
    inner = slice(int(k * shift) + 2, None)
    assert np.abs(volume.voxels[9, inner, k] - expected[inner]).max() <= 1


def test_an_empty_folder_and_a_damaged_file(tmp_path):
    with pytest.raises(VolumeError, match="holds no DICOM file"):
        read_series(tmp_path)
    folder = write(tmp_path / "s", series())
    first = folder / "IM0000"
    first.write_bytes(first.read_bytes()[:200])
    with pytest.raises(VolumeError, match="IM0000|missing"):
        read_series(folder)


def test_a_bomb_ends_in_the_child(tmp_path):
    """Each slice promises 512×512 and holds a stream of the phantom's size."""
    folder = write(tmp_path / "s", series(range(4)))
    compress(folder, "JPEG2000Lossless")
    for path in folder.iterdir():
        content = path.read_bytes()
        rows = content.index(b"\x28\x00\x10\x00US\x02\x00") + 8
        columns = content.index(b"\x28\x00\x11\x00US\x02\x00") + 8
        changed = bytearray(content)
        changed[rows : rows + 2] = changed[columns : columns + 2] = (512).to_bytes(2, "little")
        path.write_bytes(changed)
    with pytest.raises(VolumeError, match="cannot be decoded|other pixels"):
        read_series(folder)


@pytest.mark.parametrize("name", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1", "RLELossless"])
def test_a_truncated_stream_is_refused(tmp_path, name):
    folder = write(tmp_path / "s", series(range(4)))
    compress(folder, name)
    path = folder / "IM0001"
    path.write_bytes(path.read_bytes()[:-120])
    with pytest.raises(VolumeError):
        read_series(folder)


@pytest.mark.parametrize(
    ("dates", "day"),
    [
        ({"AcquisitionDate": "20210304", "SeriesDate": "20210305"}, date(2021, 3, 4)),
        ({"AcquisitionDate": "", "SeriesDate": "20210305"}, date(2021, 3, 5)),
        ({"AcquisitionDate": "0000", "SeriesDate": "", "StudyDate": "20210306"}, date(2021, 3, 6)),
        ({"StudyDate": ""}, None),
    ],
)
def test_the_day_of_the_acquisition_is_told_by_the_nearest_date(dates, day):
    header = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of what is no date
        for keyword, value in dates.items():
            setattr(header, keyword, value)
    assert SourceSeries((header,)).acquisition_date == day
