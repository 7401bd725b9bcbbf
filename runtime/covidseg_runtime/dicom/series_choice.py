"""Which series of several is the one to segment: a rule, never a guess."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from covidseg_runtime.dicom.instances import Instance, dicom_seam, find_instances
from covidseg_runtime.errors import VolumeError

FEWEST_SLICES = 3
_SINGLE, _MULTI = str(CTImageStorage), str(EnhancedCTImageStorage)
# Cosine of the angle between the slices' normal and the patient's long axis: 45 degrees.
_AXIAL_COSINE = float(np.sqrt(0.5))


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
    with dicom_seam(path.name):
        found = [_summarise(uid, instances) for uid, instances in _by_series(find_instances(path)).items()]
    return tuple(sorted(found, key=lambda one: (-one.images, one.uid)))


def choose_series(instances: Sequence[Instance], series_uid: str | None) -> list[Instance]:
    """The images of one series: the one named, or the axial chest CT with most slices.

    Raises:
        VolumeError: If it is not there, none is suitable, or several are equally good.
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
    best = [one for one in suitable if one.images == suitable[0].images]
    if len(best) > 1:
        raise VolumeError(f"{len(best)} series are equally good: {_listed(best)}; choose one by --series UID.")
    return images_of(series[best[0].uid])


def images_of(instances: Sequence[Instance]) -> list[Instance]:
    """The CT images of a series, without localizers; an instance that is there twice counts once."""
    images = {str(one.header.SOPInstanceUID): one for one in instances if _is_ct(one) and not _is_localizer(one.header)}
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
        return "localizers only"
    if count < FEWEST_SLICES:
        return f"{count} slices, {FEWEST_SLICES} or more are expected"
    normal = _normal(images[0].header)
    if normal is not None and abs(normal[2]) < _AXIAL_COSINE:
        return "its slices are not axial"
    return None


def _normal(header: Dataset) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Normal of a single-frame image; None where its header does not say, which the geometry will judge."""
    orientation = header.get("ImageOrientationPatient")
    if not orientation or len(orientation) != 6:
        return None
    return np.cross(*np.array(orientation, np.float64).reshape(2, 3))


def _is_ct(one: Instance) -> bool:
    return str(one.header.SOPClassUID) in (_SINGLE, _MULTI)


def is_multi_frame(one: Instance) -> bool:
    """Whether it is an Enhanced CT, all slices in one object."""
    return str(one.header.SOPClassUID) == _MULTI


def _is_localizer(header: Dataset) -> bool:
    kind = header.get("ImageType") or ()
    return "LOCALIZER" in ([kind] if isinstance(kind, str) else list(kind))


def _frames(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _listed(summaries: Sequence[SeriesSummary]) -> str:
    return "; ".join(
        f"{shown_uid(one.uid)} ({one.modality}, {one.images} images{f': {one.problem}' if one.problem else ''})"
        for one in summaries
    )
