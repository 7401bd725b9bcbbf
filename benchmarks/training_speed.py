"""How many samples a second does our training learn from, beside nnU-Net v2's own trainer? And in how much memory?

    python -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python benchmarks/training_speed.py DATA --peer-python .venv-peers/bin/python [--device cuda] [--network benchmark]

DATA holds covid/ (COVID-19-CT-Seg, rebuilt). Network, first weights, patch, batch, voxels, learning rate and threads
are the same; sampler, augmentation, loss, optimiser step and precision are each one's own. A contestant is a process
that stands still while another has its turn, so rounds alternate and the loss curves go on. Memory is the proportional
set size of its whole process tree at its largest, read while it starts and in a turn that is not timed. Linux only.
"""

import argparse
import json
import math
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import keep_result

from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_train.config import AugmentationConfig, ExperimentConfig, OptimiserConfig, load_config
from covidseg_train.fit import load_cases
from covidseg_train.patches import CLASS_OF_LABEL
from covidseg_train.transfer import build_network
from covidseg_train.unet import BENCHMARK_SPEC, UNetSpec

PEERS = Path(__file__).parent / "peers"
NNUNET = "nnunet"
# The nearest that our settings come to nnU-Net's own augmentation of CT.
NNUNET_AUGMENTATION = AugmentationConfig(
    mirror_axes=("z", "y", "x"),
    affine_probability=0.36,
    rotation_degrees=30.0,
    scale_range=0.3,
    noise_probability=0.1,
    blur_probability=0.1,
    contrast_probability=0.15,
    inverted_gamma_probability=0.1,
    low_resolution_probability=0.125,
)
# nnU-Net's Dice term is −Dice, ours 1 − Dice.
LOSS_OFFSET = {NNUNET: 1.0}
SECONDS_TO_ANSWER = 1800
MEMORY_READING_SECONDS = 0.05


@dataclass(eq=False)
class Contestant:
    """One training in a process group of its own, and what was measured of it.

    Attributes:
        name: As in the record.
        description: What it says of itself: parameters, precision, versions.
        peak_mib: Largest proportional set size of its process tree.
        gpu_mib: Largest memory of the GPU that its allocator held.
        losses: Loss of every step, unmeasured ones included.
        seconds: Of the measured steps of each round.
    """

    name: str
    process: subprocess.Popen[str]
    description: Mapping[str, Any] = field(default_factory=dict)
    peak_mib: float = 0.0
    gpu_mib: float = 0.0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def begin(self, steps: int) -> None:
        """Wait until it is ready, let it take its first steps, and read its memory all the while."""
        self.description = self._answer(reads_memory=True)
        self._ask(steps, 0)
        self._keep(self._answer(reads_memory=True))
        os.killpg(self.process.pid, signal.SIGSTOP)

    def take_turn(self, unmeasured: int, measured: int) -> None:
        """Wake it for one round; the first steps of a turn are not timed."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self._ask(unmeasured, measured)
        answer = self._answer(reads_memory=False)
        os.killpg(self.process.pid, signal.SIGSTOP)
        self._keep(answer)
        self.seconds.append(answer["seconds"])

    def end(self) -> None:
        """End it and its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _ask(self, unmeasured: int, measured: int) -> None:
        print(unmeasured, measured, file=self.process.stdin, flush=True)

    def _keep(self, answer: Mapping[str, Any]) -> None:
        self.losses += [loss + LOSS_OFFSET.get(self.name, 0.0) for loss in answer["losses"]]
        self.gpu_mib = max(self.gpu_mib, answer["gpu_bytes"] / 2**20)

    def _answer(self, *, reads_memory: bool) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS_TO_ANSWER
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            while not selector.select(MEMORY_READING_SECONDS if reads_memory else SECONDS_TO_ANSWER):
                if time.monotonic() > deadline:
                    raise SystemExit(f"{self.name} did not answer within {SECONDS_TO_ANSWER} s")
                self.peak_mib = max(self.peak_mib, memory_of_tree_mib(self.process.pid))
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}; what it said stands above")
        values: dict[str, Any] = json.loads(line)
        return values


def memory_of_tree_mib(pid: int) -> float:
    """Proportional set size of a process and its descendants: shared pages count once."""
    total, waiting = 0, [str(pid)]
    while waiting:
        folder = Path("/proc", waiting.pop())
        try:
            total += next(int(line.split()[1]) for line in (folder / "smaps_rollup").open() if line.startswith("Pss:"))
            waiting += [
                child for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()
            ]
        except (OSError, StopIteration):  # it has ended since
            continue
    return total / 1024


def make_experiment(data: Path, network: str, cache: Path) -> ExperimentConfig:
    """The shipped experiment with nnU-Net's optimiser, schedule, augmentation and share of foreground patches."""
    config = load_config("default", data_root=data / "covid")
    config = replace(
        config,
        data=replace(config.data, cache=str(cache)),
        # Of the two patches one holds a voxel of a foreground class, each class as often as the other.
        patches=replace(config.patches, infection_fraction=0.25, lung_fraction=0.25),
        augmentation=NNUNET_AUGMENTATION,
        optimiser=OptimiserConfig(),
        run=replace(config.run, epochs=1000, steps_per_epoch=250),
    )
    if network == "small":
        return config
    shape = (56, 160, 192)
    return replace(
        config,
        data=replace(config.data, target="lesion"),
        network=BENCHMARK_SPEC,
        patches=replace(config.patches, shape=shape, infection_fraction=0.5, lung_fraction=0.0),
        tiles=replace(config.tiles, shape=shape),
    )


def write_contest(config: ExperimentConfig, folder: Path) -> None:
    """Write the experiment, its first weights, and the cases as the network sees them."""
    (folder / "experiment.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    torch.manual_seed(config.run.seed)  # as start_training does
    torch.save(build_network(config).state_dict(), folder / "weights.pt")
    (folder / "prepared").mkdir()
    class_of_label = np.array(CLASS_OF_LABEL[config.data.target], np.uint8)
    for case in load_cases(config.data, config.data.train, config):
        image = clip_and_scale_hounsfield(case.hu, config.grid.scaling)
        np.savez(folder / "prepared" / f"{case.name}.npz", image=image, classes=class_of_label[case.labels])


def start_contestant(name: str, arguments: argparse.Namespace, folder: Path) -> Contestant:
    """Start one contestant: nnU-Net, or covidseg as ``<precision>`` or ``<precision>+<compilation>``."""
    common = [str(folder), arguments.device]
    if name == NNUNET:
        command = [str(arguments.peer_python), str(PEERS / "nnunet_training.py"), *common]
    else:
        precision, _, compilation = name.partition("+")
        command = [sys.executable, str(PEERS / "covidseg_training.py"), *common, precision, compilation or "off"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TMPDIR": str(folder)},
        start_new_session=True,  # a process group, so that its workers stop and go on with it
    )
    return Contestant(name, process)


def explain_parameters(spec: UNetSpec, ours: int, theirs: int) -> dict[str, int]:
    """Refuse two networks that differ by more than what nnU-Net adds and the output does not depend on.

    Biases before a normalisation, which subtracts them again, and the heads of the levels that its loss weighs 0.
    """
    biases = 2 * sum(spec.widths) + 2 * sum(spec.widths[:-1])
    heads = sum(spec.classes * (width + 1) for width in spec.widths[spec.supervised_levels : -1])
    if theirs != ours + biases + heads:
        raise SystemExit(f"the networks differ: {ours} parameters here, {theirs} there, {biases} + {heads} explained")
    return {"covidseg": ours, "nnunet": theirs, "biases_before_norm": biases, "unweighted_heads": heads}


def check_contest(contestants: Sequence[Contestant]) -> None:
    """Refuse to compare trainings that did not learn, or not with the same torch and threads."""
    for one in contestants:
        third = max(1, len(one.losses) // 3)
        if not all(map(math.isfinite, one.losses)):
            raise SystemExit(f"{one.name} has a loss that is not finite: {one.losses}")
        if statistics.mean(one.losses[-third:]) >= statistics.mean(one.losses[:third]):
            raise SystemExit(f"the loss of {one.name} does not fall: {one.losses}")
    for key in ("torch", "threads"):
        if len({one.description[key] for one in contestants}) > 1:
            raise SystemExit(f"{key} differs: {[one.description[key] for one in contestants]}")


def summarise(one: Contestant, peer: Contestant, samples: int) -> dict[str, Any]:
    """The figures of one contestant; ratios are taken round by round."""
    ratios = [theirs / ours for ours, theirs in zip(one.seconds, peer.seconds, strict=True)]
    third = max(1, len(one.losses) // 3)
    return {
        "contestant": one.name,
        **{key: one.description[key] for key in ("precision", "compilation", "workers")},
        "samples_per_second": round(samples / statistics.median(one.seconds), 3),
        "all_samples_per_second": [round(samples / seconds, 3) for seconds in one.seconds],
        "times_nnunet": round(statistics.median(ratios), 2),
        "all_times_nnunet": [round(ratio, 2) for ratio in ratios],
        "peak_mib": round(one.peak_mib),
        "gpu_peak_mib": round(one.gpu_mib),
        "loss_of_last_third": round(statistics.mean(one.losses[-third:]), 4),
        "losses": [round(loss, 4) for loss in one.losses],
    }


def hold_contest(config: ExperimentConfig, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start every contestant, let them take turns, and put the figures together."""
    write_contest(config, folder)
    contestants: list[Contestant] = []
    try:
        for name in (*arguments.covidseg, NNUNET):
            contestants.append(start_contestant(name, arguments, folder))
            contestants[-1].begin(arguments.first_steps)
        for _ in range(arguments.rounds):
            for one in contestants:
                one.take_turn(arguments.unmeasured, arguments.steps)
    finally:
        for one in contestants:
            one.end()
    check_contest(contestants)
    peer = contestants[-1]
    samples = arguments.steps * config.patches.batch_size
    return {
        "network": arguments.network,
        "patch": config.patches.shape,
        "batch": config.patches.batch_size,
        "cases": len(config.data.train),
        "parameters": explain_parameters(
            config.network, contestants[0].description["parameters"], peer.description["parameters"]
        ),
        "device": peer.description["device"],
        "threads": peer.description["threads"],
        "trainers": {"torch": peer.description["torch"], "nnunetv2": peer.description["nnunetv2"]},
        "contestants": [summarise(one, peer, samples) for one in contestants],
    }


def read_arguments() -> argparse.Namespace:
    """The command line; how many steps are worth it depends on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-python", type=Path, required=True, help="Python with nnunetv2")
    parser.add_argument("--network", choices=("small", "benchmark"), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--covidseg", action="append", help="precision[+compilation]; several times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="measured steps a turn [6; cuda: 100]")
    parser.add_argument("--unmeasured", type=int, help="steps before them [1; cuda: 20, more than nnU-Net caches]")
    parser.add_argument(
        "--first-steps", type=int, help="steps of the first turn, in which memory is read [3; cuda: 10]"
    )
    parser.add_argument("--cache", type=Path, help="folder of prepared cases, to prepare them once")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    arguments.covidseg = arguments.covidseg or (["auto", "auto+compile"] if on_gpu else ["auto", "fp32"])
    arguments.steps = arguments.steps or (100 if on_gpu else 6)
    arguments.unmeasured = arguments.unmeasured or (20 if on_gpu else 1)
    arguments.first_steps = arguments.first_steps or (10 if on_gpu else 3)
    return arguments


def main() -> None:
    """Measure, check and keep."""
    arguments = read_arguments()
    signal.signal(
        signal.SIGTERM, lambda number, _: sys.exit(128 + number)
    )  # else contestants would stand still forever
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = make_experiment(arguments.data, arguments.network, arguments.cache or folder / "cache")
        result = hold_contest(config, arguments, folder)
    suffix = (
        "" if (arguments.network, arguments.device) == ("small", "cpu") else f"_{arguments.network}_{arguments.device}"
    )
    keep_result(f"training_speed{suffix}", result)


if __name__ == "__main__":
    main()
