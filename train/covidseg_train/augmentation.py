"""Random changes of training patches, batched on the device that trains.

What happens to a patch follows from one random generator a patch, drawn on the CPU, so that a batch is the same on
every device but for the last bits of its arithmetic. The changes are nnU-Net's (Isensee et al. 2021): rotation and
zoom in one interpolation, noise, blur, brightness, contrast, low resolution, gamma, mirroring; and, of our own, thick
slices and opaque masses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, conv3d, grid_sample, interpolate, pad

from covidseg_train.config import AugmentationConfig, PatchConfig
from covidseg_train.opaque_masses import OpaqueMass, draw_opaque_mass

# nnU-Net's dummy-2D rule: a patch this much flatter than wide is turned and zoomed in its plane only.
FLAT_PATCH_RATIO = 3.0
_AXES = {"z": 0, "y": 1, "x": 2}


@dataclass(frozen=True)
class PatchChanges:
    """What shall happen to one patch; None or an empty tuple leaves it as it is.

    Attributes:
        affine: Output to input voxels about the patch's centre, 3×3, axes (z, y, x).
        noise: SD of Gaussian noise in scaled units, and the seed of its values.
        blur: SD of a Gaussian blur in voxels.
        brightness: Factor.
        contrast: Factor about the patch's mean.
        zoom_out: Share of the resolution that is kept.
        gamma: Exponents of the gamma changes, in order, and whether each works on the inverted image.
        mirrored: Mirrored axes of (z, y, x), 0 to 2.
        slices_joined: Over how many slices a mean is taken.
        mass: What is put into the lung, before everything else.
    """

    affine: NDArray[np.float64] | None = None
    noise: tuple[float, int] | None = None
    blur: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    zoom_out: float | None = None
    gamma: tuple[tuple[float, bool], ...] = ()
    mirrored: tuple[int, ...] = ()
    slices_joined: float | None = None
    mass: OpaqueMass | None = None


def context_shape(patches: PatchConfig, augmentation: AugmentationConfig) -> tuple[int, int, int]:
    """Voxels (z, y, x) to cut so that a rotated or shrunken patch rarely meets the border."""
    grow = 1.0 + (augmentation.scale_range if augmentation.affine_probability > 0 else 0.0)
    z, y, x = (math.ceil(n * grow / 2) * 2 for n in patches.shape)
    return (patches.shape[0] if is_flat(patches.shape) else z), y, x


def is_flat(shape: Sequence[int]) -> bool:
    """Whether a patch (z, y, x) is so flat that it is only turned in its plane."""
    return max(shape) / shape[0] > FLAT_PATCH_RATIO


def draw_changes(rng: np.random.Generator, patches: PatchConfig, settings: AugmentationConfig) -> PatchChanges:
    """Draw what happens to one patch."""

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    def within(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    affine = _draw_affine(rng, patches, settings) if happens(settings.affine_probability) else None
    noise = (within(0.0, 0.1), int(rng.integers(2**31))) if happens(settings.noise_probability) else None
    blur = within(0.5, 1.0) if happens(settings.blur_probability) else None
    brightness = within(0.75, 1.25) if happens(settings.contrast_probability) else None
    contrast = within(0.75, 1.25) if happens(settings.contrast_probability) else None
    zoom_out = within(0.5, 1.0) if happens(settings.low_resolution_probability) else None
    chances = ((settings.inverted_gamma_probability, True), (settings.contrast_probability, False))
    gamma = tuple((within(0.7, 1.5), inverted) for chance, inverted in chances if happens(chance))
    mirrored = tuple(_AXES[axis] for axis in settings.mirror_axes if happens(settings.mirror_probability))
    joined = within(1.0, 3.5) if happens(settings.thick_slices_probability) else None
    mass = draw_opaque_mass(rng) if happens(settings.opaque_mass_probability) else None
    return PatchChanges(affine, noise, blur, brightness, contrast, zoom_out, gamma, mirrored, joined, mass)


def _draw_affine(rng: np.random.Generator, patches: PatchConfig, settings: AugmentationConfig) -> NDArray[np.float64]:
    flat = is_flat(patches.shape)
    reach = math.radians(180.0 if flat else settings.rotation_degrees)
    angles = rng.uniform(-reach, reach, 3)
    zoom = 1.0 / rng.uniform(1.0 - settings.scale_range, 1.0 + settings.scale_range)
    matrix: NDArray[np.float64] = np.eye(3)
    for axis, angle in enumerate(angles):
        if axis > 0 and flat:
            continue
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix @ np.diag([1.0 if flat else zoom, zoom, zoom])


def augment(
    images: Tensor, labels: Tensor, changes: Sequence[PatchChanges], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Change a batch.

    Args:
        images: (N, 1, Z, Y, X) float32, scaled, with context around the patch.
        labels: (N, 1, Z, Y, X) uint8 of the same shape.
        changes: What happens to each of the N patches.
        shape: Patch (z, y, x) that comes back, cut from the middle.

    Returns:
        Images and labels of ``shape``.
    """
    images, labels = _cut_and_turn(images, labels, changes, shape)
    for index, change in enumerate(changes):
        image = images[index]
        for step in _intensity_steps(change):
            image = step(image)
        images[index] = image
        if change.mirrored:
            axes = [1 + axis for axis in change.mirrored]
            images[index], labels[index] = images[index].flip(axes), labels[index].flip(axes)
    return images, labels


def _cut_and_turn(
    images: Tensor, labels: Tensor, changes: Sequence[PatchChanges], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Cut the middle of every patch; those that are turned are interpolated, all in one call."""
    z, y, x = (slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(images.shape[2:], shape, strict=True))
    out_images, out_labels = images[:, :, z, y, x].clone(), labels[:, :, z, y, x].clone()
    turned = [(index, change.affine) for index, change in enumerate(changes) if change.affine is not None]
    if turned:
        rows = [index for index, _ in turned]
        theta = torch.tensor(np.stack([_theta(affine, images.shape[2:], shape) for _, affine in turned]))
        grid = affine_grid(theta.float(), [len(rows), 1, *shape], align_corners=False).to(images.device)
        out_images[rows] = grid_sample(images[rows], grid, "bilinear", padding_mode="border", align_corners=False)
        nearest = grid_sample(labels[rows].float(), grid, "nearest", padding_mode="border", align_corners=False)
        out_labels[rows] = nearest.to(labels.dtype)
    return out_images, out_labels


def _theta(affine: NDArray[np.float64], context: Sequence[int], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """The matrix (3, 4) of ``affine_grid``: axes (x, y, z), coordinates from −1 to 1 over each array."""
    to_voxels, from_voxels = np.diag([n / 2 for n in shape]), np.diag([2 / n for n in context])
    scaled = from_voxels @ affine @ to_voxels
    # The middle of the cut: half a voxel off the middle of the context where the two differ by an odd number.
    offset = [((n - m) // 2 + m / 2 - n / 2) * 2 / n for n, m in zip(context, shape, strict=True)]
    return np.column_stack([scaled[::-1, ::-1], offset[::-1]])


def _intensity_steps(change: PatchChanges) -> list[Callable[[Tensor], Tensor]]:
    """The changes of the values, in nnU-Net's order."""
    steps: list[Callable[[Tensor], Tensor]] = []
    if change.noise is not None:
        sd, seed = change.noise
        steps.append(lambda image: image + sd * _noise(image, seed))
    if (sigma := change.blur) is not None:
        steps.append(lambda image: blur(image, sigma))
    if (factor := change.brightness) is not None:
        steps.append(lambda image: image * factor)
    if (stretch := change.contrast) is not None:
        steps.append(lambda image: stretch_contrast(image, stretch))
    if (count := change.slices_joined) is not None:
        steps.append(lambda image: join_slices(image, count))
    if (share := change.zoom_out) is not None:
        steps.append(lambda image: lower_resolution(image, share))
    steps += [_gamma_step(exponent, is_inverted=inverted) for exponent, inverted in change.gamma]
    return steps


def _gamma_step(exponent: float, *, is_inverted: bool) -> Callable[[Tensor], Tensor]:
    sign = -1.0 if is_inverted else 1.0
    return lambda image: sign * change_gamma(sign * image, exponent)


def _noise(image: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=generator, device=image.device)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (1, Z, Y, X), ``sigma`` in voxels, cut off at three sigma; the border voxel is repeated."""
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=image.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    blurred = image[None]
    for axis in range(3):
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = reach
        kernel = weights.reshape([-1 if other == axis else 1 for other in range(3)])
        blurred = conv3d(pad(blurred, padding, mode="replicate"), kernel[None, None])
    return blurred[0]


def stretch_contrast(image: Tensor, factor: float) -> Tensor:
    """Stretch about the mean, within the range the image had."""
    mean = image.mean()
    return ((image - mean) * factor + mean).clamp(image.min(), image.max())


def lower_resolution(image: Tensor, share: float) -> Tensor:
    """(1, Z, Y, X) sampled at ``share`` of its voxels along each axis and interpolated back."""
    small = [max(1, round(n * share)) for n in image.shape[1:]]
    coarse = interpolate(image[None], size=small, mode="nearest-exact")
    return interpolate(coarse, size=list(image.shape[1:]), mode="trilinear", align_corners=False)[0]


def join_slices(image: Tensor, count: float) -> Tensor:
    """(1, Z, Y, X) with means over ``count`` slices along z, interpolated back to Z slices."""
    _, z, y, x = image.shape
    thick = interpolate(image[None], size=(max(1, round(z / count)), y, x), mode="area")
    return interpolate(thick, size=(z, y, x), mode="trilinear", align_corners=False)[0]


def change_gamma(image: Tensor, exponent: float) -> Tensor:
    """``x ** exponent`` over the image's range scaled to 0–1; mean and SD of the values are kept."""
    low, mean, sd = image.min(), image.mean(), image.std()
    span = (image.max() - low).clamp(min=1e-7)
    curved = ((image - low) / span) ** exponent
    return (curved - curved.mean()) / curved.std().clamp(min=1e-7) * sd + mean
