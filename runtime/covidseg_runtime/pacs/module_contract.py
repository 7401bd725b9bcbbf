"""What platforms hand to a container: where a series lies, where results are wanted. Told by environment variables.

mercure: MERCURE_IN_DIR, MERCURE_OUT_DIR; files ``SERIESUID#FILEUID.dcm``, ``task.json`` in, ``result.json`` back.
Kaapana: WORKFLOW_DIR/BATCH_NAME/*/OPERATOR_IN_DIR, to OPERATOR_OUT_DIR beside it.
MONAI Deploy and Holoscan: HOLOSCAN_INPUT_PATH, HOLOSCAN_OUTPUT_PATH.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covidseg_runtime.errors import SettingsError, VolumeError

MERCURE, KAAPANA, HOLOSCAN = "mercure", "kaapana", "holoscan"
_MERCURE = ("MERCURE_IN_DIR", "MERCURE_OUT_DIR")
_KAAPANA = ("WORKFLOW_DIR", "BATCH_NAME", "OPERATOR_IN_DIR", "OPERATOR_OUT_DIR")
_HOLOSCAN = ("HOLOSCAN_INPUT_PATH", "HOLOSCAN_OUTPUT_PATH")
_TASK, _RESULT = "task.json", "result.json"


@dataclass(frozen=True)
class Task:
    """One series to answer.

    Attributes:
        platform: "mercure", "kaapana" or "holoscan".
        series: Folder of its instances.
        results: Folder for the objects; it exists.
        settings: What the platform's user set for this module.
    """

    platform: str
    series: Path
    results: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


def find_tasks(environment: Mapping[str, str]) -> list[Task]:
    """The tasks of the platform that the environment speaks of.

    Raises:
        SettingsError: If it speaks of none, or not of all that one needs.
        VolumeError: If there is nothing to do.
    """
    for platform, names in ((MERCURE, _MERCURE), (KAAPANA, _KAAPANA), (HOLOSCAN, _HOLOSCAN)):
        missing = [name for name in names if not environment.get(name)]
        if len(missing) == len(names):
            continue
        if missing:
            raise SettingsError(f"The environment speaks of {platform} but lacks {', '.join(missing)}.")
        tasks = _TASKS[platform](*(environment[name] for name in names))
        if not tasks:
            raise VolumeError(f"{platform} handed over no folder with files.")
        for task in tasks:
            task.results.mkdir(parents=True, exist_ok=True)
        return tasks
    known = "; ".join(", ".join(names) for names in (_MERCURE, _KAAPANA, _HOLOSCAN))
    raise SettingsError(f"The environment speaks of no platform: {known} are expected.")


def _mercure_tasks(incoming: str, outgoing: str) -> list[Task]:
    folder, settings = Path(incoming), {}
    if (folder / _TASK).is_file():
        try:
            settings = json.loads((folder / _TASK).read_text("utf-8")).get("process", {}).get("settings", {})
        except (ValueError, AttributeError) as error:
            raise SettingsError(f"{_TASK} of mercure is no JSON object as mercure writes it: {error}.") from error
    return [Task(MERCURE, folder, Path(outgoing), settings)] if any(folder.glob("*.dcm")) else []


def _kaapana_tasks(workflow: str, batch: str, incoming: str, outgoing: str) -> list[Task]:
    found = sorted(path for path in Path(workflow, batch).glob("*") if any((path / incoming).glob("*")))
    return [Task(KAAPANA, path / incoming, path / outgoing) for path in found]


def _holoscan_tasks(incoming: str, outgoing: str) -> list[Task]:
    return [Task(HOLOSCAN, Path(incoming), Path(outgoing))] if any(Path(incoming).glob("*")) else []


_TASKS: dict[str, Callable[..., list[Task]]] = {
    MERCURE: _mercure_tasks,
    KAAPANA: _kaapana_tasks,
    HOLOSCAN: _holoscan_tasks,
}


def notification(infection_ml: float | None, infection_percent: float | None) -> dict[str, Any]:
    """Content of mercure's result.json: a line for people, and the numbers."""
    volume = "unknown" if infection_ml is None else f"{infection_ml:.1f} mL"
    share = "unknown" if infection_percent is None else f"{infection_percent:.1f} %"
    text = f"covidseg: lung opacity {volume}, {share} of the lungs. Research use only; not a medical device."
    numbers = {"infection_volume_ml": infection_ml, "infection_percent": infection_percent}
    return {"__mercure_notification": {"text": text}, **numbers}
