"""What a hostile archive, header or stream may cost: little, whatever it promises."""

import os
import tempfile
import zipfile

import numpy as np
import pytest
from dicom_files import SLICES, compress, enhanced, image, save, series, write
from dicom_phantom import phantom_volume
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from covidseg_runtime.dicom import decoding
from covidseg_runtime.dicom.read_series import read_series
from covidseg_runtime.errors import VolumeError
from covidseg_runtime.process_memory import peak_memory_mib
from covidseg_runtime.spooling import Spool

PIXELS = b"\xe0\x7f\x10\x00"
MOST_MIB = 200


@pytest.fixture(autouse=True)
def _memory():
    """No test of this file may take more memory than a little."""
    before = peak_memory_mib()
    yield
    assert peak_memory_mib() - before < MOST_MIB


def zipped(path, contents, compression=zipfile.ZIP_DEFLATED):
    """An archive of parts: bytes, and how many zeros follow them."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for index, (content, zeros) in enumerate(contents):
            with archive.open(f"IM{index:04d}", "w", force_zip64=True) as file:
                file.write(content)
                for _ in range(zeros >> 20):
                    file.write(bytes(1 << 20))
    return path


def contents(folder):
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_a_member_that_unfolds_behind_its_pixels_is_refused(tmp_path):
    files = contents(write(tmp_path / "s", series(range(4))))
    path = zipped(tmp_path / "s.zip", [(files[0], 300 << 20), *((content, 0) for content in files[1:])])
    with pytest.raises(VolumeError, match="larger than its .* bytes of pixels explain"):
        read_series(path)


def test_a_member_that_unfolds_before_its_pixels_is_refused(tmp_path):
    content = contents(write(tmp_path / "s", series([0])))[0]
    before = content[: content.index(PIXELS)] + b"\x61\x61\x10\x00OB\0\0" + (300 << 20).to_bytes(4, "little")
    with pytest.raises(VolumeError, match="no pixels within its first 64 MiB"):
        read_series(zipped(tmp_path / "s.zip", [(before, 300 << 20)]))


def test_an_archive_of_a_codec_that_unfolds_without_end_is_refused(tmp_path):
    files = contents(write(tmp_path / "s", series()))
    with pytest.raises(VolumeError, match="unusual compression"):
        read_series(zipped(tmp_path / "s.zip", [(content, 0) for content in files], zipfile.ZIP_BZIP2))


def test_an_archive_is_opened_once(tmp_path, monkeypatch):
    opened = []
    real = zipfile.ZipFile

    def counting(*arguments):
        opened.append(arguments)
        return real(*arguments)

    path = zipped(tmp_path / "s.zip", [(content, 0) for content in contents(write(tmp_path / "s", series()))])
    monkeypatch.setattr(zipfile, "ZipFile", counting)
    assert np.array_equal(read_series(path)[0].voxels, phantom_volume().voxels)
    assert len(opened) == 1


def test_a_deflated_member_of_an_archive_is_read(tmp_path):
    folder = write(tmp_path / "s", series(), DeflatedExplicitVRLittleEndian)
    path = zipped(tmp_path / "s.zip", [(content, 0) for content in contents(folder)])
    assert np.array_equal(read_series(path)[0].voxels, phantom_volume().voxels)


def test_a_compressed_multi_frame_member_of_an_archive_is_read(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    save(enhanced(range(SLICES)), folder / "IM0000")
    compress(folder, "JPEGLSLossless")
    path = zipped(tmp_path / "s.zip", [(content, 0) for content in contents(folder)])
    assert np.array_equal(read_series(path)[0].voxels, phantom_volume().voxels)


def test_a_header_without_end_is_refused(tmp_path):
    """A hole in a file costs its author nothing."""
    folder = write(tmp_path / "s", series(range(4)))
    first = folder / "IM0000"
    content = first.read_bytes()
    first.write_bytes(content[: content.index(PIXELS)] + b"\x61\x61\x10\x00OB\0\0" + (1 << 30).to_bytes(4, "little"))
    os.truncate(first, first.stat().st_size + (1 << 30))
    with pytest.raises(VolumeError, match="no pixels within its first 64 MiB"):
        read_series(folder)


def test_pixels_that_the_files_cannot_hold_reserve_nothing(tmp_path):
    images = series()
    for one in images:
        one.Rows = one.Columns = 4096
    spool = tmp_path / "spool"
    spool.mkdir()
    with pytest.raises(VolumeError, match="more than its files can hold"):
        read_series(write(tmp_path / "s", images), spool=Spool(spool))


def test_blank_streams_that_unfold_to_gigabytes_are_refused(tmp_path):
    one = image(0)
    one.Rows = one.Columns = 2048
    one.PixelData = bytes(2048 * 2048 * 2)
    folder = write(tmp_path / "s", [one])
    compress(folder, "JPEGLSLossless")
    packed = dcmread(folder / "IM0000")
    for k in range(SLICES):
        packed.SOPInstanceUID, packed.ImagePositionPatient = image(k).SOPInstanceUID, image(k).ImagePositionPatient
        packed.save_as(folder / f"IM{k:04d}")
    with pytest.raises(VolumeError, match="promises 234,881,024 bytes of pixels, more than its files can hold"):
        read_series(folder)


@pytest.mark.parametrize("name", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1"])
def test_a_stream_of_60000_pixels_a_side_ends_in_the_child(tmp_path, name):
    folder = write(tmp_path / "s", series(range(3)))
    compress(folder, name)
    marks = {
        "JPEG2000Lossless": (b"\xff\x4f\xff\x51", (8, 12), 4),
        "JPEGLSLossless": (b"\xff\xf7", (5, 7), 2),
        "JPEGLosslessProcess14_1": (b"\xff\xc3", (5, 7), 2),
    }
    mark, places, width = marks[name]
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        start = content.index(mark, content.index(PIXELS))
        for place in places:
            content[start + place : start + place + width] = (60_000).to_bytes(width, "big")
        path.write_bytes(content)
    with pytest.raises(VolumeError, match="cannot be decoded"):
        read_series(folder)


def test_a_codec_that_never_ends_is_stopped(tmp_path, monkeypatch):
    folder = write(tmp_path / "s", series(range(3)))
    compress(folder, "RLELossless")
    endless = tmp_path / "endless.py"
    endless.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(decoding, "_CHILD", endless)
    monkeypatch.setattr(decoding, "_BASE_SECONDS", 1)
    monkeypatch.setattr(decoding, "_WALL_TIMES", 1)
    with pytest.raises(VolumeError, match="took more than 1 s"):
        read_series(folder)


def test_a_codec_that_crashes_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    folder = write(tmp_path / "s", series(range(3)))
    compress(folder, "RLELossless")
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(decoding, "_CHILD", crash)
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(working))
    with pytest.raises(VolumeError, match=r"cannot be decoded \(status -11\)"):
        read_series(folder)
    assert list(working.iterdir()) == []


def test_one_child_decodes_a_series(tmp_path, monkeypatch):
    jobs = []
    real = decoding._run_child
    monkeypatch.setattr(decoding, "_run_child", lambda *arguments: (jobs.append(arguments), real(*arguments)))
    folder = write(tmp_path / "s", series())
    compress(folder, "JPEGLosslessProcess14_1")
    assert np.array_equal(read_series(folder)[0].voxels, phantom_volume().voxels)
    assert len(jobs) == 1


@pytest.mark.parametrize("name", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_signed_values_of_12_bits_survive_a_codec(tmp_path, name):
    images = series()
    for k, one in enumerate(images):
        one.BitsStored, one.HighBit, one.PixelRepresentation, one.RescaleIntercept = 12, 11, 1, 0
        one.PixelData = phantom_volume().voxels[:, :, k].T.astype("<i2").tobytes()
    folder = write(tmp_path / "s", images)
    compress(folder, name)
    assert np.array_equal(read_series(folder)[0].voxels, phantom_volume().voxels)


def test_slices_metres_apart_are_no_patient(tmp_path):
    images = series(range(4))
    for k, one in enumerate(images):
        one.ImagePositionPatient = [0, 0, 1000 * k]
    with pytest.raises(VolumeError, match="voxel spacing of .* up to 20 mm"):
        read_series(write(tmp_path / "s", images))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    folder = write(tmp_path / "s", series())
    os.mkfifo(folder / "pipe")
    assert read_series(folder)[0].shape[2] == SLICES
    with pytest.raises(VolumeError, match="neither a folder nor a file"):
        read_series(folder / "pipe")
