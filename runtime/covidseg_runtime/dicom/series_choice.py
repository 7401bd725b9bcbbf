"""Which series of several is the one to segment: a rule, never a guess."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from covidseg_runtime.dicom.instances import MULTI_FRAME, SINGLE_FRAME, Instance, dicom_seam, open_instances
from covidseg_runtime.errors import VolumeError

FEWEST_SLICES = 3
# Cosine of the angle between the slices' normal and the patient's long axis: 45 degrees.
_AXIAL_COSINE = float(np.sqrt(0.5))
# Words of ImageType: pictures that scanners file among the slices, and slices whose values are no HU of a place.
_NO_SLICE = re.compile(r"LOCALIZER|SCREEN ?SAVE|DOSE[ _](INFO|REPORT)|(.* )?PROT")
_PROJECTION = re.compile(r"(?<![A-Z])(MIP|MINIP|MAXIP|M(AX|IN)[ _]IP|MAXIMUM|MINIMUM)(?![A-Z])")


@dataclass(frozen=True)
class SeriesSummary:
    """One series that was found; nothing in it tells who the patient is.

    Attributes:
        uid: SeriesInstanceUID.
        modality: As the header says.
        images: Slices or frames that may be segmented.
        problem: Why it cannot be segmented; None if it can, as far as its headers tell.
    """

    uid: str
    modality: str
    images: int
    problem: str | None


def list_series(path: Path) -> tuple[SeriesSummary, ...]:
    """Every series below a path, most images first.

    Raises:
        VolumeError: If there is no DICOM, or one file is damaged.
    """
    with dicom_seam(path.name), open_instances(path) as instances:
        found = [_summarise(uid, series) for uid, series in _by_series(instances).items()]
    return tuple(sorted(found, key=lambda one: (-one.images, one.uid)))


def choose_series(instances: Sequence[Instance], series_uid: str | None) -> list[Instance]:
    """The images of one series: the one named, or the axial CT with most slices.

    Original series go before derived ones, whose values some program has made.

    Raises:
        VolumeError: If it is not there, none is suitable, or several are equally good or of several studies.
    """
    series = _by_series(instances)
    summaries = sorted((_summarise(uid, found) for uid, found in series.items()), key=lambda one: -one.images)
    if series_uid is not None:
        chosen = next((one for one in summaries if one.uid == series_uid), None)
        if chosen is None:
            raise VolumeError(f"There is no series {series_uid}; there are {_listed(summaries)}.")
        if chosen.problem is not None:
            raise VolumeError(f"Series {series_uid} cannot be segmented: {chosen.problem}.")
        return images_of(series[series_uid])
    suitable = [one for one in summaries if one.problem is None]
    if not suitable:
        raise VolumeError(f"No series is an axial chest CT: {_listed(summaries)}.")
    studies = {str(series[one.uid][0].header.get("StudyInstanceUID", "")) for one in suitable}
    if len(studies) > 1:  # another patient, or an earlier scan
        raise VolumeError(
            f"The series come from {len(studies)} studies: {_listed(suitable)}; give one of them, or choose one series "
            "by --series UID."
        )
    suitable = [one for one in suitable if not _is_derived(series[one.uid])] or suitable
    best = [one for one in suitable if one.images == suitable[0].images]
    if len(best) > 1:
        raise VolumeError(f"{len(best)} series are equally good: {_listed(best)}; choose one by --series UID.")
    return images_of(series[best[0].uid])


def images_of(instances: Sequence[Instance]) -> list[Instance]:
    """The CT slices of a series, without localizers and dose screens; an instance that is there twice counts once."""
    images = {str(one.header.SOPInstanceUID): one for one in instances if _is_ct(one) and _is_slice(one.header)}
    return list(images.values())


def _by_series(instances: Sequence[Instance]) -> dict[str, list[Instance]]:
    series: dict[str, list[Instance]] = {}
    for one in instances:
        series.setdefault(str(one.header.SeriesInstanceUID), []).append(one)
    return series


def _summarise(uid: str, instances: Sequence[Instance]) -> SeriesSummary:
    modality = str(instances[0].header.get("Modality", ""))
    modality = modality if modality.isalnum() and modality.isascii() else "unknown"
    images = images_of(instances)
    count = sum(_frames(one.header) for one in images)
    return SeriesSummary(uid, modality, count, _problem(modality, instances, images, count))


def shown_uid(uid: str) -> str:
    """A UID for a message: one that is none may hold anything."""
    return uid if re.fullmatch(r"[0-9.]{1,64}", uid) else "(no valid UID)"


def _problem(modality: str, instances: Sequence[Instance], images: Sequence[Instance], count: int) -> str | None:
    if not any(_is_ct(one) for one in instances):
        return f"modality {modality}, no CT images"
    if not images:
        return "localizers or screens only"
    if count < FEWEST_SLICES:
        return f"{count} slices, {FEWEST_SLICES} or more are expected"
    if any(_PROJECTION.search(value) for value in _image_type(images[0].header)):
        return "projections, whose values are no HU of a place"
    if _share_uids(instances):
        return "different slices have one SOPInstanceUID"
    places = {_numbers(one.header.get("ImagePositionPatient")) for one in images}
    if len(images) > 1 and () not in places and len(places) < FEWEST_SLICES:
        return f"its slices lie at {len(places)} places, as of a contrast's arrival"
    normal = _normal(images[0].header)
    if normal is not None and abs(normal[2]) < _AXIAL_COSINE:
        return "its slices are not axial"
    return None


def _share_uids(instances: Sequence[Instance]) -> bool:
    """Whether slices at several places say to be the same instance."""
    slices = [one.header for one in instances if _is_ct(one) and _is_slice(one.header)]
    placed = {(str(one.SOPInstanceUID), _numbers(one.get("ImagePositionPatient"))) for one in slices}
    return len(placed) > len({uid for uid, _ in placed})


def _normal(header: Dataset) -> NDArray[np.float64] | None:
    """Normal of the first slice; None where the header does not say, which the geometry will judge."""
    for sequence in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for groups in (header.get(sequence) or ())[:1]:
            for group in (groups.get("PlaneOrientationSequence") or ())[:1]:
                header = group
    orientation = _numbers(header.get("ImageOrientationPatient"))
    return np.cross(orientation[:3], orientation[3:]) if len(orientation) == 6 else None


def _numbers(values: object) -> tuple[float, ...]:
    return tuple(float(value) for value in values) if isinstance(values, Iterable) else ()


def _is_ct(one: Instance) -> bool:
    return str(one.header.SOPClassUID) in (SINGLE_FRAME, MULTI_FRAME)


def is_multi_frame(one: Instance) -> bool:
    """Whether it is an Enhanced CT, all slices in one object."""
    return str(one.header.SOPClassUID) == MULTI_FRAME


def _is_slice(header: Dataset) -> bool:
    kind = _image_type(header)
    has_place = "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header
    return not any(_NO_SLICE.fullmatch(value) for value in kind) and (has_place or "SECONDARY" not in kind)


def _is_derived(instances: Sequence[Instance]) -> bool:
    return _image_type(images_of(instances)[0].header)[:1] == ["DERIVED"]


def _image_type(header: Dataset) -> list[str]:
    values = header.get("ImageType") or ()
    return [str(value).strip() for value in ([values] if isinstance(values, str) else values)]


def _frames(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _listed(summaries: Sequence[SeriesSummary]) -> str:
    return "; ".join(
        f"{shown_uid(one.uid)} ({one.modality}, {one.images} images{f': {one.problem}' if one.problem else ''})"
        for one in summaries
    )
