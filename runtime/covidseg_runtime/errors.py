"""The errors a caller can meet.

    CovidsegError
    ├── VolumeError    the input is unsuitable: not a chest CT volume, damaged, wrong geometry (exit code 3)
    ├── BundleError    the model is missing or not what its manifest promises (exit code 5)
    ├── EngineError    no engine, device or precision as asked for on this machine (exit code 2)
    ├── SettingsError  settings that contradict each other or have no meaning (exit code 2)
    ├── OutputError    a result cannot be written: no such folder, read-only, full (exit code 1)
    └── SegmentationCancelled  the caller asked to stop (exit code 130)

Every message says what was given, what is expected and how to mend it. Errors of other libraries are
translated at the seam where they occur, with ``raise … from``.
"""

from typing import ClassVar


class CovidsegError(Exception):
    """Base of all errors raised on purpose by covidseg."""

    exit_code: ClassVar[int] = 1


class VolumeError(CovidsegError):
    """The given file or array is not a volume covidseg can work on."""

    exit_code: ClassVar[int] = 3


class BundleError(CovidsegError):
    """The model bundle is missing, altered or of another schema."""

    exit_code: ClassVar[int] = 5


class EngineError(CovidsegError):
    """The engine, device or precision asked for cannot run on this machine."""

    exit_code: ClassVar[int] = 2


class SettingsError(CovidsegError):
    """A setting is out of range or contradicts another one."""

    exit_code: ClassVar[int] = 2


class OutputError(CovidsegError):
    """A result cannot be written; what lay there before is untouched."""


class SegmentationCancelled(CovidsegError):  # noqa: N818 - nothing went wrong
    """The caller set the event that cancels; there is no result."""

    exit_code: ClassVar[int] = 130
