"""What a training writes down: a CSV line and TensorBoard scalars an epoch, and a progress bar on stderr."""

import csv
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

COLUMNS = ("epoch", "step", "seconds", "learning_rate", "loss", "validation_dsc")


class RunLog:
    """Logs of one run folder: ``log.csv``, TensorBoard events, and the bar; use it in a ``with`` block."""

    def __init__(self, run_folder: Path, *, first_step: int, steps: int) -> None:
        """Open the logs; an earlier part of the same run is continued."""
        self._csv_path = run_folder / "log.csv"
        self._writer = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step)
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  DSC {task.fields[dsc]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("training", total=steps, completed=first_step, loss="–", dsc="–")

    def __enter__(self) -> "RunLog":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close bar and event file."""
        self._bar.stop()
        self._writer.close()

    def step(self, loss: float) -> None:
        """Move the bar by one optimiser step."""
        self._bar.update(self._task, advance=1, loss=f"{loss:.3f}")

    def epoch(self, row: dict[str, float | int | None]) -> None:
        """Write one epoch; keys are ``COLUMNS``, a validation that did not happen is None."""
        is_new = not self._csv_path.exists()
        with self._csv_path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow({key: "" if value is None else value for key, value in row.items()})
        for key in ("learning_rate", "loss", "validation_dsc"):
            value = row[key]
            if value is not None:
                self._writer.add_scalar(key, value, row["step"])
        dsc = row["validation_dsc"]
        if dsc is not None:
            self._bar.update(self._task, dsc=f"{dsc:.3f}")
        if not self._console.is_terminal:
            self._console.print(_line(row), highlight=False)


def _line(row: dict[str, float | int | None]) -> str:
    dsc = "" if row["validation_dsc"] is None else f"  validation DSC {row['validation_dsc']:.4f}"
    return f"epoch {row['epoch']}  step {row['step']}  {row['seconds']:.0f} s  loss {row['loss']:.4f}{dsc}"
