"""The model bundle: a folder with `bundle.json`, the network and its model card.

`bundle.json` (schema version 1) says how a scan is prepared, how it is tiled, what the labels
mean, and the sha256 of every file. Nothing of a bundle reaches an engine before its checksum held.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.bundle_description import (
    BUNDLE_FILE,
    SCHEMA_VERSION,
    description_sha256,
    in_short,
    json_number,
    json_object,
    json_text,
    read_description,
    refuse_altered_description,
    three_integers,
    three_numbers,
)
from covidseg_runtime.calibration import NOT_CALIBRATED, Calibration, read_calibration
from covidseg_runtime.errors import BundleError, SettingsError
from covidseg_runtime.intensity import HounsfieldScaling
from covidseg_runtime.onnx_guard import refuse_unsafe_model
from covidseg_runtime.tiling import TileFit, TilePlan

__all__ = [
    "BUNDLE_FILE",
    "DEFAULT_BUNDLE",
    "LABELS",
    "LUNG_OF_EITHER_SIDE",
    "SCHEMA_VERSION",
    "ModelBundle",
    "ModelFile",
    "PreprocessingSpec",
    "TilePlan",
    "bundle_to_json",
    "default_bundle_path",
    "description_sha256",
    "find_bundle",
    "list_bundles",
    "load_bundle",
    "sha256_of",
]

DEFAULT_BUNDLE = "default"
LABELS: Mapping[int, str] = MappingProxyType({0: "background", 1: "left lung", 2: "right lung", 3: "infection"})

LUNG_OF_EITHER_SIDE = "lung"
_ONLY_INFECTION = ("background", "infection")
# What a network may tell apart, channel by channel, and the label each becomes. A lung of either side is
# labelled 1 first; its side is found afterwards.
_LABELS_OF_CLASSES: Mapping[tuple[str, ...], tuple[int, ...]] = MappingProxyType(
    {
        tuple(LABELS.values()): (0, 1, 2, 3),
        ("background", LUNG_OF_EITHER_SIDE, "infection"): (0, 1, 3),
        _ONLY_INFECTION: (0, 3),
    }
)

_LARGEST_TILE = 1024
_SMALLEST_STEP = 0.1  # at less, tiles without end
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ORIENTATION = re.compile(r"(?=.*[LR])(?=.*[PA])(?=.*[IS])[LRPAIS]{3}")
_PRECISIONS = ("fp32", "fp16", "int8")
_CARD_KEYS = ("network", "training", "metrics", "parity", "intended_use", "licence", "decision", "calibration")


@dataclass(frozen=True)
class PreprocessingSpec:
    """How a scan becomes the network's input.

    Attributes:
        orientation: Letters of the array axes, each the side its index grows towards ("SPL").
        spacing_mm: Voxel size of the network's grid, in that axis order (Z, Y, X).
        scaling: The Hounsfield window and its scaling.
    """

    orientation: str
    spacing_mm: tuple[float, float, float]
    scaling: HounsfieldScaling

    def __post_init__(self) -> None:
        """Refuse what no scan can be brought to."""
        if not _ORIENTATION.fullmatch(self.orientation):
            raise BundleError(
                f"preprocessing.orientation is {in_short(self.orientation)}: expected three letters, one "
                "of L R, one of P A, one of I S"
            )
        if not all(0 < size < math.inf for size in self.spacing_mm):
            raise BundleError(f"preprocessing.spacing_mm is {self.spacing_mm}: expected three positive numbers")


@dataclass(frozen=True)
class ModelFile:
    """One file of a bundle.

    Attributes:
        role: What it is for: "model" for a network, "card" for the model card.
        name: Its name in the bundle's folder, without any folder.
        sha256: 64 hexadecimal digits.
        precision: "fp32", "fp16" or "int8" for a network, otherwise None.
    """

    role: str
    name: str
    sha256: str
    precision: str | None = None


@dataclass(frozen=True)
class ModelBundle:
    """A verified bundle. Get one by `load_bundle`.

    Attributes:
        folder: Where it lies.
        name: Its name, such as "covidseg-default".
        version: Its version.
        labels: Label value -> meaning.
        classes: What the network tells apart, one name a channel: the labels; background, lung, infection; or
            background, infection.
        preprocessing: How a scan becomes the network's input.
        tile_plan: How that input is cut into tiles.
        files: Every file that the bundle vouches for.
        card: The rest of bundle.json: network, training, metrics, parity, intended_use, licence, decision, calibration.
        calibration: Temperature of the probability; `NOT_CALIBRATED` where bundle.json tells none.
    """

    folder: Path
    name: str
    version: str
    labels: Mapping[int, str]
    classes: tuple[str, ...]
    preprocessing: PreprocessingSpec
    tile_plan: TilePlan
    files: tuple[ModelFile, ...]
    card: Mapping[str, Any]
    calibration: Calibration = NOT_CALIBRATED

    @property
    def tells_lungs_apart(self) -> bool:
        """Whether the network labels lungs; one that knows only infection has no lung volume and no percentage."""
        return self.classes != _ONLY_INFECTION

    @property
    def label_of_class(self) -> NDArray[np.uint8]:
        """The label of each channel; lung of either side has the left lung's."""
        return np.array(_LABELS_OF_CLASSES[self.classes], np.uint8)

    def has_file(self, precision: str) -> bool:
        """Whether the bundle has an ONNX file of that precision."""
        return any(file.name.endswith(".onnx") and file.precision == precision for file in self.files)

    def has_passed(self, engine: str, precision: str) -> bool:
        """Whether the exporter compared this engine and precision with torch on real scans, and all was within limits.

        Args:
            engine: "openvino", "onnxruntime" or "tensorrt".
            precision: What it computes in, such as "int8".
        """
        parity = self.card.get("parity")
        results = parity.get("results", ()) if isinstance(parity, Mapping) else ()
        rows = [
            row
            for row in results
            if isinstance(row, Mapping) and (row.get("engine"), row.get("precision")) == (engine, precision)
        ]
        return bool(rows) and all(row.get("passed") is True for row in rows)

    def model_path(self, precision: str = "fp32") -> Path:
        """The ONNX file of that precision.

        Raises:
            BundleError: if the bundle has none.
        """
        models = {str(file.precision): file for file in self.files if file.name.endswith(".onnx")}
        if precision not in models:
            raise BundleError(
                f"bundle {self.name!r} has no ONNX model of precision {precision}; it has {', '.join(models)}"
            )
        return self.folder / models[precision].name


def load_bundle(path: str | Path) -> ModelBundle:
    """Read the bundle in folder `path` and check every file of it.

    Raises:
        BundleError: if bundle.json is missing, of another schema version or contradictory; if a
            file is missing, is a link, leaves the folder or has another sha256; or if an ONNX
            model keeps data in a file of its own; or if bundle.json is not what its own checksum says.
    """
    path = Path(path)
    description = read_description(path)
    bundle = _parse_bundle(path, description)
    refuse_altered_description(path, description)
    for file in bundle.files:
        _verify_file(path, file)
    return bundle


def default_bundle_path() -> Path:
    """The folder of the bundle that comes with the package."""
    return _models_folder() / DEFAULT_BUNDLE


def find_bundle(name_or_path: str | None) -> Path:
    """The folder of a bundle, by its shipped name or by its path; None is the default bundle.

    Raises:
        BundleError: if there is no such folder.
    """
    if name_or_path is None:
        name_or_path = DEFAULT_BUNDLE
    if _SAFE_NAME.fullmatch(name_or_path):
        shipped = _models_folder() / name_or_path
        if (shipped / BUNDLE_FILE).is_file():
            return shipped
    folder = Path(name_or_path).expanduser()
    if (folder / BUNDLE_FILE).is_file():
        return folder
    known = ", ".join(path.name for path in list_bundles()) or "none"
    raise BundleError(
        f"no model bundle {name_or_path!r}: neither a shipped name ({known}) nor a folder with a {BUNDLE_FILE}"
    )


def list_bundles() -> tuple[Path, ...]:
    """The folders of the shipped bundles, by name; they are not verified here."""
    return tuple(sorted(file.parent for file in _models_folder().glob(f"*/{BUNDLE_FILE}")))


def bundle_to_json(bundle: ModelBundle) -> dict[str, Any]:
    """The content of bundle.json for `bundle`: what `load_bundle` reads back."""
    scaling = bundle.preprocessing.scaling
    return {
        "schema_version": SCHEMA_VERSION,
        "name": bundle.name,
        "version": bundle.version,
        "labels": {str(value): meaning for value, meaning in bundle.labels.items()},
        "classes": list(bundle.classes),
        "preprocessing": {
            "orientation": bundle.preprocessing.orientation,
            "spacing_mm": list(bundle.preprocessing.spacing_mm),
            "scaling": {
                "lower_hu": scaling.lower_hu,
                "upper_hu": scaling.upper_hu,
                "mean_hu": scaling.mean_hu,
                "sd_hu": scaling.sd_hu,
            },
        },
        "tile_plan": bundle.tile_plan.describe(),
        **{key: bundle.card[key] for key in _CARD_KEYS if key in bundle.card},
        "files": [
            {"role": file.role, "name": file.name, "sha256": file.sha256, "precision": file.precision}
            for file in bundle.files
        ],
    }


def sha256_of(path: Path) -> str:
    """The sha256 of the file at `path`, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _models_folder() -> Path:
    return Path(__file__).parent / "models"


def _parse_bundle(folder: Path, description: Mapping[str, Any]) -> ModelBundle:
    preprocessing = json_object(description, "preprocessing")
    return ModelBundle(
        folder=folder,
        name=json_text(description, "name"),
        version=json_text(description, "version"),
        labels=_parse_labels(json_object(description, "labels")),
        classes=_parse_classes(description.get("classes", list(LABELS.values()))),
        preprocessing=PreprocessingSpec(
            orientation=json_text(preprocessing, "orientation"),
            spacing_mm=three_numbers(preprocessing, "spacing_mm"),
            scaling=_parse_scaling(json_object(preprocessing, "scaling")),
        ),
        tile_plan=_parse_tile_plan(json_object(description, "tile_plan")),
        files=_parse_files(description.get("files")),
        card=MappingProxyType({key: description[key] for key in _CARD_KEYS if key in description}),
        calibration=read_calibration(description),
    )


def _parse_scaling(scaling: Mapping[str, Any]) -> HounsfieldScaling:
    try:
        return HounsfieldScaling(
            lower_hu=json_number(scaling, "lower_hu"),
            upper_hu=json_number(scaling, "upper_hu"),
            mean_hu=json_number(scaling, "mean_hu"),
            sd_hu=json_number(scaling, "sd_hu"),
        )
    except SettingsError as exc:
        raise BundleError(f"{BUNDLE_FILE}: preprocessing.scaling: {exc}") from exc


def _parse_tile_plan(tile_plan: Mapping[str, Any]) -> TilePlan:
    shape, step = three_integers(tile_plan, "tile_shape"), json_number(tile_plan, "step")
    if not (min(shape) >= 1 and max(shape) <= _LARGEST_TILE and _SMALLEST_STEP <= step <= 1):
        raise BundleError(
            f"{BUNDLE_FILE}: tile_plan has tile_shape {shape} and step {step}; expected lengths from 1 to "
            f"{_LARGEST_TILE} and {_SMALLEST_STEP} <= step <= 1"
        )
    sigma = json_number(tile_plan, "importance_sigma") if "importance_sigma" in tile_plan else 0.125
    average = tile_plan.get("average", "logits")
    try:
        fit = _parse_fit(json_object(tile_plan, "fit")) if tile_plan.get("fit") is not None else None
        return TilePlan(tile_shape=shape, step=step, importance_sigma=sigma, average=average, fit=fit)
    except SettingsError as exc:
        raise BundleError(f"{BUNDLE_FILE}: tile_plan: {exc}") from exc


def _parse_fit(fit: Mapping[str, Any]) -> TileFit:
    voxels = json_number(fit, "largest_voxels")
    if not 1 <= voxels <= _LARGEST_TILE**3:
        raise BundleError(f"{BUNDLE_FILE}: tile_plan.fit.largest_voxels is {voxels}; expected 1 to {_LARGEST_TILE**3}")
    return TileFit(multiple_of=three_integers(fit, "multiple_of"), largest_voxels=int(voxels))


def _parse_labels(labels: Mapping[str, Any]) -> Mapping[int, str]:
    expected = {str(value): meaning for value, meaning in LABELS.items()}
    if dict(labels) != expected:
        raise BundleError(f"{BUNDLE_FILE}: labels are {in_short(dict(labels))}; expected {expected}")
    return LABELS


def _parse_classes(classes: object) -> tuple[str, ...]:
    for known in _LABELS_OF_CLASSES:
        if classes == list(known):
            return known
    allowed = " or ".join(str(list(known)) for known in _LABELS_OF_CLASSES)
    raise BundleError(f"{BUNDLE_FILE}: classes are {in_short(classes)}; expected {allowed}")


def _parse_files(entries: object) -> tuple[ModelFile, ...]:
    if not isinstance(entries, list) or not entries:
        raise BundleError(f"{BUNDLE_FILE}: files must be a list of at least one file")
    files = tuple(_parse_file(entry) for entry in entries)
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise BundleError(f"{BUNDLE_FILE}: files names a file twice: {in_short(sorted(names))}")
    precisions = [file.precision for file in files if file.name.endswith(".onnx")]
    for precision in precisions:
        if precisions.count(precision) > 1:
            raise BundleError(f"{BUNDLE_FILE}: files has two graphs of precision {precision}; expected one of each")
    return files


def _parse_file(entry: object) -> ModelFile:
    if not isinstance(entry, dict):
        raise BundleError(f"{BUNDLE_FILE}: every entry of files must be an object")
    name, sha256 = json_text(entry, "name"), json_text(entry, "sha256")
    if not _SAFE_NAME.fullmatch(name):
        raise BundleError(
            f"{BUNDLE_FILE}: file name {in_short(name)} is refused: letters, digits, '.', '_' and '-' only"
        )
    if not _SHA256.fullmatch(sha256):
        raise BundleError(f"{BUNDLE_FILE}: sha256 of {name} must be 64 lower-case hexadecimals")
    precision = entry.get("precision")
    allowed = _PRECISIONS if name.endswith(".onnx") else (None,)
    if precision not in allowed:
        raise BundleError(f"{BUNDLE_FILE}: precision of {name} is {in_short(precision)}; expected one of {allowed}")
    return ModelFile(role=json_text(entry, "role"), name=name, sha256=sha256, precision=precision)


def _verify_file(folder: Path, file: ModelFile) -> None:
    path = folder / file.name
    if path.is_symlink():
        raise BundleError(f"{path} is a link; a bundle holds its files itself")
    try:
        if not path.is_file():
            raise BundleError(f"{path} is missing, though {BUNDLE_FILE} lists it")
        actual = sha256_of(path)
    except OSError as exc:
        raise BundleError(f"{path} cannot be read: {exc}") from exc
    if actual != file.sha256:
        raise BundleError(f"{path} was altered: its sha256 is {actual}, {BUNDLE_FILE} says {file.sha256}")
    if path.suffix == ".onnx":
        refuse_unsafe_model(path)
