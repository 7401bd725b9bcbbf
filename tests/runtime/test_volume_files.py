"""Hostile and unsuitable files: one sentence, nothing written; sound files come back as they were."""

import contextlib
import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covidseg_runtime.errors import OutputError, SettingsError, VolumeError
from covidseg_runtime.spooling import Spool
from covidseg_runtime.volume_files import (
    read_label_map,
    read_volume,
    write_bytes_atomic,
    write_label_map,
    write_probability_map,
)

SHAPE = (6, 7, 8)
AFFINE = np.array([[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2.0, -30], [0, 0, 0, 1]])


def ct(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(0).integers(-1000, 400, shape).astype(dtype)


def saved(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def raw(tmp_path):
    """Bytes of a sound, uncompressed file."""
    return bytearray(saved(tmp_path / "sound.nii", ct()).read_bytes())


def patched(raw, offset, form, *values):
    struct.pack_into(form, raw, offset, *values)
    return raw


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII", ".NII.GZ"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_a_sound_ct_comes_back(tmp_path, ending, dtype):
    volume = read_volume(saved(tmp_path / f"scan{ending}", ct(dtype=dtype)))
    assert np.array_equal(volume.voxels, ct())
    assert np.allclose(volume.affine, AFFINE)
    assert volume.spacing_mm == (1.5, 1.5, 2.0)
    assert volume.orientation == "LPS"


def test_a_path_may_be_text(tmp_path):
    path = str(saved(tmp_path / "scan.nii.gz", ct()))
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, ct())
    labels = (ct() > 0).astype(np.uint8)
    written = str(tmp_path / "labels.nii.gz")
    write_label_map(written, labels, volume)
    assert np.array_equal(read_label_map(written).voxels, labels)
    write_probability_map(written, labels * 255, volume)
    assert np.allclose(nib.load(written).get_fdata(), labels)
    with pytest.raises(VolumeError, match=r"scan\.txt ends neither in \.nii nor in \.nii\.gz"):
        read_volume(str(tmp_path / "scan.txt"))


def test_int16_stays_int16_and_a_shift_is_applied(tmp_path):
    image = nib.Nifti1Image(ct() + 1024, AFFINE)
    image.header.set_slope_inter(1, -1024)
    path = tmp_path / "shifted.nii"
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    patched(raw, 112, "<ff", 1.0, -1024.0)
    raw[352:] = (ct() + 1024).astype("<i2").tobytes(order="F")
    patched(raw, 70, "<hh", 4, 16)
    path.write_bytes(raw)
    voxels = read_volume(path).voxels
    assert voxels.dtype == np.int16
    assert np.array_equal(voxels, ct())


def test_big_endian_is_read(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(ct(), AFFINE, header)
    nib.save(image, tmp_path / "big.nii")
    assert np.array_equal(read_volume(tmp_path / "big.nii").voxels, ct())


@pytest.mark.parametrize(
    ("offset", "form", "values", "message"),
    [
        (40, "<8h", (2, 6, 7, 1, 1, 1, 1, 1), "2 dimensions"),
        (40, "<8h", (4, 6, 7, 4, 2, 1, 1, 1), "4 dimensions"),
        (40, "<8h", (3, 32767, 32767, 32767, 1, 1, 1, 1), "voxels; 1 to"),
        (40, "<8h", (3, 6, -7, 8, 1, 1, 1, 1), "voxels; 1 to"),
        (40, "<8h", (3, 60, 70, 80, 1, 1, 1, 1), "promises"),
        (70, "<hh", (128, 24), "not colours"),
        (70, "<hh", (32, 64), "not colours"),
        (70, "<hh", (999, 16), "unknown NIfTI data type"),
        (70, "<hh", (4, 32), "bits do not fit"),
        (76, "<4f", (1, 0, 1, 1), "spacing"),
        (76, "<4f", (1, float("nan"), 1, 1), "spacing"),
        (76, "<4f", (1, 1, 1, 500), "spacing"),
        (108, "<f", (float("nan"),), "voxels begin at byte"),
        (108, "<f", (1e9,), "voxels begin at byte"),
        (112, "<ff", (float("nan"), 0), "scales its values"),
        (112, "<ff", (1, float("inf")), "scales its values"),
        (280, "<4f", (float("nan"), 0, 0, 0), "affine"),
        (280, "<4f", (0, 0, 0, 0), "affine"),
        (280, "<8f", (1, 1, 0, 0, 1, 1, 0, 0), "singular"),
        (252, "<hh", (0, 0), "neither sform nor qform"),
        (344, "<4s", (b"nope",), "not a single-file NIfTI"),
        (0, "<i", (12345,), "not a single-file NIfTI"),
    ],
)
def test_a_wrong_header_is_one_sentence(tmp_path, raw, offset, form, values, message):
    path = tmp_path / "wrong.nii"
    path.write_bytes(patched(raw, offset, form, *values))
    with pytest.raises(VolumeError, match=message) as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "notes.nii"
    path.write_text("this is no scan " * 100)
    with pytest.raises(VolumeError, match="not a single-file NIfTI"):
        read_volume(path)


@pytest.mark.parametrize("kept", [10, 200, 500])
def test_truncated_gzip_is_refused(tmp_path, raw, kept):
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw))[:kept])
    with pytest.raises(VolumeError):
        read_volume(path)


def test_text_named_gz_is_refused(tmp_path):
    path = tmp_path / "text.nii.gz"
    path.write_text("no gzip at all")
    with pytest.raises(VolumeError, match="not a whole gzip file"):
        read_volume(path)


@pytest.mark.parametrize("name", ["none.nii.gz", "scan.dcm", "folder.nii"])
def test_missing_files_wrong_endings_and_folders_are_refused(tmp_path, name):
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(VolumeError):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.where(ct() > 0, 1, 0).astype(np.uint8), "looks like a label map"),
        (np.linspace(0, 1, 336).reshape(SHAPE).astype(np.float32), "nothing as light as lung"),
        (np.arange(336).reshape(SHAPE).astype(np.int16), "nothing as light as lung"),
        (np.full(SHAPE, np.nan, np.float32), "not finite"),
        (np.full(SHAPE, -1024, np.int16), "nothing but air"),
        (ct(dtype=np.float32) * 1e6, "Hounsfield units"),
    ],
)
def test_values_that_are_no_hounsfield_units_are_refused(tmp_path, array, message):
    with pytest.raises(VolumeError, match=message):
        read_volume(saved(tmp_path / "scan.nii.gz", array))


WINDOW_HU = (-1250, 250)


def grey_levels(dtype=np.int16):
    """The CT as [-1250, 250] HU scaled to 0-255."""
    return np.rint((np.clip(ct(), *WINDOW_HU) + 1250) / 1500 * 255).astype(dtype)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.dtype(">i2"), np.float32, np.float64])
@pytest.mark.parametrize("is_spooled", [False, True])
def test_grey_levels_of_a_window_become_hounsfield_units(tmp_path, ending, dtype, is_spooled):
    path = saved(tmp_path / f"scan{ending}", grey_levels(dtype))
    before = path.read_bytes()
    volume = read_volume(path, spool=Spool(tmp_path, from_mib=0) if is_spooled else None, window=WINDOW_HU)
    assert volume.voxels.dtype == np.int16
    # A level is 1500 / 255 = 5.9 HU, so that no value is more than half of it and half of a rounding off.
    assert np.abs(volume.voxels - np.clip(ct(), *WINDOW_HU)).max() <= 3
    assert np.array_equal(volume.voxels, np.rint(grey_levels(np.float64) / 255 * 1500 - 1250))
    assert volume.window_hu == WINDOW_HU
    assert volume.spacing_mm == (1.5, 1.5, 2.0)
    assert path.read_bytes() == before


def test_the_ends_of_the_window_are_the_darkest_and_the_brightest_level(tmp_path):
    levels = grey_levels(np.uint8)
    levels[0, 0, :3] = 0, 51, 255
    volume = read_volume(saved(tmp_path / "scan.nii.gz", levels), window=(-1000, 400))
    assert volume.voxels[0, 0, :3].tolist() == [-1000, -720, 400]


def test_a_scan_in_hounsfield_units_has_no_window(tmp_path):
    assert read_volume(saved(tmp_path / "scan.nii.gz", ct())).window_hu is None


@pytest.mark.parametrize(
    ("array", "window", "message"),
    [
        (ct(), WINDOW_HU, r"values from -\d+ to \d+; with a window, grey levels from 0 to 255 are expected"),
        (np.where(ct() == ct().max(), 256, grey_levels()), WINDOW_HU, r"to 256; with a window, grey levels"),
        (np.where(ct() == ct().min(), -0.5, grey_levels()), WINDOW_HU, r"from -0.5 to .* grey levels"),
        (np.where(ct() > 0, 1, 0).astype(np.uint8), WINDOW_HU, "looks like a label map"),
        (grey_levels(), (-160, 240), "nothing as light as lung or air"),
        (grey_levels(), (-3000, -1000), "nothing but air"),
    ],
)
def test_values_that_are_no_grey_levels_of_a_chest_are_refused(tmp_path, array, window, message):
    with pytest.raises(VolumeError, match=message) as caught:
        read_volume(saved(tmp_path / "scan.nii.gz", array.astype(np.float32)), window=window)
    assert "--window LOW,HIGH" not in str(caught.value)


@pytest.mark.parametrize("window", [(250, -1250), (0, 0), (-3001, 250), (-1250, 5001), (float("nan"), 250)])
def test_a_window_that_is_none_is_refused_before_the_file_is_read(tmp_path, window):
    with pytest.raises(SettingsError, match="HU is no window: LOW below HIGH"):
        read_volume(tmp_path / "missing.nii.gz", window=window)


def test_the_refusal_of_grey_levels_names_the_way(tmp_path):
    with pytest.raises(VolumeError, match=r"if it is a window scaled to 0–255, give it with --window LOW,HIGH\.$"):
        read_volume(saved(tmp_path / "scan.nii.gz", grey_levels()))
    with pytest.raises(VolumeError, match=r"unshifted values\.$"):  # these are no grey levels from 0 to 255
        read_volume(saved(tmp_path / "shifted.nii.gz", ct() + np.int16(1024)))


@example(311, b"\x7f")  # a NaN in the affine that signals
@example(114, b"\x00{")  # a slope with which values overflow
@given(st.integers(0, 351), st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_any_change_of_the_header_is_read_or_refused(tmp_path_factory, offset, change):
    folder = tmp_path_factory.mktemp("fuzz")
    raw = bytearray(saved(folder / "sound.nii", ct()).read_bytes())
    raw[offset : offset + len(change)] = change
    path = folder / "changed.nii"
    path.write_bytes(raw)
    with contextlib.suppress(VolumeError):
        assert np.isfinite(read_volume(path).voxels).all()
    path.unlink()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_labels_come_back_on_the_grid_of_the_scan(tmp_path, ending):
    scan = read_volume(saved(tmp_path / "scan.nii.gz", ct()))
    labels = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    path = tmp_path / f"labels{ending}"
    write_label_map(path, labels, scan)
    written = nib.load(path)
    assert np.array_equal(np.asanyarray(written.dataobj), labels)
    assert np.array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(read_label_map(path).voxels, labels)
    first = path.read_bytes()
    write_label_map(path, labels, scan)
    assert path.read_bytes() == first


def test_labels_of_another_shape_or_ending_are_refused_and_nothing_is_left(tmp_path):
    scan = read_volume(saved(tmp_path / "scan.nii.gz", ct()))
    for labels, name in ((np.zeros((2, 2, 2), np.uint8), "l.nii.gz"), (np.zeros(SHAPE, np.uint8), "l.png")):
        with pytest.raises(VolumeError):
            write_label_map(tmp_path / name, labels, scan)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_bytes_atomic(tmp_path / "none" / "file", b"x")


def test_an_old_file_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
