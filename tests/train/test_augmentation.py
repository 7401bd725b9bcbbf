"""Image and label move together, and the values keep what they have to keep; the truth is hand-made."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from covidseg_train.augmentation import (
    PatchChanges,
    augment,
    blur,
    change_gamma,
    context_shape,
    draw_changes,
    join_slices,
    lower_resolution,
    stretch_contrast,
)
from covidseg_train.config import AugmentationConfig, PatchConfig
from covidseg_train.losses import IGNORED

SHAPE = (8, 8, 8)
TURN_ABOUT_Z = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
EVERYTHING = AugmentationConfig(
    mirror_probability=1.0,
    mirror_axes=("z", "y", "x"),
    affine_probability=1.0,
    noise_probability=1.0,
    blur_probability=1.0,
    contrast_probability=1.0,
    inverted_gamma_probability=1.0,
    low_resolution_probability=1.0,
    thick_slices_probability=1.0,
)
NOTHING = dataclasses.replace(
    EVERYTHING, **{f.name: 0.0 for f in dataclasses.fields(EVERYTHING) if f.name.endswith("_probability")}
)


def lesion(shape=SHAPE):
    """A bright box off the centre with no symmetry, and its label; (1, 1, Z, Y, X)."""
    labels = torch.zeros((1, 1, *shape), dtype=torch.uint8)
    z, y, x = (n // 2 for n in shape)
    labels[..., z - 3 : z - 1, y - 2 : y + 1, x - 3 : x + 1] = 2
    return torch.where(labels == 2, 1.0, -1.0), labels


def random_image(shape=(16, 16, 16), seed=0):
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))


def changed(images, labels, change, shape=SHAPE):
    return augment(images, labels, [change] * len(images), shape)


def test_no_change_is_no_change():
    images, labels = lesion()
    same_images, same_labels = changed(images, labels, PatchChanges())
    assert torch.equal(same_images, images)
    assert torch.equal(same_labels, labels)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_mirroring_flips_image_and_label(axes):
    images, labels = lesion()
    flipped_images, flipped_labels = changed(images, labels, PatchChanges(mirrored=axes))
    assert torch.equal(flipped_images, images.flip([2 + axis for axis in axes]))
    assert torch.equal(flipped_labels, labels.flip([2 + axis for axis in axes]))
    assert not torch.equal(flipped_labels, labels)


def test_a_quarter_turn_about_z_is_exact():
    images, labels = lesion()
    turned_images, turned_labels = changed(images, labels, PatchChanges(affine=TURN_ABOUT_Z))
    # The voxel (z, y, x) comes from (z, -x, y) about the centre, that is from row 7 - x and column y.
    expected = labels.transpose(3, 4).flip(4)
    assert expected[0, 0, 1, 2, 3] == labels[0, 0, 1, 7 - 3, 2]
    assert torch.equal(turned_labels, expected)
    assert torch.allclose(turned_images, images.transpose(3, 4).flip(4), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_about_each_axis_carries_the_label_with_the_image(axis):
    first, second = [other for other in range(3) if other != axis]
    turn = np.zeros((3, 3))
    turn[axis, axis], turn[first, second], turn[second, first] = 1, -1, 1
    images, labels = changed(*lesion(), PatchChanges(affine=turn))
    assert torch.equal(images > 0, labels == 2)
    assert int((labels == 2).sum()) == 2 * 3 * 4


def test_a_zoom_of_two_doubles_the_lesion_along_every_axis():
    labels = torch.zeros((1, 1, 16, 16, 16), dtype=torch.uint8)
    labels[..., 6:10, 6:10, 6:10] = 1
    _, zoomed = changed(labels.float(), labels, PatchChanges(affine=np.eye(3) / 2), (16, 16, 16))
    expected = torch.zeros_like(labels)
    expected[..., 4:12, 4:12, 4:12] = 1
    assert torch.equal(zoomed, expected)


@pytest.mark.parametrize("context", [(12, 12, 12), (11, 13, 9)])
def test_the_patch_is_the_middle_of_its_context(context):
    images, labels = lesion(context)
    plain = changed(images, labels, PatchChanges())
    z, y, x = (slice((n - 8) // 2, (n - 8) // 2 + 8) for n in context)
    assert torch.equal(plain[1], labels[:, :, z, y, x])
    interpolated = changed(images, labels, PatchChanges(affine=np.eye(3)))
    assert torch.equal(interpolated[1], plain[1])
    assert torch.allclose(interpolated[0], plain[0], atol=1e-5)


def test_a_turned_patch_shows_what_lies_in_its_context():
    images, labels = lesion((12, 12, 12))
    turned = changed(images, labels, PatchChanges(affine=TURN_ABOUT_Z), (12, 12, 12))[1]
    assert torch.equal(changed(images, labels, PatchChanges(affine=TURN_ABOUT_Z))[1], turned[..., 2:10, 2:10, 2:10])


def test_the_lesion_stays_under_its_label_whatever_happens():
    patches = PatchConfig((16, 16, 16))
    labels = torch.zeros((1, 1, 20, 20, 20), dtype=torch.uint8)
    labels[..., 6:11, 7:13, 9:14] = 2
    images = torch.where(labels == 2, 1.0, -1.0)
    for seed in range(20):
        change = draw_changes(np.random.default_rng(seed), patches, EVERYTHING)
        new_images, new_labels = changed(images, labels, change, patches.shape)
        inside, outside = new_images[new_labels == 2], new_images[new_labels == 0]
        assert len(inside) > 30, seed
        assert inside.mean() > outside.mean() + 3 * outside.std(), seed


def test_each_patch_of_a_batch_has_its_own_changes():
    images, labels = (torch.cat([part, part]) for part in lesion())
    mirrored = PatchChanges(brightness=2.0, mirrored=(2,))
    new_images, new_labels = augment(images, labels, [PatchChanges(), mirrored], SHAPE)
    assert torch.equal(new_images[0], images[0])
    assert torch.equal(new_labels[0], labels[0])
    assert torch.equal(new_images[1], 2 * images[1].flip(3))
    assert torch.equal(new_labels[1], labels[1].flip(3))


def test_what_is_ignored_moves_along_and_is_never_mixed():
    images, labels = lesion()
    labels[..., 6:] = IGNORED
    _, turned = changed(images, labels, PatchChanges(affine=TURN_ABOUT_Z, mirrored=(0,)))
    assert set(turned.unique().tolist()) == {0, 2, IGNORED}
    assert int((turned == IGNORED).sum()) == 8 * 8 * 2


def test_changes_of_the_values_leave_the_labels():
    images, labels = lesion()
    change = PatchChanges(noise=(0.1, 1), blur=1.0, brightness=1.2, contrast=0.8, zoom_out=0.5, gamma=((1.3, True),))
    assert torch.equal(changed(images, labels, change)[1], labels)


def test_noise_has_the_sd_asked_for_and_no_mean():
    images = torch.zeros(1, 1, 32, 32, 32)
    noisy, _ = changed(images, images.byte(), PatchChanges(noise=(0.1, 7)), (32, 32, 32))
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float(noisy.mean())) < 0.002
    again, _ = changed(images, images.byte(), PatchChanges(noise=(0.1, 7)), (32, 32, 32))
    assert torch.equal(noisy, again)


def test_brightness_multiplies():
    images, labels = lesion()
    assert torch.equal(changed(images, labels, PatchChanges(brightness=1.25))[0], 1.25 * images)


@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_keeps_mean_sd_and_order(exponent):
    image = random_image()
    curved = change_gamma(image, exponent)
    assert float(curved.mean()) == pytest.approx(float(image.mean()), abs=1e-5)
    assert float(curved.std()) == pytest.approx(float(image.std()), rel=1e-4)
    assert torch.equal(curved.flatten().argsort(), image.flatten().argsort())
    assert not torch.allclose(curved, image, atol=0.01)


def test_gamma_of_a_flat_image_is_the_image():
    assert torch.allclose(change_gamma(torch.full((1, 4, 4, 4), -2.0), 1.5), torch.tensor(-2.0))


def test_gamma_of_three_hand_computed_values():
    # 0, 1, 2 are 0, 0.5, 1 of the range, and 0, 0.25, 1 squared; mean 1 and SD 1 are put back.
    curved = change_gamma(torch.tensor([0.0, 1.0, 2.0]), 2.0)
    squares = torch.tensor([0.0, 0.25, 1.0])
    assert torch.allclose(curved, (squares - squares.mean()) / squares.std() + 1.0)


def test_inverted_gamma_is_gamma_of_the_negative():
    images, labels = lesion()
    images = images + 0.1 * random_image(SHAPE)[None]
    inverted, _ = changed(images, labels, PatchChanges(gamma=((1.4, True),)))
    assert torch.allclose(inverted[0], -change_gamma(-images[0], 1.4))


def test_contrast_stays_within_the_range_the_image_had():
    image = random_image()
    stretched = stretch_contrast(image, 1.25)
    assert stretched.min() == image.min()
    assert stretched.max() == image.max()
    flat = stretch_contrast(image, 0.75)
    assert float(flat.mean()) == pytest.approx(float(image.mean()), abs=1e-6)
    assert float(flat.std()) == pytest.approx(0.75 * float(image.std()), rel=1e-5)


def test_blur_spreads_a_voxel_and_keeps_its_sum():
    point = torch.zeros(1, 15, 15, 15)
    point[0, 7, 7, 7] = 1.0
    blurred = blur(point, 1.0)
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-5)
    offsets = torch.arange(15) - 7
    for axis in range(3):
        profile = blurred[0].sum(dim=[other for other in range(3) if other != axis])
        # Cut off at three SD, a Gaussian on whole voxels has 0.987 of its variance.
        assert float((profile * offsets**2).sum()) == pytest.approx(1.0, rel=0.03)
    assert torch.allclose(blurred, blurred.flip([1, 2, 3]), atol=1e-7)


@pytest.mark.parametrize("change", [lambda image: blur(image, 0.7), lambda image: lower_resolution(image, 0.6)])
def test_blur_and_low_resolution_keep_a_flat_image_and_the_range(change):
    assert torch.allclose(change(torch.full((1, 9, 10, 11), -0.5)), torch.tensor(-0.5))
    image = random_image((9, 10, 11))
    assert change(image).shape == image.shape
    assert change(image).min() >= image.min()
    assert change(image).max() <= image.max()
    assert change(image).std() < image.std()


def test_low_resolution_of_a_half_keeps_every_second_voxel_s_place():
    ramp = torch.arange(16.0).reshape(1, 1, 1, 16).expand(1, 16, 16, 16)
    assert (lower_resolution(ramp, 0.5)[..., 2:-2] - ramp[..., 2:-2]).abs().max() <= 1.0


def test_joined_slices_spread_a_slice_along_z_and_nowhere_else():
    image = torch.zeros(1, 16, 4, 4)
    image[0, 6, 1, 2] = 1.0
    joined = join_slices(image, 2.0)
    assert torch.equal(join_slices(image, 1.0), image)
    assert joined[0, :, 1, 2].sum() == pytest.approx(1.0)
    assert joined.max() == pytest.approx(0.375)  # half of it in a pair of slices, three quarters of that interpolated
    assert joined.count_nonzero() == joined[0, :, 1, 2].count_nonzero() == 4


def test_probability_zero_changes_nothing_and_one_everything():
    patches = PatchConfig((16, 16, 16))
    assert draw_changes(np.random.default_rng(0), patches, NOTHING) == PatchChanges()
    for seed in range(20):
        change = draw_changes(np.random.default_rng(seed), patches, EVERYTHING)
        assert change.affine is not None
        assert 0 <= change.noise[0] <= 0.1
        assert 0.5 <= change.blur <= 1.0
        assert 0.75 <= change.brightness <= 1.25
        assert 0.75 <= change.contrast <= 1.25
        assert 0.5 <= change.zoom_out <= 1.0
        assert [inverted for _, inverted in change.gamma] == [True, False]
        assert all(0.7 <= exponent <= 1.5 for exponent, _ in change.gamma)
        assert change.mirrored == (0, 1, 2)
        assert 1.0 <= change.slices_joined <= 3.5


def test_the_affine_turns_and_zooms_within_its_limits():
    for seed in range(20):
        matrix = draw_changes(np.random.default_rng(seed), PatchConfig((16, 16, 16)), EVERYTHING).affine
        zoom = np.linalg.det(matrix) ** (1 / 3)
        assert 1 / 1.25 <= zoom <= 1 / 0.75
        assert np.allclose(matrix.T @ matrix, zoom**2 * np.eye(3))
        # At most three turns of 20 degrees, one about each axis.
        assert np.trace(matrix) / zoom >= 1 + 2 * math.cos(math.radians(60))


def test_a_flat_patch_is_turned_and_zoomed_in_its_plane_only():
    matrix = draw_changes(np.random.default_rng(0), PatchConfig((4, 16, 16)), EVERYTHING).affine
    assert np.array_equal(matrix[0], [1, 0, 0])
    assert np.array_equal(matrix[:, 0], [1, 0, 0])
    assert abs(matrix[1, 2]) > 0


def test_context_grows_by_the_zoom_but_not_across_a_flat_patch():
    assert context_shape(PatchConfig((80, 80, 80)), EVERYTHING) == (100, 100, 100)
    assert context_shape(PatchConfig((16, 160, 192)), EVERYTHING) == (16, 200, 240)
    assert context_shape(PatchConfig((80, 80, 80)), NOTHING) == (80, 80, 80)
