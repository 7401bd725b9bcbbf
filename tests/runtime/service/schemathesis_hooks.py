"""What an uploaded scan is: no schema can say it. Loaded by schemathesis."""

import gzip

import nibabel
import numpy as np
import schemathesis
from hypothesis import strategies as st
from phantom import PHANTOM_SPACING_MM, phantom_hu, spl_affine

_SCAN = nibabel.Nifti1Image(phantom_hu(), spl_affine(PHANTOM_SPACING_MM)).to_bytes()
_FLAT = nibabel.Nifti1Image(np.full((4, 4, 4), 40, np.int16), np.eye(4)).to_bytes()

schemathesis.openapi.format("binary", st.sampled_from((_FLAT, gzip.compress(_SCAN))))


@schemathesis.hook
def filter_body(context, body) -> bool:
    """An empty list is no part of a form at all: what is sent then is what the description allows."""
    return context.operation.path != "/v1/jobs" or not isinstance(body, dict) or [] not in body.values()
