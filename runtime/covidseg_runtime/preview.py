"""A picture of a segmentation: axial slices with the labels drawn over them.

Slices run from the head to the feet, line by line. Each is seen from the feet, as radiologists do:
the patient's right (marked R) is on the left of the picture, the front is at the top. Below stands what the colours
mean, and that this is research.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import EngineError, VolumeError
from covidseg_runtime.report import NOTICE
from covidseg_runtime.volume import MODEL_ORIENTATION, Volume, reorient_array, to_orientation
from covidseg_runtime.volume_files import write_bytes_atomic

_COLUMNS, _ROWS = 4, 3
_LONG_SIDE = 320  # pixels of one slice's longer side
LOWER_HU, UPPER_HU = -1350.0, 150.0  # the usual lung window: level -600, width 1500
_LEFT_LUNG, _RIGHT_LUNG, _INFECTION = 1, 2, 3
_BLUE, _GREEN, _RED, _YELLOW = (60, 140, 255), (60, 220, 120), (255, 50, 40), (255, 225, 0)
LABEL_COLOURS: Mapping[int, tuple[int, int, int]] = MappingProxyType(
    {_LEFT_LUNG: _BLUE, _RIGHT_LUNG: _GREEN, _INFECTION: _RED}
)
_RED_SHARE = 0.45
_LEGEND = (
    ("infection", _RED),
    ("left lung", _BLUE),
    ("right lung", _GREEN),
)
_LEGEND_OF_TRUTH = ("reference", _YELLOW)
_GREY = (190, 190, 190)
_TEXT_PIXELS, _LINE_PIXELS, _MARGIN_PIXELS = 14, 20, 6


def write_preview(
    path: str | Path,
    volume: Volume,
    labels: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None = None,
) -> None:
    """Write the picture as PNG, whole or not at all.

    Infection is filled red; what is segmented is outlined blue at the left lung and green at the right, the truth's
    infection yellow.

    Args:
        path: The PNG file.
        volume: The scan in HU, (X, Y, Z).
        labels: (X, Y, Z) on the scan's grid.
        truth: Infection of the truth, non-zero where it is, (X, Y, Z) on the scan's grid.

    Raises:
        VolumeError: if labels or truth have another shape than the scan.
        EngineError: if Pillow is not installed.
    """
    write_bytes_atomic(Path(path), render_preview(volume, labels, truth))


def render_preview(volume: Volume, labels: NDArray[np.uint8], truth: NDArray[np.uint8] | None = None) -> bytes:
    """The picture of `write_preview` as the bytes of a PNG file."""
    pillow = import_pillow()
    for name, array in (("labels", labels), ("truth", truth)):
        if array is not None and array.shape != volume.shape:
            raise VolumeError(f"{name} have shape {array.shape}, the scan {volume.shape}")
    scan = to_orientation(volume, MODEL_ORIENTATION)
    labels_spl = reorient_array(labels, volume.orientation, MODEL_ORIENTATION)
    truth_spl = None
    if truth is not None:
        truth_spl = reorient_array(truth, volume.orientation, MODEL_ORIENTATION)
    size = _display_size(scan.shape[1:], scan.spacing_mm[1:])
    tiles = []
    for z in _chosen_slices(labels_spl):
        picture = _grey_slice(pillow, scan.voxels[z], size)
        _draw_labels(picture, _resize_mask(pillow, labels_spl[z], size))
        if truth_spl is not None:
            infection = _resize_mask(pillow, truth_spl[z] != 0, size)
            picture[_outline(infection != 0)] = _YELLOW
        tiles.append(_mark_right(picture))
    mosaic = _mosaic(tiles)
    legend = _LEGEND if truth is None else (*_LEGEND, _LEGEND_OF_TRUTH)
    caption = _caption((*legend, (NOTICE, _GREY)), mosaic.shape[1])
    buffer = io.BytesIO()
    pillow.fromarray(np.concatenate((mosaic, caption))).save(buffer, format="PNG")
    return buffer.getvalue()


def import_pillow() -> Any:  # noqa: ANN401 - a module
    """The module PIL.Image.

    Raises:
        EngineError: if Pillow is not installed.
    """
    try:
        return import_module("PIL.Image")
    except ImportError as exc:
        raise EngineError("a preview needs Pillow. Install it: pip install pillow") from exc


def _chosen_slices(labels: NDArray[Any]) -> list[int]:
    """Slices spread evenly over what is labelled, or over the scan; from the head downwards."""
    labelled = np.flatnonzero(labels.any(axis=(1, 2)))
    first, last = (labelled[0], labelled[-1]) if labelled.size else (0, len(labels) - 1)
    # The middles of equal parts: the ends of the lungs show little.
    count = min(_COLUMNS * _ROWS, int(last - first + 1))
    middles = first + (np.arange(count) + 0.5) * (last - first + 1) / count - 0.5
    return [int(z) for z in np.rint(middles)[::-1]]


def _display_size(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, int]:
    """(height, width) in pixels that keep the patient's proportions."""
    height_mm, width_mm = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    scale = _LONG_SIDE / max(height_mm, width_mm)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def _grey_slice(
    pillow: Any,  # noqa: ANN401 - a module
    plane: NDArray[Any],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """(height, width, 3): one slice in the lung window."""
    share = (plane.astype(np.float32) - LOWER_HU) / (UPPER_HU - LOWER_HU)
    grey = (np.clip(share, 0, 1) * 255).astype(np.uint8)
    resized = pillow.fromarray(grey).resize(size[::-1], pillow.Resampling.BILINEAR)
    return np.repeat(np.asarray(resized)[:, :, None], 3, axis=2)


def _resize_mask(
    pillow: Any,  # noqa: ANN401 - a module
    plane: NDArray[Any],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    picture = pillow.fromarray(np.ascontiguousarray(plane, dtype=np.uint8))
    return np.asarray(picture.resize(size[::-1], pillow.Resampling.NEAREST), dtype=np.uint8)


def _draw_labels(picture: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    infection = labels == _INFECTION
    mixed = picture[infection] * (1 - _RED_SHARE) + np.array(_RED) * _RED_SHARE
    picture[infection] = mixed.astype(np.uint8)
    border = _outline(labels != 0)
    picture[border & (labels == _LEFT_LUNG)] = _BLUE
    picture[border & (labels == _RIGHT_LUNG)] = _GREEN


def _mark_right(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(picture)
    place = (_MARGIN_PIXELS, picture.shape[0] // 2 - _TEXT_PIXELS)
    ImageDraw.Draw(canvas).text(place, "R", fill=_GREY, font=ImageFont.load_default(_TEXT_PIXELS))
    return np.asarray(canvas)


def _caption(words: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> NDArray[np.uint8]:
    """(height, width, 3): coloured words one after the other, on as many lines as they need."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_TEXT_PIXELS)
    places: list[tuple[int, int]] = []
    x, line = _MARGIN_PIXELS, 0
    for word, _ in words:
        length = round(font.getlength(word))
        if x > _MARGIN_PIXELS and x + length > width:
            x, line = _MARGIN_PIXELS, line + 1
        places.append((x, line * _LINE_PIXELS + _MARGIN_PIXELS // 2))
        x += length + 3 * _MARGIN_PIXELS
    canvas = Image.new("RGB", (width, (line + 1) * _LINE_PIXELS + _MARGIN_PIXELS))
    draw = ImageDraw.Draw(canvas)
    for (word, colour), place in zip(words, places, strict=True):
        draw.text(place, word, fill=colour, font=font)
    return np.asarray(canvas)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of `mask` with a neighbour outside it."""
    framed = np.pad(mask, 1)
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inside


def _mosaic(tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join slices of one size, line by line; the rest of the last line stays black."""
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    height, width = tiles[0].shape[:2]
    mosaic = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        mosaic[top : top + height, left : left + width] = tile
    return mosaic
