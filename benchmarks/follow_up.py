"""Is a comparison with an earlier scan right, and what does it cost?

    python benchmarks/follow_up.py DATA [--only pairs --only same --only patients --only cost]

DATA holds covid/, ct/ and healthy_and_other/. Whole scans, default model. All changes are simulated:

- pairs: simulated lesions that come, go, grow, shrink or stay in a real scan; the current scan is shifted by 14 mm,
  turned by 5 degrees and has slices of 3 or 5 mm. Once with the true label maps, once with those of the network.
- same: one scan against itself on other grids and in other (simulated) breath-holds. What is new or resolved is wrong.
- patients: each pair of different patients, which has to be warned of.
- cost: two scans of 512 x 512 x 300 voxels, in a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from record import earlier_result, keep_result

from covidseg_runtime import Segmenter, read_label_map, read_volume
from covidseg_runtime.follow_up.coarse_chest import CoarseChest
from covidseg_runtime.follow_up.comparison import FollowUp, compare_scans
from covidseg_runtime.follow_up.follow_up_checks import LEAST_LUNG_DICE
from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.follow_up.placement import Placement
from covidseg_runtime.follow_up.registration import register
from covidseg_runtime.process_memory import peak_memory_mib
from covidseg_runtime.volume import MODEL_ORIENTATION, to_orientation

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from breath_holds import BreathHold
from follow_up_pairs import Move, in_orientation, moved, simulated_pair, with_lungs

HOSTS = ("ct/LIDC-IDRI-0001", "ct/LIDC-IDRI-0003", "healthy_and_other/covidctmd_normal001", "covid/coronacases_005")
SLICES_MM = (3.0, 5.0)
INFECTED = ("covid/coronacases_002", "covid/coronacases_005", "covid/coronacases_008")
PATIENTS = tuple(f"covid/coronacases_{number:03d}" for number in (1, 2, 3, 4, 5, 7, 8, 10))
BREATH_HOLDS_MM = (20.0, -20.0, 40.0, -40.0)
OTHER_PLACE = Move(shift_mm=(6.0, -8.0, 10.0), degrees=(2.0, -3.0, 4.0))
LARGE_SHAPE = (512, 512, 300)

Row = dict[str, Any]


def read_scan(path: Path) -> LabelledScan:
    """A scan (Z, Y, X) with the infection of its data set; lungs by threshold."""
    turned = to_orientation(read_volume(Path(f"{path}_ct.nii.gz")), MODEL_ORIENTATION)
    mask = Path(f"{path}_infection.nii.gz")
    infection = np.zeros(turned.shape, np.bool_)
    if mask.exists():
        infection = to_orientation(read_label_map(mask), MODEL_ORIENTATION).voxels > 0
    return with_lungs(turned, infection, path.name)


def by_network(scan: LabelledScan, segmenter: Segmenter) -> LabelledScan:
    """The same CT with the network's labels."""
    return replace(scan, labels=segmenter.segment(scan.volume).labels)


def thick(scan: LabelledScan, slices_mm: float) -> tuple[float, float, float]:
    """Its spacing, with other slices."""
    _, y, x = scan.turned.spacing_mm
    return slices_mm, y, x


def compare_pairs(data: Path, segmenter: Segmenter) -> list[Row]:
    """Simulated changes against what is found."""
    rows = []
    for host in HOSTS:
        pair = simulated_pair(read_scan(data / host), seed=1)
        prior_by_network = by_network(pair.prior, segmenter)
        truth = {kind: pair.truth.of_kind(kind) for kind in ("new", "resolved", "persistent")}
        for slices_mm in SLICES_MM:
            row: Row = {"host": Path(host).name, "slices_mm": [pair.prior.turned.spacing_mm[0], slices_mm]}
            row["true"] = _round({kind: ml[1:] for kind, ml in truth.items()})
            row["true"]["delta_ml"] = round(pair.truth.delta_ml, 2)
            current = moved(pair.current, OTHER_PLACE, thick(pair.current, slices_mm))
            network = prior_by_network, by_network(current, segmenter)
            for labels, scans in (("true_labels", (pair.prior, current)), ("network", network)):
                row[labels] = found(compare_scans(*scans))
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def found(follow_up: FollowUp) -> Row:
    """What a comparison says, in mL (prior, current)."""
    lesions, totals = follow_up.lesions, follow_up.totals.infection_ml
    return {
        **_round({
            kind: (sum(one.prior_ml for one in lesions.of(kind)), sum(one.current_ml for one in lesions.of(kind)))
            for kind in ("new", "resolved", "persistent")
        }),
        "delta_ml": totals.delta,
        "small": lesions.small.describe(),
        "outside_view": lesions.outside_view.describe(),
        "lung_dice": round(float(follow_up.registration.lung_dice), 3),
    }  # fmt: skip


def _round(kinds: dict[str, tuple[float, ...]]) -> Row:
    return {kind: [round(ml, 2) for ml in volumes] for kind, volumes in kinds.items()}


def compare_same(data: Path, segmenter: Segmenter) -> list[Row]:
    """One scan against itself, otherwise placed, sampled or breathing."""
    rows = []
    for name in INFECTED:
        scan = read_scan(data / name)
        for way, current, hold in other_ways(scan):
            row: Row = {"scan": scan.name, "way": way}
            for labels, pair in (("true_labels", (scan, current)), ("network", None)):
                pair = pair or (network_labels(scan, segmenter), by_network(current, segmenter))
                follow_up = compare_scans(*pair)
                row[labels] = wrong(follow_up)
                if hold is not None and labels == "true_labels":
                    row["registration_error_mm"] = registration_error(follow_up.registration.placement, hold)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


@cache
def network_labels(scan: LabelledScan, segmenter: Segmenter) -> LabelledScan:
    """As `by_network`, kept for the next comparison of the same scan."""
    return by_network(scan, segmenter)


def other_ways(scan: LabelledScan) -> Iterator[tuple[str, LabelledScan, BreathHold | None]]:
    """Name, current scan, and the truth where it is a breath-hold."""
    same = scan.turned.spacing_mm
    yield "itself", scan, None
    yield "shifted by 10 mm", moved(scan, Move(shift_mm=(6.0, 4.0, -7.0)), same), None
    yield "slices of 5 mm, other axes", in_orientation(moved(scan, Move(), thick(scan, 5.0)), "RAI"), None
    yield "5 % larger", moved(scan, Move(scale=1.05), same), None
    for diaphragm_mm in BREATH_HOLDS_MM:
        hold = BreathHold.of(scan, diaphragm_mm)
        yield f"simulated breath-hold, diaphragm {diaphragm_mm:+.0f} mm", hold.scan, hold


def wrong(follow_up: FollowUp) -> Row:
    """New and resolved lesions, of which there are none in truth, and how well the lungs matched."""
    lesions, totals = follow_up.lesions, follow_up.totals
    return {
        "new": len(lesions.of("new")),
        "new_ml": round(sum(one.current_ml for one in lesions.of("new")), 2),
        "resolved": len(lesions.of("resolved")),
        "resolved_ml": round(sum(one.prior_ml for one in lesions.of("resolved")), 2),
        "largest_ml": round(max((one.prior_ml + one.current_ml for kind in ("new", "resolved") for one in
                                 lesions.of(kind)), default=0.0), 2),
        "small": lesions.small.prior_count + lesions.small.current_count,
        "persistent": len(lesions.of("persistent")),
        "infection_ml": [totals.infection_ml.prior, totals.infection_ml.current],
        "lung_change_percent": totals.lung_ml.delta_percent,
        "lung_dice": round(float(follow_up.registration.lung_dice), 3),
    }  # fmt: skip


def registration_error(placement: Placement, hold: BreathHold) -> Row:
    """Mean and 95th percentile over the lungs, of the affine part alone and of all."""
    points, before = hold.lung_points()
    errors = {}
    for part, tried in (("affine", Placement.of_matrix(placement.current_to_prior)), ("all", placement)):
        apart = np.linalg.norm(tried.to_prior(points) - before, axis=1)
        errors[part] = [round(float(apart.mean()), 2), round(float(np.percentile(apart, 95)), 2)]
    return errors


def compare_patients(data: Path) -> Row:
    """Dice of the lungs of each ordered pair of different patients."""
    chests = {name: CoarseChest.of(read_scan(data / name)) for name in PATIENTS}
    dice = {
        f"{Path(prior).name} {Path(current).name}": round(float(register(chests[prior], chests[current]).lung_dice), 3)
        for prior, current in permutations(PATIENTS, 2)
    }
    values = sorted(dice.values())
    unwarned = [pair for pair, value in dice.items() if value >= LEAST_LUNG_DICE]
    return {"pairs": len(dice), "lowest": values[0], "median": values[len(values) // 2], "highest": values[-1],
            "limit": LEAST_LUNG_DICE, "not_warned_of": unwarned}  # fmt: skip


def measure_cost(data: Path, segmenter: Segmenter) -> Row:
    """Seconds and memory of one comparison of two large scans, read from their files as `covidseg report` does.

    The scan is a COVID-19 case whose voxels are repeated until it has that shape; its labels are the network's.
    """
    scan = read_volume(data / "covid" / "coronacases_008_ct.nii.gz")
    labels = segmenter.segment(scan).labels
    affine = scan.affine @ np.diag([0.5, 0.5, 1.0, 1.0])
    with tempfile.TemporaryDirectory() as folder:
        for name, voxels in (("ct", scan.voxels), ("labels", labels)):
            fine = np.repeat(np.repeat(voxels[:, :, : LARGE_SHAPE[2]], 2, 0), 2, 1)
            nibabel.save(nibabel.Nifti1Image(fine, affine), Path(folder) / f"{name}.nii.gz")
        command = [sys.executable, __file__, folder, "--large"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after, seconds, cpu_seconds = (float(word) for word in said.split())
    return {
        "shape": LARGE_SHAPE,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_mib": round(after),
        "peak_mib_of_reading_both": round(before),
    }


def compare_large(folder: Path) -> None:
    """Print peak MiB before and after the comparison, its seconds, and those of the CPU."""
    prior, current = (
        LabelledScan(read_volume(folder / "ct.nii.gz"), read_label_map(folder / "labels.nii.gz").voxels, name)
        for name in ("prior", "current")
    )
    before = peak_memory_mib()
    start, cpu_start = time.perf_counter(), time.process_time()
    compare_scans(prior, current)
    print(before, peak_memory_mib(), time.perf_counter() - start, time.process_time() - cpu_start)


def main() -> None:
    """Answer each question and keep the numbers; those not asked for stay as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", action="append", choices=("pairs", "same", "patients", "cost"))
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.large:
        compare_large(arguments.data)
        return
    with Segmenter.open() as segmenter:
        questions: dict[str, Callable[[], Any]] = {
            "pairs": lambda: compare_pairs(arguments.data, segmenter),
            "same": lambda: compare_same(arguments.data, segmenter),
            "patients": lambda: compare_patients(arguments.data),
            "cost": lambda: measure_cost(arguments.data, segmenter),
        }
        asked = arguments.only or list(questions)
        kept = earlier_result("follow_up")
        keep_result(
            "follow_up",
            {
                "simulated": "every change between two scans, every breath-hold",
                **{name: ask() if name in asked else kept.get(name) for name, ask in questions.items()},
            },
        )


if __name__ == "__main__":
    main()
