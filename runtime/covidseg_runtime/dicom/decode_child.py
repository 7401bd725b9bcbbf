"""Decode the pixels of DICOM files in a process of its own, within limits: codecs are old, and input may be hostile.

    python decode_child.py JOB OUTPUT

JOB is JSON: ``files`` (paths), ``syntax`` (of all), ``values`` (expected in each), ``bytes`` (address space) and
``seconds`` (of processor).
OUTPUT takes the stored values of all files, one after the other, as int32. Not imported by anyone.
"""

import json
import sys
import warnings
from pathlib import Path


def limit(address_space: int, seconds: int) -> None:
    """Take no more than that of the machine, where the system can hold us to it."""
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Decode every file in order."""
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    limit(job["bytes"], job["seconds"])
    warnings.simplefilter("ignore")
    import numpy as np
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import RLELossless

    with Path(sys.argv[2]).open("wb") as output:
        for path in job["files"]:
            plugin = "pydicom" if job["syntax"] == RLELossless else "gdcm"
            values = np.asarray(pixel_array(path, raw=True, decoding_plugin=plugin))
            if values.size != job["values"] or values.dtype.kind not in "iu":
                raise ValueError(f"{values.shape} values where {job['values']} were promised")
            output.write(values.astype("<i4").tobytes())


if __name__ == "__main__":
    main()
