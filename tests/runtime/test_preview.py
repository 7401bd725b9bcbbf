"""The picture shows the right side, the right colours and the patient's proportions."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine

from covidseg_runtime.errors import EngineError, VolumeError
from covidseg_runtime.preview import render_preview, write_preview
from covidseg_runtime.volume import Volume, to_orientation

Image = pytest.importorskip("PIL.Image")


def _picture(png: bytes) -> NDArray[np.uint8]:
    """The one slice of a picture, without the caption below."""
    return np.asarray(Image.open(io.BytesIO(png)))[:160]


def _one_slice(voxels: NDArray[np.int16]) -> Volume:
    return Volume(voxels, spl_affine((5.0, 1.0, 2.0)))


def test_the_patients_right_is_on_the_left_and_the_front_on_top() -> None:
    voxels = np.full((1, 40, 40), -1400, np.int16)
    voxels[0, :10, :10] = 300  # front, right: SPL grows towards posterior and left
    picture = _picture(render_preview(_one_slice(voxels), np.zeros(voxels.shape, np.uint8)))
    assert picture[5, 5].tolist() == [255, 255, 255]
    assert picture[5, -5].tolist() == [0, 0, 0]
    assert picture[-5, 5].tolist() == [0, 0, 0]


def test_pixels_keep_the_patients_proportions() -> None:
    voxels = np.zeros((1, 40, 40), np.int16)  # 40 mm high, 80 mm wide
    picture = _picture(render_preview(_one_slice(voxels), np.zeros(voxels.shape, np.uint8)))
    assert picture.shape == (160, 320, 3)


def test_colours_tell_infection_lungs_and_truth_apart() -> None:
    voxels = np.full((1, 40, 40), -1400, np.int16)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[0, 5:15, 5:15] = 2
    labels[0, 5:15, 25:35] = 1
    labels[0, 25:35, 5:15] = 3
    truth = np.zeros(voxels.shape, np.uint8)
    truth[0, 25:35, 25:35] = 1
    picture = _picture(render_preview(_one_slice(voxels), labels, truth))
    row, column = 4, 8  # pixels a voxel
    assert picture[5 * row, 10 * column].tolist() == [60, 220, 120]
    assert picture[5 * row, 30 * column].tolist() == [60, 140, 255]
    red, green, blue = picture[30 * row, 10 * column].tolist()
    assert red > 100
    assert green < red / 3
    assert blue < red / 3
    assert picture[25 * row, 30 * column].tolist() == [255, 225, 0]
    assert picture[30 * row, 30 * column].tolist() == [0, 0, 0]


def test_a_caption_says_what_the_colours_mean_below_the_slices() -> None:
    labels = np.zeros((1, 40, 40), np.uint8)
    volume = _one_slice(np.full(labels.shape, -1400, np.int16))

    def caption(truth: NDArray[np.uint8] | None) -> set[tuple[int, ...]]:
        whole = np.asarray(Image.open(io.BytesIO(render_preview(volume, labels, truth))))
        return set(map(tuple, whole[160:].reshape(-1, 3).tolist()))

    yellow = (255, 225, 0)
    assert {(255, 50, 40), (60, 140, 255), (60, 220, 120), (190, 190, 190)} <= caption(None)
    assert yellow not in caption(None)
    assert yellow in caption(labels)


def test_the_order_of_axes_does_not_change_the_picture() -> None:
    volume = Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))
    turned = to_orientation(volume, "LPS")
    turned_labels = to_orientation(Volume(phantom_labels(), volume.affine), "LPS").voxels
    assert render_preview(volume, phantom_labels()) == render_preview(turned, turned_labels)


def test_slices_are_taken_from_where_labels_are() -> None:
    voxels = np.full((30, 8, 8), -1400, np.int16)
    voxels[20] = 300
    labels = np.zeros(voxels.shape, np.uint8)
    labels[20, 4, 4] = 1
    picture = _picture(render_preview(_one_slice(voxels), labels))
    assert picture[2, 2].tolist() == [255, 255, 255]
    assert picture.shape == (160, 320, 3)


def test_a_png_is_written(tmp_path: Path) -> None:
    volume = Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))
    write_preview(tmp_path / "out.png", volume, phantom_labels())
    assert (tmp_path / "out.png").read_bytes() == render_preview(volume, phantom_labels())
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_labels_of_another_shape_are_refused() -> None:
    volume = Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))
    with pytest.raises(VolumeError, match="labels have shape"):
        render_preview(volume, phantom_labels()[1:])


def test_without_pillow_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    volume = Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))
    with pytest.raises(EngineError, match="pip install pillow"):
        render_preview(volume, phantom_labels())
