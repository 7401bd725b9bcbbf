"""Decode the pixels of DICOM files in a process of its own, within limits: codecs are old, and input may be hostile.

    python decode_child.py JOB OUTPUT

JOB is JSON: ``files`` (paths), ``syntax`` (of all), ``frames`` (of each), ``values`` (of each frame), ``bytes``
(address space), ``seconds`` (of processor) and ``output_bytes``.
OUTPUT takes the stored values of all files, one frame after the other, as 16 bits each. Not imported by anyone.
On failure the name of the error is the last line of standard error.
"""

import json
import sys
import warnings
from pathlib import Path


def limit(address_space: int, seconds: int, output_bytes: int) -> None:
    """Take no more than that of the machine, where the system can hold us to it."""
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def decode(job: dict[str, object], output: Path) -> None:
    """Decode every frame of every file in order."""
    import numpy as np
    from pydicom.pixels.utils import iter_pixels
    from pydicom.uid import RLELossless

    files, frames = job["files"], job["frames"]
    if not isinstance(files, list):
        raise TypeError
    plugin = "pydicom" if job["syntax"] == RLELossless else "gdcm"
    with output.open("wb") as stream:
        for path in files:
            count = 0
            for values in iter_pixels(path, raw=True, decoding_plugin=plugin):
                count += 1
                if values.size != job["values"] or values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
                    raise ValueError(f"a frame of {values.shape} {values.dtype}")
                # Two's complement: the same bits whether signed or not, and the caller knows which.
                stream.write(values.astype(np.int32).astype("<u2").tobytes())
            if count != frames:
                raise ValueError(f"{count} frames")


def main() -> None:
    """Do the job."""
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    limit(job["bytes"], job["seconds"], job["output_bytes"])
    warnings.simplefilter("ignore")
    try:
        decode(job, Path(sys.argv[2]))
    except Exception as error:  # messages of codecs are long, and may hold what is in the file
        sys.stderr.write(f"\n{type(error).__name__}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
