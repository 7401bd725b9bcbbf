"""From a scan's file to its label map's: how long do we take, and how long do MONAI, nnU-Net and ONNX Runtime?

    python benchmarks/whole_scan.py SCAN --peer-python .venv-peers/bin/python [--model BUNDLE] [--rounds 3]
        [--contestants NAME ...] [--folder DIR]

Same weights, threads and cores. A contestant is a fresh process that segments the scan once; the contestants take turns
in every round. The time is from reading to writing with the model loaded, so that the first tile is a cold one; loading
stands beside it. With --folder, rounds that were measured before are kept and count: `--rounds 1` for all, then
`--rounds 3 --contestants ...` for those that are fast. For --peer-python see training_speed.py. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import keep_result

from covidseg_runtime import find_bundle, load_bundle, read_label_map, read_volume
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.measures import INFECTION
from covidseg_runtime.metrics import dice

HERE = Path(__file__).parent
MONAI, NNUNET, REFERENCE = "monai-0.5", "nnunet-0.5", "balanced-f32"
IMPORTS = {
    "package": "import covidseg_runtime",
    "names": "from covidseg_runtime import Segmenter, read_volume, write_label_map",
}
IMPORT_REPEATS = 5
SECONDS_A_PROCESS = 1800
DIGITS_S = 3


@dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Attributes:
        name: As it is asked for.
        kind: Its file in peers/ is ``whole_scan_<kind>.py``.
        options: As that file describes them.
    """

    name: str
    kind: str
    options: Mapping[str, Any]


def _ours(name: str, quality: str, precision: str, way: str = "segmenter", engine: str = "auto") -> Contestant:
    return Contestant(name, "covidseg", {"engine": engine, "precision": precision, "quality": quality, "way": way})


CONTESTANTS = (
    Contestant(MONAI, "monai", {"overlap": 0.5}),
    Contestant("monai-own", "monai", {"overlap": None}),
    Contestant(NNUNET, "nnunet", {}),
    _ours("onnxruntime", "balanced", "f32", engine="onnxruntime"),
    _ours("fast", "fast", "auto"),
    _ours("balanced", "balanced", "auto"),
    _ours("best", "best", "auto"),
    _ours(REFERENCE, "balanced", "f32"),
    _ours("balanced-bf16", "balanced", "bf16"),
    _ours("balanced-int8", "balanced", "int8"),
    _ours("equal-f32", "balanced", "f32", way="peer"),
    _ours("equal-auto", "balanced", "auto", way="peer"),
)


def take_part(one: Contestant, place: Path, arguments: argparse.Namespace, model: Path) -> None:
    """Let a contestant segment the scan in a process of its own, which leaves ``place``.json and ``place``.nii.gz.

    If it cannot, its own last words are left as the ``problem``.
    """
    outcome = place.with_name(f"{place.name}.json")
    job = {
        "scan": str(arguments.scan.resolve()),
        "labels": str(place.with_name(f"{place.name}.nii.gz")),
        "outcome": str(outcome),
        "model": str(model),
        "threads": arguments.threads,
        "options": one.options,
        "started": time.time(),
    }
    job_file = place.with_name("job.json")
    job_file.write_text(json.dumps(job), encoding="utf-8")
    python = arguments.peer_python if one.kind == "nnunet" else sys.executable
    done = subprocess.run(
        [str(python), str(HERE / "peers" / f"whole_scan_{one.kind}.py"), str(job_file)],
        env={**os.environ, **_thread_limits(arguments.threads)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_A_PROCESS,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        outcome.write_text(json.dumps({"problem": last}), encoding="utf-8")


def _thread_limits(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return {**dict.fromkeys(names, str(threads)), "nnUNet_def_n_proc": str(threads)}


def write_network(bundle: ModelBundle, folder: Path) -> None:
    """Write the bundle's network for a Python without covidseg: see whole_scan_nnunet.py."""
    import torch

    from covidseg_export.source import load_bundle_network

    network, plan, spec = load_bundle_network(bundle), bundle.tile_plan, bundle.preprocessing
    described = {
        "classes": bundle.classes,
        "network": {**asdict(network.spec)},
        "patches": {"batch_size": 1, "shape": plan.tile_shape},
        "grid": {"spacing_mm": spec.spacing_mm},
        "scaling": asdict(spec.scaling),
    }
    folder.mkdir(exist_ok=True)
    (folder / "network.json").write_text(json.dumps(described), encoding="utf-8")
    torch.save(network.state_dict(), folder / "weights.pt")
    tile = np.random.default_rng(0).standard_normal((1, 1, *plan.tile_shape), np.float32)
    with torch.inference_mode():
        np.savez(folder / "probe.npz", tile=tile, logits=network.finest_logits(torch.from_numpy(tile)).numpy())


def claim_folder(folder: Path, arguments: argparse.Namespace, bundle: ModelBundle) -> None:
    """Refuse to mix rounds of different scans, networks or numbers of threads."""
    files = {file.name: file.sha256 for file in bundle.files}
    setup = json.dumps({"scan": arguments.scan.name, "files": files, "threads": arguments.threads})
    kept = folder / "setup.txt"
    if kept.exists() and kept.read_text(encoding="utf-8") != setup:
        raise SystemExit(f"{folder} holds rounds of another scan, model or number of threads; give another --folder")
    kept.write_text(setup, encoding="utf-8")


def hold_contest(arguments: argparse.Namespace, bundle: ModelBundle, folder: Path) -> None:
    """Measure every round that is not in the folder yet, the contestants in turn within each."""
    wanted = [one for one in CONTESTANTS if one.name in arguments.contestants]
    network = folder / "network"
    if any(one.kind == "nnunet" for one in wanted) and not network.exists():
        write_network(bundle, network)
    for number in range(arguments.rounds):
        for one in wanted:
            place = folder / f"{one.name}.{number}"
            if not place.with_name(f"{place.name}.json").exists():
                take_part(one, place, arguments, network if one.kind == "nnunet" else bundle.folder.resolve())


def read_infection(labels: Path, one: Contestant, bundle: ModelBundle, scan: Path) -> tuple[NDArray[np.bool_], float]:
    """Infection (X, Y, Z) bool of a label map and its volume in mL; a map that does not lie on the scan is an error."""
    found, source = read_label_map(labels), read_volume(scan)
    if found.shape != source.shape or not np.allclose(found.affine, source.affine, atol=1e-3) or not found.voxels.any():
        raise SystemExit(f"{one.name} left a wrong label map: {found.shape}, the scan is {source.shape}")
    infection = found.voxels == (len(bundle.classes) - 1 if one.kind == "nnunet" else INFECTION)
    return infection, float(infection.sum()) * float(np.prod(source.spacing_mm)) / 1000


def summarise(name: str, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of a contestant's rounds; those of its parts are of the round whose time is the (lower) median."""
    problem = next((outcome["problem"] for outcome in outcomes if "problem" in outcome), None)
    if problem is not None:
        return {"contestant": name, "problem": problem}
    seconds = [outcome["seconds"] for outcome in outcomes]
    middle = outcomes[seconds.index(statistics.median_low(seconds))]
    parts = ("before_s", "sliding_window_s", "network_s", "after_s", "cpu_s")
    return {
        "contestant": name,
        **middle["used"],
        "seconds": round(statistics.median(seconds), DIGITS_S),
        "all_seconds": [round(one, DIGITS_S) for one in seconds],
        "load_s": round(statistics.median(outcome["load_s"] for outcome in outcomes), DIGITS_S),
        "peak_mib": round(max(outcome["peak_mib"] for outcome in outcomes)),
        "network_calls": middle["calls"],
        **{part: round(middle[part], DIGITS_S) for part in parts},
        "stages_s": {stage: round(value, DIGITS_S) for stage, value in middle["stages"].items()},
    }


def compare(rows: Sequence[dict[str, Any]], infections: Mapping[str, NDArray[np.bool_]]) -> None:
    """Add to each row how many times faster than the peers it is, and how alike its infection is."""
    seconds = {row["contestant"]: row["seconds"] for row in rows if "seconds" in row}
    for row in rows:
        name = row["contestant"]
        if name not in seconds:
            continue
        for key, peer in (("times_monai", MONAI), ("times_nnunet", NNUNET)):
            row[key] = round(seconds[peer] / seconds[name], 2) if peer in seconds else None
        for key, other in (("dsc_monai", MONAI), ("dsc_balanced_f32", REFERENCE)):
            row[key] = round(dice(infections[name], infections[other]), 4) if other in infections else None


def relate_to_peak(rows: Sequence[dict[str, Any]], machine: Mapping[str, Any]) -> None:
    """Add to each row what its network computed in a second, and the share that is of the machine's peak."""
    for row in rows:
        if "seconds" in row:
            speed = machine["gflop_per_tile"] * row["network_calls"] / row["network_s"]
            peak = machine["peaks"][f"openvino {row['precision']}"]["gflop_per_s"]
            row["gflop_per_s"], row["share_of_peak"] = round(speed, 1), round(speed / peak, 3)


def measure_machine(bundle: ModelBundle, threads: int, kept: Path) -> dict[str, Any]:
    """What whole_scan_arithmetic.py prints, and the times of import; measured once for a folder."""
    if kept.exists():
        measured: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return measured
    command = [
        sys.executable,
        str(HERE / "whole_scan_arithmetic.py"),
        str(bundle.model_path()),
        "--threads",
        str(threads),
    ]
    environment = {**os.environ, **_thread_limits(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured = {**json.loads(done.stdout), "import_s": time_imports()}
    kept.write_text(json.dumps(measured), encoding="utf-8")
    return measured


def time_imports() -> dict[str, float]:
    """Median seconds of each import, in fresh processes."""
    medians = {}
    for name, statement in IMPORTS.items():
        code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
        outputs = [subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(IMPORT_REPEATS)]
        medians[name] = round(statistics.median(map(float, outputs)), DIGITS_S)
    return medians


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows for people."""
    columns = {
        "precision": 9, "seconds": 8, "load_s": 7, "times_monai": 11, "times_nnunet": 12, "peak_mib": 8,
        "dsc_monai": 9, "dsc_balanced_f32": 16, "infection_ml": 12, "before_s": 8, "network_s": 9, "after_s": 8,
        "gflop_per_s": 11, "share_of_peak": 13,
    }  # fmt: skip
    print("contestant     " + " ".join(f"{name:>{width}}" for name, width in columns.items()))
    for row in rows:
        values = " ".join(f"{row.get(name, '-')!s:>{width}}" for name, width in columns.items())
        print(f"{row['contestant']:<14} {row.get('problem', values)}")


def put_together(
    arguments: argparse.Namespace, bundle: ModelBundle, folder: Path, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of every round in the folder."""
    rows, infections = [], {}
    for one in CONTESTANTS:
        files = sorted(folder.glob(f"{one.name}.*.json"))
        if not files:
            continue
        row = summarise(one.name, [json.loads(file.read_text(encoding="utf-8")) for file in files])
        if "problem" not in row:
            labels = files[-1].with_suffix(".nii.gz")
            infections[one.name], millilitres = read_infection(labels, one, bundle, arguments.scan)
            row["infection_ml"] = round(millilitres, 2)
        rows.append(row)
    compare(rows, infections)
    relate_to_peak(rows, machine)
    return {
        "scan": arguments.scan.name,
        "shape": read_volume(arguments.scan).shape,
        "model": {"name": bundle.name, "version": bundle.version, "files": {f.name: f.sha256 for f in bundle.files}},
        "tile_plan": asdict(bundle.tile_plan),
        "threads": arguments.threads,
        **machine,
        "contestants": rows,
    }


def read_arguments() -> argparse.Namespace:
    """The command line."""
    names = [one.name for one in CONTESTANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--peer-python", type=Path, help="Python with nnunetv2")
    parser.add_argument("--model", help="another bundle than the default one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--folder", type=Path, help="where the rounds are kept, to add others later")
    arguments = parser.parse_args()
    if arguments.peer_python is None and NNUNET in arguments.contestants:
        parser.error(f"{NNUNET} needs --peer-python")
    return arguments


def main() -> None:
    """Measure, compare and keep."""
    arguments = read_arguments()
    bundle = load_bundle(find_bundle(arguments.model))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        claim_folder(folder, arguments, bundle)
        machine = measure_machine(bundle, arguments.threads, folder / "machine.json")
        hold_contest(arguments, bundle, folder)
        result = put_together(arguments, bundle, folder, machine)
    keep_result("whole_scan", result)
    print_table(result["contestants"])


if __name__ == "__main__":
    main()
