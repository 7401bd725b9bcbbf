"""Bringing a prior onto the current scan: an affine map of the lungs, then a smooth deformation within the chest.

The affine map is found by the lungs' shape (infection included), which stays while opacities come and go. What another
breath-hold changes beside that is found on the CT by demons, with the infection of both scans painted over. All runs
on voxels 5 mm apart, on one thread, without random samples: the same scans give the same numbers.

SimpleITK's physical space is RAS+ here; it does not care which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.follow_up.coarse_chest import GRID_MM, CoarseChest, Field
from covidseg_runtime.follow_up.placement import Matrix, Placement, apply_affine, interpolate, within_grid

if TYPE_CHECKING:
    import SimpleITK

METHOD = "affine on the lungs, then demons on the CT"

# Shrinking and smoothing (mm) of each level of the affine registration.
_LEVELS = ((2, 10.0), (1, 5.0))
# Around the current lungs: what lies farther away is no lung in both scans, and costs time.
_MARGIN_MM = 30.0
_LARGEST_STEP_MM, _SMALLEST_STEP_MM, _MOST_STEPS = 2.0, 0.01, 200
# The mean over a box of which little is the lungs' border has a small gradient long before the lungs arrive:
# SimpleITK's own limit, 1e-4, left a turned chest where it was. At none at all, as of a scan against itself, there is
# no direction.
_NO_GRADIENT = 1e-9
# No lungs shrink to a tenth between two scans.
_LEAST_VOLUME_RATIO = 0.1
_DEMONS_STEPS = 40
# SD in voxels of the blur that keeps the deformation smooth.
_DEMONS_BLUR = 2.0
# What demons look at: the window of lung and soft tissue, and infected lung painted as lung.
_LOWEST_HU, _HIGHEST_HU, _PAINT_HU = -1000.0, 200.0, -850.0


@dataclass(frozen=True, eq=False)
class Registration:
    """How the prior was brought onto the current scan, and how well that went.

    Attributes:
        placement: The map.
        lung_dice: Dice of the lungs (infection included) after the affine part, within both fields of view.
        deformed_lung_dice: The same after the deformation.
        translation_mm: From the middle of the current lungs to its place in the prior, (x, y, z).
        share_in_prior: Share of the current lungs that lies within the prior's field of view.
        share_in_current: Share of the prior's lungs that lies within the current field of view.
    """

    placement: Placement
    lung_dice: float
    deformed_lung_dice: float
    translation_mm: tuple[float, float, float]
    share_in_prior: float
    share_in_current: float

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        lengths = np.linalg.norm(self.placement.displacement_mm, axis=-1)
        return {
            "method": METHOD,
            "grid_mm": GRID_MM,
            "lung_dice": round(self.lung_dice, 3),
            "deformed_lung_dice": round(self.deformed_lung_dice, 3),
            "translation_mm": [round(mm, 1) for mm in self.translation_mm],
            "stretch": [round(value, 3) for value in self.placement.stretch],
            "largest_displacement_mm": round(float(lengths.max()), 1),
            "share_in_prior": round(self.share_in_prior, 3),
            "share_in_current": round(self.share_in_current, 3),
            "current_to_prior": np.round(self.placement.current_to_prior, 6).tolist(),
        }


def register(prior: CoarseChest, current: CoarseChest) -> Registration:
    """Bring the prior onto the current scan.

    Args:
        prior: With lungs.
        current: With lungs.

    Raises:
        VolumeError: If the lungs of the two cannot be laid over each other.
    """
    try:
        affine = Placement.of_matrix(_register_lungs(prior, current.around_lungs(_MARGIN_MM)))
        placement = _register_within(prior, current.around_lungs(_MARGIN_MM), affine)
    except RuntimeError as error:  # SimpleITK raises no other
        raise VolumeError(
            "The prior could not be brought onto the current scan: their lungs do not come to lie over each other; "
            "give two chest CTs of one patient."
        ) from error
    center = current.lung_center_mm
    x, y, z = (apply_affine(affine.current_to_prior, center) - center).tolist()
    prior_lung_mm = apply_affine(prior.affine, np.argwhere(prior.in_lung))
    current_lung_mm = apply_affine(current.affine, np.argwhere(current.in_lung))
    return Registration(
        placement=placement,
        lung_dice=_lung_dice(prior, current, affine),
        deformed_lung_dice=_lung_dice(prior, current, placement),
        translation_mm=(x, y, z),
        share_in_prior=float(within_grid(prior.lung.shape, prior.affine, placement.to_prior(current_lung_mm)).mean()),
        share_in_current=float(
            within_grid(current.lung.shape, current.affine, placement.to_current(prior_lung_mm)).mean()
        ),
    )


def _register_lungs(prior: CoarseChest, current: CoarseChest) -> Matrix:
    """(4, 4): RAS+ mm of the current scan to RAS+ mm of the prior."""
    import SimpleITK

    registration = SimpleITK.ImageRegistrationMethod()
    registration.SetNumberOfThreads(1)
    registration.SetMetricAsMeanSquares()
    registration.SetMetricSamplingStrategy(registration.NONE)
    registration.SetInterpolator(SimpleITK.sitkLinear)
    registration.SetOptimizerAsRegularStepGradientDescent(
        _LARGEST_STEP_MM,
        _SMALLEST_STEP_MM,
        _MOST_STEPS,
        gradientMagnitudeTolerance=_NO_GRADIENT,
    )
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetShrinkFactorsPerLevel([shrink for shrink, _ in _LEVELS])
    registration.SetSmoothingSigmasPerLevel([sigma_mm for _, sigma_mm in _LEVELS])
    center = current.lung_center_mm
    transform = SimpleITK.AffineTransform(3)
    transform.SetCenter(center.tolist())
    transform.SetTranslation((prior.lung_center_mm - center).tolist())
    registration.SetInitialTransform(transform, inPlace=True)
    registration.Execute(_image(current.lung, current.affine), _image(prior.lung, prior.affine))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    if not np.isfinite(matrix).all() or np.linalg.det(matrix[:3, :3]) < _LEAST_VOLUME_RATIO:
        raise RuntimeError("the affine map collapsed")
    return matrix


def _register_within(prior: CoarseChest, current: CoarseChest, affine: Placement) -> Placement:
    """Add the deformation, on the grid of ``current``."""
    import SimpleITK

    shape = current.lung.shape
    at = affine.to_prior(current.points_mm)
    fixed = _painted(current.hu, current.infection)
    hu, infection = (interpolate(field, prior.affine, at).reshape(shape) for field in (prior.hu, prior.infection))
    seen = within_grid(prior.lung.shape, prior.affine, at).reshape(shape)
    # What the prior does not see pulls at nothing.
    moving = np.where(seen, _painted(hu, infection), fixed)
    demons = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfThreads(1)
    demons.SetNumberOfIterations(_DEMONS_STEPS)
    demons.SetStandardDeviations(_DEMONS_BLUR)
    field = demons.Execute(_image(fixed, current.affine), _image(moving, current.affine))
    displacement_mm = np.asarray(SimpleITK.GetArrayFromImage(field), dtype=np.float64)
    return Placement(affine.current_to_prior, displacement_mm, current.affine)


def _painted(hu: NDArray[Any], infection: NDArray[Any]) -> Field:
    """HU as numbers from 0 to 1.2, with lung where there is infection: what comes and goes is not to be followed."""
    clipped = np.clip(hu, _LOWEST_HU, _HIGHEST_HU)
    share = np.clip(1.5 * infection, 0.0, 1.0)
    painted: Field = ((clipped + share * (_PAINT_HU - clipped) - _LOWEST_HU) / 1000.0).astype(np.float32)
    return painted


def _lung_dice(prior: CoarseChest, current: CoarseChest, placement: Placement) -> float:
    """Dice of the lungs within both fields of view; NaN where no lung is."""
    at = placement.to_prior(current.points_mm)
    seen = within_grid(prior.lung.shape, prior.affine, at)
    mapped = (interpolate(prior.lung, prior.affine, at) >= 0.5) & seen
    lung = current.in_lung.ravel() & seen
    total = np.count_nonzero(mapped) + np.count_nonzero(lung)
    return float(2.0 * np.count_nonzero(mapped & lung) / total) if total else float("nan")


def _image(field: NDArray[Any], affine: Matrix) -> SimpleITK.Image:
    """A field (Z, Y, X) as SimpleITK holds it, x first."""
    import SimpleITK

    columns = affine[:3, 2::-1]
    spacing_mm = np.linalg.norm(columns, axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(field, dtype=np.float32))
    image.SetSpacing(spacing_mm.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((columns / spacing_mm).ravel().tolist())
    return image
