"""A folder of results to report on: phantoms that a pointwise network segmented by the real folder run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
from phantom import PHANTOM_SPACING_MM, phantom_hu, pointwise_logits, spl_affine

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.folder_run import open_folder_run
from covidseg_runtime.folder_scans import FolderJob
from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.segmenter import Segmenter

# Of the phantom, by hand: 20×14 and 16×14 voxels in 20 rows, 6×7×7 of them infected, of 4.5 mm³.
LUNG_ML = (20 * 20 * 14 + 16 * 20 * 14) * 4.5 / 1000
INFECTION_ML = 6 * 7 * 7 * 4.5 / 1000


def segment_phantoms(folder: Path, names: Iterable[str], bundle: Path, *, broken: Iterable[str] = ()) -> Path:
    """Put scans into `folder`/scans, those of `broken` no scans at all, and segment them into `folder`/results."""
    for name in names:
        path = folder / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(phantom_hu(), spl_affine(PHANTOM_SPACING_MM)), path)
    for name in broken:
        (folder / "scans" / name).write_bytes(b"no scan")
    run_folder(folder, bundle)
    return folder / "results"


def run_folder(folder: Path, bundle: Path, **settings: Any) -> None:
    """Segment what is left of `folder`/scans."""
    engine = PointwiseEngine(pointwise_logits)
    segmenter = Segmenter(load_bundle(bundle), engine, SegmentSettings(**settings))
    with open_folder_run(FolderJob(folder / "scans", folder / "results"), segmenter) as run:
        run.segment(lambda record: None)


def lines_of(results: Path) -> list[dict[str, Any]]:
    """The lines of its manifest."""
    return [json.loads(line) for line in (results / "manifest.jsonl").read_text().splitlines()]


def write_lines(results: Path, lines: Iterable[dict[str, Any]], name: str = "manifest.jsonl") -> None:
    """Replace a manifest."""
    results.mkdir(exist_ok=True)
    (results / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def write_drawn_group(results: Path, measures: Iterable[dict[str, Any]]) -> None:
    """Results of made-up measures, each a scan s00.nii, s01.nii …; what is missing is as in a usual scan."""
    results.mkdir(exist_ok=True)
    lines = []
    for number, given in enumerate(measures):
        stem = f"s{number:02}_covidseg"
        report = json.dumps(_drawn_report(given)).encode()
        (results / f"{stem}.json").write_bytes(report)
        (results / f"{stem}.nii.gz").write_bytes(b"")
        outputs = {
            "labels": {"file": f"{stem}.nii.gz", "sha256": hashlib.sha256(b"").hexdigest()},
            "report": {"file": f"{stem}.json", "sha256": hashlib.sha256(report).hexdigest()},
        }
        lines.append(
            {
                "schema_version": 1,
                "scan": f"s{number:02}.nii",
                "status": "ok",
                "settings": {"model": given.get("model", "drawn 1"), "precision": given.get("precision", "f32")},
                "finished": "2026-01-02T03:04:05+00:00",
                "seconds": given.get("seconds", 10.0),
                "outputs": outputs,
                "warnings": given.get("warnings", []),
            }
        )
    write_lines(results, lines)


def _drawn_report(given: dict[str, Any]) -> dict[str, Any]:
    left, right = given.get("lungs_ml", (2000.0, 2400.0))
    infection = given.get("infection_ml", 100.0)
    return {
        "schema_version": 1,
        "measures": {
            "lung_volume_ml": {"whole": left + right, "left": left, "right": right},
            "infection_volume_ml": {"whole": infection, "left": infection, "right": 0.0},
            "infection_percent": {
                "whole": None if not left + right else round(100 * infection / (left + right), 3),
                "left": None,
                "right": None,
            },
            "ground_glass_ml": 0.75 * infection,
            "consolidation_ml": 0.25 * infection,
            "mean_infection_hu": given.get("mean_infection_hu", -500.0) if infection else None,
            "lesion_count": 2,
        },
    }
