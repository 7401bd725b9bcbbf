"""The series that was segmented, as the objects made from it need to know it."""

from dataclasses import dataclass
from datetime import date, datetime

from pydicom import Dataset

# The day of the acquisition, or what comes nearest to it.
_DATES = ("AcquisitionDate", "AcquisitionDateTime", "ContentDate", "SeriesDate", "StudyDate")


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """Headers of one CT series, without pixels.

    Attributes:
        headers: One a slice, in the order of the volume's third axis: voxel (i, j, k) is column i, row j of slice k.
            Of a multi-frame object a single one, whose frames ``frame_of_slice`` orders.
        frame_of_slice: Of a multi-frame object the index, from 0, of the frame each slice k came from; empty otherwise.
    """

    headers: tuple[Dataset, ...]
    frame_of_slice: tuple[int, ...] = ()

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID."""
        return str(self.headers[0].StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID."""
        return str(self.headers[0].SeriesInstanceUID)

    @property
    def acquisition_date(self) -> date | None:
        """The day the series was acquired; None where no date is given, or none that is one."""
        for keyword in _DATES:
            try:
                return datetime.strptime(str(self.headers[0].get(keyword, ""))[:8], "%Y%m%d").date()
            except ValueError:
                continue
        return None
