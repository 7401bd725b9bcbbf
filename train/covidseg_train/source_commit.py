"""Which state of this repository runs."""

import subprocess
from pathlib import Path
from typing import Any

SOURCE_TREE = Path(__file__).parents[2]


def source_commit(folder: Path = SOURCE_TREE) -> dict[str, Any] | None:
    """The git commit of the source that runs: ``sha``, and whether the tree ``is_clean``.

    None where the package is no checkout, as for a user who installed it, or git cannot be asked.
    """
    if not (folder / ".git").exists():
        return None
    try:
        sha, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"sha": sha, "is_clean": not changes}


def _git(folder: Path, *arguments: str) -> str:
    """What git says of a folder; it leaves the folder's index alone."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
