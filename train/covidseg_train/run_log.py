"""What a training writes down: a CSV line and TensorBoard scalars an epoch, and a progress bar on stderr."""

import csv
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.tensorboard.writer import SummaryWriter

from covidseg_train.checkpoint import Progress
from covidseg_train.config import RunConfig
from covidseg_train.distributed import Ranks

COLUMNS = ("epoch", "step", "seconds", "cpu_seconds", "learning_rate", "loss", "validation_dsc", "samples_per_second")
# Reading the loss of a GPU waits for it.
GPU_STEPS_A_READING = 10


class RunLog:
    """Logs of one run folder: ``log.csv``, TensorBoard events, and the bar; use it in a ``with`` block.

    Of several ranks the first writes; the others' logs do nothing.
    """

    def __init__(
        self, run_folder: Path, run: RunConfig, *, first_step: int, device: torch.device, ranks: Ranks
    ) -> None:
        """Open the logs; an earlier part of the same run is continued."""
        self._csv_path = run_folder / "log.csv"
        self._run = run
        self._is_silent = not ranks.is_first
        self._steps_a_reading = 1 if device.type == "cpu" else GPU_STEPS_A_READING
        self._writer = (
            None if self._is_silent else SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step)
        )
        self._console = Console(stderr=True)
        self._step = first_step
        self._bar = ProgressBar(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  DSC {task.fields[dsc]}  {task.fields[speed]} samples/s"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn(str(device)),
            console=self._console,
            disable=self._is_silent,
        )
        self._task = self._bar.add_task(
            "training", total=run.steps, completed=first_step, epoch=self._epoch(), loss="–", dsc="–", speed="–"
        )

    def __enter__(self) -> "RunLog":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close bar and event file."""
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def note(self, line: str) -> None:
        """Show one line above the bar."""
        if not self._is_silent:
            self._console.print(line, highlight=False)

    def step(self, loss: Tensor) -> None:
        """Move the bar by one optimiser step."""
        self._step += 1
        if not self._is_silent and self._step % self._steps_a_reading == 0:
            self._bar.update(self._task, completed=self._step, epoch=self._epoch(), loss=f"{float(loss):.3f}")

    def epoch(
        self, progress: Progress, optimiser: Optimizer, *, loss: float, score: float | None, samples_per_second: float
    ) -> None:
        """Write one epoch; ``score`` is None where no validation was due."""
        row = {
            "epoch": progress.step // self._run.steps_per_epoch,
            "step": progress.step,
            "seconds": round(progress.seconds, 1),
            "cpu_seconds": round(progress.cpu_seconds, 1),
            "learning_rate": optimiser.param_groups[0]["lr"],
            "loss": loss,
            "validation_dsc": score,
            "samples_per_second": round(samples_per_second, 3),
        }
        if self._writer is None:
            return
        self._write_csv(row)
        for key in ("learning_rate", "loss", "validation_dsc", "samples_per_second"):
            if row[key] is not None:
                self._writer.add_scalar(key, row[key], progress.step)
        self._bar.update(self._task, completed=progress.step, speed=f"{samples_per_second:.2f}")
        if score is not None:
            self._bar.update(self._task, dsc=f"{score:.3f}")
        if not self._console.is_terminal:
            self._console.print(_line(row), highlight=False)

    def _write_csv(self, row: dict[str, float | None]) -> None:
        is_new = not self._csv_path.exists()
        with self._csv_path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow({key: "" if value is None else value for key, value in row.items()})

    def _epoch(self) -> str:
        return f"{min(self._step // self._run.steps_per_epoch + 1, self._run.epochs)}/{self._run.epochs}"


def _line(row: dict[str, float | None]) -> str:
    dsc = "" if row["validation_dsc"] is None else f"  validation DSC {row['validation_dsc']:.4f}"
    return (
        f"epoch {row['epoch']}  step {row['step']}  {row['seconds']:.0f} s  loss {row['loss']:.4f}{dsc}  "
        f"{row['samples_per_second']:.2f} samples/s"
    )
