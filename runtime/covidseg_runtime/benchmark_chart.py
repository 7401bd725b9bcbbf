"""The benchmark as a picture: one bar a row, seconds per scan, with the DSC written at it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from covidseg_runtime.benchmark_rows import Benchmark, Row
from covidseg_runtime.preview import import_pillow
from covidseg_runtime.report import NOTICE

_WIDTH = 960
_BAR_PIXELS, _LINE_PIXELS, _MARGIN_PIXELS = 18, 28, 12
_TEXT_PIXELS, _TITLE_PIXELS = 14, 18
_BLACK, _GREY, _WHITE = (0, 0, 0), (190, 190, 190), (255, 255, 255)
_REFERENCE_COLOUR, _ENGINE_COLOUR, _PEER_COLOUR = (60, 220, 120), (60, 140, 255), (255, 225, 0)
_LEGEND = (("reference", _REFERENCE_COLOUR), ("engine", _ENGINE_COLOUR), ("peer", _PEER_COLOUR))


def render_benchmark_chart(benchmark: Benchmark, caption: Sequence[str]) -> bytes:
    """Draw the rows that have numbers, in the benchmark's order.

    Args:
        benchmark: At least one row of it was measured.
        caption: Lines below the bars: model, scan, machine.

    Returns:
        The bytes of a PNG file.

    Raises:
        EngineError: if Pillow is not installed.
    """
    pillow = import_pillow()
    from PIL import ImageDraw, ImageFont

    lines = (*caption, NOTICE)
    count = len(benchmark.measured)
    top = _MARGIN_PIXELS + _TITLE_PIXELS + 2 * _MARGIN_PIXELS
    height = top + count * _LINE_PIXELS + (len(lines) + 1) * (_TEXT_PIXELS + _MARGIN_PIXELS // 2) + 2 * _MARGIN_PIXELS
    canvas = pillow.new("RGB", (_WIDTH, height), _BLACK)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_TEXT_PIXELS)
    title_font = ImageFont.load_default(_TITLE_PIXELS)
    draw.text((_MARGIN_PIXELS, _MARGIN_PIXELS), "Seconds per scan: shorter is better", _WHITE, font=title_font)
    _draw_bars(draw, font, benchmark, top)
    y = top + count * _LINE_PIXELS + _MARGIN_PIXELS
    _draw_legend(draw, font, y)
    for number, line in enumerate(lines, start=1):
        place = (_MARGIN_PIXELS, y + number * (_TEXT_PIXELS + _MARGIN_PIXELS // 2))
        draw.text(place, line, _GREY, font=font)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()


def _draw_bars(draw: Any, font: Any, benchmark: Benchmark, top: int) -> None:  # noqa: ANN401 - Pillow's
    names = [str(row.contestant) for row, _ in benchmark.measured]
    results = [f"{measured.median_scan_s:.1f} s{_describe_dsc(row)}" for row, measured in benchmark.measured]
    left = 2 * _MARGIN_PIXELS + max(round(font.getlength(name)) for name in names)
    room = _WIDTH - left - 2 * _MARGIN_PIXELS - max(round(font.getlength(result)) for result in results)
    longest = max(measured.median_scan_s for _, measured in benchmark.measured)
    for number, (row, measured) in enumerate(benchmark.measured):
        y = top + number * _LINE_PIXELS
        length = max(1, round(room * measured.median_scan_s / longest))
        draw.text((_MARGIN_PIXELS, y), names[number], _GREY, font=font)
        draw.rectangle((left, y, left + length, y + _BAR_PIXELS), fill=_colour(row, benchmark))
        draw.text((left + length + _MARGIN_PIXELS, y), results[number], _WHITE, font=font)


def _draw_legend(draw: Any, font: Any, y: int) -> None:  # noqa: ANN401 - Pillow's
    x = _MARGIN_PIXELS
    for name, colour in _LEGEND:
        draw.text((x, y), name, colour, font=font)
        x += round(font.getlength(name)) + 2 * _MARGIN_PIXELS


def _describe_dsc(row: Row) -> str:
    """The DSC of a row as the end of its result."""
    scores = (("reference", row.dsc_reference), ("truth", row.dsc_truth))
    known = ", ".join(f"{score:.4f} to {what}" for what, score in scores if score is not None)
    return f"   DSC {known}" if known else ""


def _colour(row: Row, benchmark: Benchmark) -> tuple[int, int, int]:
    if row.contestant == benchmark.reference:
        return _REFERENCE_COLOUR
    return _ENGINE_COLOUR if row.contestant.is_engine else _PEER_COLOUR
