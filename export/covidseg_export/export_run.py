"""A trained network → a bundle, or nothing: graphs, parity on real scans, measures, writing."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from covidseg_export.calibration import (
    LungVoxels,
    calibration_in_a_line,
    calibration_problem,
    describe_calibration,
    draw_lung_voxels,
)
from covidseg_export.decision import choose_offset, decision_in_a_line, takes_offset, with_offset
from covidseg_export.evidence import Evidence, measure_evidence
from covidseg_export.graph_rules import require_float_sums
from covidseg_export.held_out import measure_held_out
from covidseg_export.model_card import INTENDED_USE, write_model_card
from covidseg_export.parity import (
    Candidate,
    Parity,
    ParityCheck,
    ParityLimits,
    ParityScan,
    parity_in_a_line,
    require_parity,
)
from covidseg_export.precision import to_fp16
from covidseg_export.quantisation import draw_calibration_tiles, to_int8
from covidseg_export.source import ExportSource, describe_network
from covidseg_export.to_onnx import OPSET, export_onnx
from covidseg_export.write_bundle import json_bytes, write_bundle_folder
from covidseg_runtime.bundle import LABELS, SCHEMA_VERSION, ModelBundle, description_sha256, load_bundle
from covidseg_runtime.engines import FILE_OF_PRECISION, available_engines, engine_candidates, open_choice, open_engine
from covidseg_runtime.errors import SettingsError
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.resampling import GridPair, to_model_grid
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume import to_orientation
from covidseg_runtime.volume_files import read_label_map, read_volume
from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.datasets.dataset import CaseVolumes, Dataset, find_case
from covidseg_train.source_commit import source_commit
from covidseg_train.torch_engine import TorchEngine

FilePrecision = Literal["fp32", "fp16", "int8"]
FILE_PRECISIONS: tuple[FilePrecision, ...] = ("fp32", "fp16", "int8")
MODEL_FILES: Mapping[FilePrecision, str] = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}
PARITY_SCANS = 2
CALIBRATION_SCANS = 4
CALIBRATION_TILES = 16

Report = Callable[[str], None]


@dataclass(frozen=True)
class ScanFiles:
    """A CT to compare on, with the mask of its infection if there is one."""

    ct: Path
    truth: Path | None = None


@dataclass(frozen=True)
class ExportSettings:
    """What is exported and how it is judged.

    Attributes:
        precisions: The graphs; fp32 is always among them.
        scans: CTs to compare on; empty: the first two held-out cases of the training.
        limits: What a precision may cost.
        outside_limits: What happens outside them: ``refuse`` writes nothing, ``write`` writes and says so.
        calibration_seed: Which tiles of the training scans int8 is calibrated on follows from it.
        decision_folds: Other folds of the recipe, on whose held-out cases the decision is chosen.
        evidence: Where more is to be learned of the network than on its own held-out cases.
    """

    precisions: tuple[FilePrecision, ...] = ("fp32",)
    scans: tuple[ScanFiles, ...] = ()
    limits: ParityLimits = field(default_factory=ParityLimits)
    outside_limits: Literal["refuse", "write"] = "refuse"
    calibration_seed: int = 2020
    decision_folds: tuple[ExportSource, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)

    def __post_init__(self) -> None:
        """Refuse unknown precisions, and an export without the reference."""
        unknown = sorted(set(self.precisions) - set(FILE_PRECISIONS))
        if unknown or "fp32" not in self.precisions:
            given = ",".join(self.precisions)
            raise SettingsError(f"precision is {given}; expected fp32 and any of fp16 and int8, such as fp32,fp16.")


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        bundle_folder: The bundle.
        parity: Every comparison with torch.
        description: Content of bundle.json.
    """

    bundle_folder: Path
    parity: tuple[Parity, ...]
    description: Mapping[str, Any]


def export_bundle(
    source: ExportSource, bundle_folder: Path, settings: ExportSettings, report: Report = lambda line: None
) -> ExportResult:
    """Export a network.

    Args:
        source: The network.
        bundle_folder: Where the bundle shall lie.
        settings: What is exported and how it is judged.
        report: Gets a line a step.

    Raises:
        BundleError: If a file's answer is outside the limits; nothing is written then.
        VolumeError: If a scan is missing or unsuitable.
    """
    scans = tuple(read_parity_scans(source, settings.scans))
    folds = len(settings.decision_folds)
    fold_voxels = held_out_by_folds(source, settings.decision_folds)
    source = move_decision(source, report, fold_voxels, folds)
    graphs = make_graphs(source, settings, report)
    description = describe(source, graphs)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_draft(Path(folder), description, graphs)
        parity = check_parity(source, bundle, scans, report)
        if settings.outside_limits == "refuse":
            require_parity(parity, settings.limits)
        description["parity"] = describe_parity(parity, settings)
        description["metrics"] = measure(bundle, source, settings.evidence)
        offset = (source.decision or {}).get("infection_offset", 0.0)
        moved = [one.with_offset(offset) for one in fold_voxels]
        description.update(calibrate_probability(bundle, source, report, moved, folds))
    files = {
        **graphs_by_name(graphs),
        "MODEL_CARD.md": write_model_card(description, settings.limits).encode(),
    }
    description["files"] = list_files(files, graphs)
    description["sha256"] = description_sha256(description)
    write_bundle_folder(bundle_folder, {**files, "bundle.json": json_bytes(description)})
    return ExportResult(bundle_folder, parity, description)


def read_parity_scans(source: ExportSource, files: Sequence[ScanFiles]) -> Iterator[ParityScan]:
    """The scans to compare on: those named, or the first held-out cases.

    Raises:
        VolumeError: If one is missing or unsuitable.
        SettingsError: If none is named and the training's cases are not at hand.
    """
    for one in files:
        ct = read_volume(one.ct)
        truth = None if one.truth is None else align_truth(ct, read_label_map(one.truth)) == INFECTION
        yield ParityScan(one.ct.name, ct, truth)
    if files:
        return
    for name in (*source.cases.held_out, *source.cases.train)[:PARITY_SCANS]:
        volumes = _dataset(source).read(find_case(_dataset(source), _root(source), name))
        yield ParityScan(name, volumes.ct, volumes.lesion.voxels > 0)


def held_out_by_folds(source: ExportSource, folds: Sequence[ExportSource]) -> list[LungVoxels]:
    """What other folds of the recipe say of the cases they held out.

    Raises:
        SettingsError: If another fold held out what the source does as well: nothing would be left to measure it on.
    """
    shared = {case for fold in folds for case in fold.cases.untouched} & set(source.cases.untouched)
    if shared:
        raise SettingsError(f"A decision fold and {source.name} both hold out {', '.join(sorted(shared))}.")
    return [one for fold in folds for one in decision_voxels(fold, fold.cases.untouched)]


def move_decision(
    source: ExportSource, report: Report, fold_voxels: Sequence[LungVoxels] = (), folds: int = 0
) -> ExportSource:
    """The source with its decision moved to where it is best on the cases that validated the training.

    With other folds of its recipe: on the voxels of cases that these held out. The source itself comes back where that
    was done before, where no such case shows infection, and where the network has no last convolution of its own.
    """
    if source.decision is not None or not takes_offset(source.network):
        return source
    voxels = fold_voxels if folds else decision_voxels(source, source.cases.validation)
    if not any(one.infected.any() for one in voxels):
        return source
    section = replace(choose_offset(voxels), folds=folds).to_dict()
    report(f"decision: {decision_in_a_line(section)}")
    return replace(source, network=with_offset(source.network, section["infection_offset"]), decision=section)


def decision_voxels(source: ExportSource, names: Sequence[str]) -> list[LungVoxels]:
    """What the network says of voxels in the lungs of cases; nothing where that cannot be asked."""
    if not names:
        return []
    graphs: dict[FilePrecision, bytes] = {"fp32": export_onnx(source.network, source.tile_plan.tile_shape)}
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_draft(Path(folder), describe(source, graphs), graphs)
        if calibration_problem(bundle, names) is not None:
            return []
        with closing(open_engine(bundle, device="cpu", precision="f32")) as engine:
            return draw_lung_voxels(bundle, engine, read_cases(source, names))


def make_graphs(source: ExportSource, settings: ExportSettings, report: Report) -> dict[FilePrecision, bytes]:
    """The ONNX files by precision.

    fp32 takes its means axis by axis and is exact in every engine; the others, which round more than a native
    normalisation is off, are made from a graph with native ones.
    """
    shape = source.tile_plan.tile_shape
    report("writing the fp32 graph")
    graphs: dict[FilePrecision, bytes] = {"fp32": export_onnx(source.network, shape)}
    if settings.precisions == ("fp32",):
        return graphs
    native = export_onnx(source.network, shape, normalisation="native")
    if "fp16" in settings.precisions:
        report("writing the fp16 graph")
        graphs["fp16"] = to_fp16(native)
        require_float_sums(graphs["fp16"], MODEL_FILES["fp16"])
    if "int8" in settings.precisions:
        report("calibrating int8 on training scans")
        graphs["int8"] = to_int8(native, calibration_tiles(source, settings.calibration_seed))
    return graphs


def calibration_tiles(source: ExportSource, seed: int) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """Tiles (1, 1, Z, Y, X) of the first training scans, as the network sees them."""
    preprocessing, names = source.preprocessing, source.cases.train
    if names == ("*",):
        names = tuple(case.name for case in _dataset(source).find_cases(_root(source)))
    chosen = names[:CALIBRATION_SCANS]
    for index, name in enumerate(chosen):
        ct = _dataset(source).read(find_case(_dataset(source), _root(source), name)).ct
        ct = to_orientation(ct, preprocessing.orientation)
        grids = GridPair.for_spacing(ct.shape, ct.spacing_mm, preprocessing.spacing_mm)
        hu = np.rint(to_model_grid(ct.voxels, grids)).astype(np.int16)
        count = CALIBRATION_TILES // len(chosen)
        yield from draw_calibration_tiles(
            hu, preprocessing.scaling, source.tile_plan.tile_shape, count=count, seed=seed + index
        )


def check_parity(
    source: ExportSource, bundle: ModelBundle, scans: Sequence[ParityScan], report: Report
) -> tuple[Parity, ...]:
    """Compare every file, in every engine of this machine's CPU, with torch on every scan."""
    results = []
    for scan in scans:
        report(f"{scan.name}: torch fp32")
        check = ParityCheck(bundle, TorchEngine(source.network, device=torch.device("cpu")), scan)
        for candidate in open_candidates(bundle):
            results.append(check.compare(candidate))
            candidate.engine.close()
            report(parity_in_a_line(results[-1]))
    return tuple(results)


def open_candidates(bundle: ModelBundle) -> Iterator[Candidate]:
    """Every file of a bundle in every CPU engine and precision that this machine has."""
    files = {file.precision: file.name for file in bundle.files if file.role == "model"}
    able = {info.name: info.precisions for info in available_engines() if info.problem is None}
    for precision, file_precision in FILE_OF_PRECISION.items():
        if file_precision not in files:
            continue
        for choice in engine_candidates("auto", "cpu", precision):
            if precision in able.get(choice.name, ()):
                yield Candidate(files[file_precision], open_choice(bundle, choice))


def describe(source: ExportSource, graphs: Mapping[FilePrecision, bytes]) -> dict[str, Any]:
    """Everything bundle.json says, but for parity and metrics."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": source.name,
        "version": source.version,
        "labels": {str(value): meaning for value, meaning in LABELS.items()},
        "classes": list(source.classes),
        "preprocessing": {
            "orientation": source.preprocessing.orientation,
            "spacing_mm": list(source.preprocessing.spacing_mm),
            "scaling": asdict(source.preprocessing.scaling),
        },
        "tile_plan": source.tile_plan.describe(),
        "network": describe_network(source.network, OPSET),
        "training": dict(source.training),
        **({"decision": dict(source.decision)} if source.decision else {}),
        "commit": source_commit(),
        "intended_use": INTENDED_USE,
        "licence": source.licence,
        "files": list_files(graphs_by_name(graphs), graphs),
    }


def graphs_by_name(graphs: Mapping[FilePrecision, bytes]) -> dict[str, bytes]:
    """The ONNX files by name."""
    return {MODEL_FILES[precision]: content for precision, content in graphs.items()}


def list_files(files: Mapping[str, bytes], graphs: Mapping[FilePrecision, bytes]) -> list[dict[str, Any]]:
    """The section ``files`` of bundle.json."""
    precisions = {MODEL_FILES[precision]: precision for precision in graphs}
    return [
        {
            "role": "model" if name in precisions else "card",
            "name": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "precision": precisions.get(name),
        }
        for name, content in files.items()
    ]


def describe_parity(parity: Sequence[Parity], settings: ExportSettings) -> dict[str, Any]:
    """The section ``parity`` of bundle.json."""
    return {
        "limits": settings.limits.to_dict(),
        "forced": any(one.refuses(settings.limits) for one in parity),
        "results": [one.to_dict(settings.limits) for one in parity],
    }


def write_draft(folder: Path, description: Mapping[str, Any], graphs: Mapping[FilePrecision, bytes]) -> ModelBundle:
    """Lay the bundle out in a folder of its own, as engines and the runtime read it."""
    for name, content in graphs_by_name(graphs).items():
        (folder / name).write_bytes(content)
    (folder / "bundle.json").write_bytes(json_bytes(description))
    return load_bundle(folder)


def measure(bundle: ModelBundle, source: ExportSource, evidence: Evidence) -> dict[str, Any]:
    """The section ``metrics`` of bundle.json: the fp32 file on the held-out cases, and what else is known."""
    if not source.cases.held_out and evidence == Evidence():
        return {"held_out": []}
    with Segmenter(bundle, open_engine(bundle, device="cpu")) as segmenter:
        held_out = source.cases.held_out
        results = measure_held_out(segmenter, _dataset(source), _root(source), held_out) if held_out else []
        more = measure_evidence(evidence, source.training, segmenter)
    return {"held_out": [result.to_dict() for result in results], **more}


def calibrate_probability(
    bundle: ModelBundle,
    source: ExportSource,
    report: Report,
    fold_voxels: Sequence[LungVoxels] = (),
    folds: int = 0,
) -> dict[str, Any]:
    """The section ``calibration`` of bundle.json under its name, from the fp32 file; empty where none can be fitted."""
    cases = source.cases
    problem = calibration_problem(bundle, [one.case for one in fold_voxels] or cases.validation)
    if problem is not None:
        report(f"no calibration: {problem}")
        return {}
    report("calibrating the probability")
    with closing(open_engine(bundle, device="cpu", precision="f32")) as engine:
        fitted_on = fold_voxels or draw_lung_voxels(bundle, engine, read_cases(source, cases.validation))
        if not any(one.infected.any() for one in fitted_on):
            report("no calibration: the cases to fit it on show no infection")
            return {}
        measured_on = draw_lung_voxels(bundle, engine, read_cases(source, cases.untouched))
    section = {**describe_calibration(fitted_on, measured_on), "folds": folds}
    report(calibration_in_a_line(section))
    return {"calibration": section}


def read_cases(source: ExportSource, names: Sequence[str]) -> Iterator[tuple[str, CaseVolumes]]:
    """Name, scan and reference of cases, one after the other."""
    dataset, root = _dataset(source), _root(source)
    return ((name, dataset.read(find_case(dataset, root, name))) for name in names)


def _dataset(source: ExportSource) -> Dataset:
    if not source.cases.dataset:
        raise SettingsError(f"the training data of {source.name} is unknown: name the scans by --scan.")
    return get_dataset(source.cases.dataset)


def _root(source: ExportSource) -> Path:
    if source.cases.root is None:
        raise SettingsError(f"where {source.cases.dataset} lies is unknown: give its folder by --data DIR.")
    return source.cases.root
