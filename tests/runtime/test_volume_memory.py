"""Reading and writing hold one scan, never two."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.volume import Volume
from covidseg_runtime.volume_files import read_volume, write_label_map

SHAPE = (128, 128, 64)
AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])


def _peak_of(action: Callable[[], object]) -> int:
    """Most bytes held at once beyond those held before."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _saved(path: Path, dtype: type, shift: int = 0) -> Path:
    hu = np.random.default_rng(0).integers(-1000, 1000, SHAPE)
    image = nib.Nifti1Image((hu - shift).astype(dtype), AFFINE)
    image.header.set_slope_inter(1, shift)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_reading_holds_the_scan_and_a_piece_of_the_file(tmp_path: Path, ending: str) -> None:
    path = _saved(tmp_path / f"ct{ending}", np.int16)
    read_volume(path)
    size = 2 * np.prod(SHAPE)
    assert _peak_of(lambda: read_volume(path)) < size + (3 << 20)


@pytest.mark.parametrize(("dtype", "shift"), [(np.uint16, -1024), (np.int16, 24), (np.int32, 0)])
def test_shifted_values_become_hounsfield_units(tmp_path: Path, dtype: type, shift: int) -> None:
    volume = read_volume(_saved(tmp_path / "ct.nii", dtype, shift))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, np.random.default_rng(0).integers(-1000, 1000, SHAPE))


def test_a_small_file_reserves_little_whatever_its_header_promises(tmp_path: Path) -> None:
    whole = _saved(tmp_path / "ct.nii", np.int16).read_bytes()
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(gzip.compress(whole[:400]))

    def refused() -> None:
        with pytest.raises(VolumeError, match="promises 2,097,152 bytes of voxels and holds 48"):
            read_volume(path)

    assert _peak_of(refused) < 1 << 20


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_writing_copies_a_slice_at_a_time(tmp_path: Path, ending: str, flips: tuple[int, int, int]) -> None:
    labels = np.asfortranarray(np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8))
    labels = labels[tuple(slice(None, None, step) for step in flips)]
    scan = Volume(labels, AFFINE)
    path = tmp_path / f"labels{ending}"
    write_label_map(path, labels, scan)
    content = path.read_bytes()
    assert _peak_of(lambda: write_label_map(path, labels, scan)) < labels.size // 2
    assert path.read_bytes() == content
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), labels)
