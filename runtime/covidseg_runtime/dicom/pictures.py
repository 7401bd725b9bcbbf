"""What a person sees: the overlay with a banner, and a page of measures with it. No patient is named in the pixels."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from covidseg_runtime.dicom.case import Case

BANNER = "RESEARCH USE ONLY - AI RESULT, NOT REVIEWED"

_BANNER_PIXELS, _TEXT_PIXELS, _MARGIN_PIXELS = 22, 15, 8
_RED, _GREY, _BLACK, _WHITE = (255, 90, 70), (210, 210, 210), (0, 0, 0), (255, 255, 255)
_DARK_RED = (190, 20, 10)
# A4 at 150 pixels an inch.
_PAGE_PIXELS, _PAGE_PIXELS_PER_INCH, _PAGE_MARGIN = (1240, 1754), 150, 80
_PAGE_TEXT_PIXELS, _PAGE_LETTERS = 20, 100
_MOST_LINES = 40  # of a page; the structured report has all

Colour = tuple[int, int, int]
Line = tuple[str, int, Colour]  # text, height in pixels, colour


def overlay(case: Case) -> NDArray[np.uint8]:
    """(height, width, 3): the preview under a banner, the main measures and what they do not say."""
    mosaic = _mosaic(case)
    lines = [(BANNER, _BANNER_PIXELS, _RED)]
    letters = max(20, mosaic.width // (_TEXT_PIXELS // 2 + 1))
    for text in (headline(case), model_line(case), case.texts[1]):
        lines += [(line, _TEXT_PIXELS, _GREY) for line in textwrap.wrap(text, letters)]
    height = sum(size + _MARGIN_PIXELS for _, size, _ in lines) + _MARGIN_PIXELS
    width = max(mosaic.width, 2 * _MARGIN_PIXELS + max(_width(text, size) for text, size, _ in lines))
    canvas = Image.new("RGB", (width, height + mosaic.height), _BLACK)
    _write_lines(canvas, lines, (_MARGIN_PIXELS, _MARGIN_PIXELS))
    canvas.paste(mosaic, (0, height))
    return np.asarray(canvas, dtype=np.uint8)


def page(case: Case, when: datetime) -> bytes:
    """One page as PDF: banner, measures, warnings and the preview.

    Args:
        case: The result.
        when: The date that the file tells of itself.
    """
    canvas = Image.new("RGB", _PAGE_PIXELS, _WHITE)
    lines: list[Line] = [(BANNER, 2 * _PAGE_TEXT_PIXELS, _DARK_RED)]
    for text in _page_texts(case):
        lines += [(line, _PAGE_TEXT_PIXELS, _BLACK) for line in textwrap.wrap(text, _PAGE_LETTERS)]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], ("More is in the structured report.", _PAGE_TEXT_PIXELS, _BLACK)]
    top = _write_lines(canvas, lines, (_PAGE_MARGIN, _PAGE_MARGIN))
    mosaic = _mosaic(case)
    room = (_PAGE_PIXELS[0] - 2 * _PAGE_MARGIN, _PAGE_PIXELS[1] - _PAGE_MARGIN - top)
    scale = min(room[0] / mosaic.width, room[1] / mosaic.height)
    size = (max(1, round(mosaic.width * scale)), max(1, round(mosaic.height * scale)))
    canvas.paste(mosaic.resize(size, Image.Resampling.LANCZOS), (_PAGE_MARGIN, top))
    buffer, moment = io.BytesIO(), when.timetuple()
    canvas.save(
        buffer,
        format="PDF",
        resolution=_PAGE_PIXELS_PER_INCH,
        quality=90,
        title="covidseg report - research use only",
        creationDate=moment,
        modDate=moment,
    )
    return buffer.getvalue()


def headline(case: Case) -> str:
    """The main measures in one line."""
    measures = case.measures
    parts = [f"Infection (lung opacity) {measures.infection_volume_ml.whole or 0:.1f} mL"]
    if measures.infection_percent.whole is not None:
        parts.append(f"{measures.infection_percent.whole:.1f} % of the lungs")
    parts.append("1 lesion" if measures.lesion_count == 1 else f"{measures.lesion_count} lesions")
    if measures.mean_infection_hu is not None:
        parts.append(f"mean {measures.mean_infection_hu:.0f} HU")
    return ", ".join(parts)


def model_line(case: Case) -> str:
    """Which software and model made it."""
    identity = case.identity
    return f"covidseg {identity.software_version}, model {identity.model_name} {identity.model_version}"


def _page_texts(case: Case) -> Sequence[str]:
    measures, (notice, limits, warnings) = case.measures, case.texts
    texts = [headline(case)]
    for side in ("left", "right"):
        lung_ml, percent = getattr(measures.lung_volume_ml, side), getattr(measures.infection_percent, side)
        if lung_ml is not None and percent is not None:
            texts.append(f"{side.capitalize()} lung {lung_ml:.0f} mL, {percent:.1f} % of it infected")
    texts.append(
        f"Below -300 HU (ground glass) {measures.ground_glass_ml:.1f} mL, of -300 HU and above (consolidation) "
        f"{measures.consolidation_ml:.1f} mL"
    )
    if case.range_sentence is not None:
        texts.append(case.range_sentence)
    return (*texts, model_line(case), notice, limits, *(f"Warning: {warning}" for warning in warnings))


def _mosaic(case: Case) -> Image.Image:
    return Image.open(io.BytesIO(case.preview)).convert("RGB")


def _write_lines(canvas: Image.Image, lines: Sequence[Line], place: tuple[int, int]) -> int:
    """Write lines below each other; the y at which the last one ends."""
    draw, (x, y) = ImageDraw.Draw(canvas), place
    for text, size, colour in lines:
        draw.text((x, y), text, fill=colour, font=ImageFont.load_default(size))
        y += size + _MARGIN_PIXELS
    return y


def _width(text: str, size: int) -> int:
    return round(ImageFont.load_default(size).getlength(text))
