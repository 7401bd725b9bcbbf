import numpy as np
import pytest
from scipy import ndimage

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.resampling import GridPair, axis_weights, to_model_grid, to_source_grid, to_source_labels
from covidseg_runtime.sliding_window import LogitSlab

PAIRS = [
    GridPair.for_spacing((20, 30, 25), (3.0, 0.7, 1.5), (1.5, 1.5, 1.5)),
    GridPair.for_spacing((9, 8, 7), (1, 1, 1), (1, 1, 1)),
]


def test_the_model_grid_covers_the_same_length():
    grids = GridPair.for_spacing((20, 30, 25), (3.0, 0.7, 1.5), (1.5, 1.5, 1.5))
    assert grids.model_shape == (40, 14, 25)
    assert grids.model_spacing_mm == pytest.approx((1.5, 1.5, 1.5))


def test_weights_of_a_halved_axis_are_the_widened_triangle():
    # Output 1 lies at 2.5 of the input; the triangle reaches two voxels to each side.
    assert axis_weights(6, 3)[1].tolist() == pytest.approx([0, 0.125, 0.375, 0.375, 0.125, 0])


def test_weights_of_a_doubled_axis_are_linear_interpolation():
    assert axis_weights(3, 6)[1:3].tolist() == [[0.75, 0.25, 0.0], [0.25, 0.75, 0.0]]


@pytest.mark.parametrize("sizes", [(1, 1), (1, 9), (9, 1), (7, 13), (13, 7)])
def test_weights_are_positive_and_sum_to_one(sizes):
    weights = axis_weights(*sizes)
    assert weights.min() >= 0
    assert weights.sum(axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("grids", PAIRS)
def test_a_constant_stays_constant_there_and_back(grids):
    model = to_model_grid(np.full(grids.source_shape, -850, np.int16), grids)
    assert model == pytest.approx(-850)
    back = [logits for _, logits in to_source_grid([LogitSlab(0, model[None])], grids)]
    assert np.stack(back) == pytest.approx(-850)


def test_a_smooth_image_comes_back():
    grids = PAIRS[0]
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in grids.source_shape], indexing="ij")
    image = (100 * (z + 2 * y + x**2)).astype(np.float32)
    back = np.stack([p[0] for _, p in to_source_grid([LogitSlab(0, to_model_grid(image, grids)[None])], grids)])
    assert np.abs(back - image)[3:-3, 3:-3, 3:-3].max() < 2.0


def test_equal_grids_change_nothing():
    image = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    assert np.array_equal(to_model_grid(image, PAIRS[1]), image)


def test_how_slices_are_grouped_into_slabs_changes_no_bit():
    grids = PAIRS[0]
    logits = np.random.default_rng(0).normal(size=(4, *grids.model_shape)).astype(np.float32)
    whole = dict(to_source_grid([LogitSlab(0, logits)], grids))
    cuts = [0, 1, 8, 9, 30, logits.shape[1]]
    slabs = [LogitSlab(a, logits[:, a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    parts = dict(to_source_grid(iter(slabs), grids))
    assert list(parts) == list(range(grids.source_shape[0]))
    assert all(np.array_equal(parts[z], whole[z]) for z in whole)


# Source and model shapes: finer and coarser in each axis, equal, and with axes of one voxel.
SHAPES = [
    ((20, 30, 25), (40, 14, 11)),
    ((33, 41, 57), (20, 19, 26)),
    ((9, 8, 7), (9, 8, 7)),
    ((6, 40, 12), (9, 17, 20)),
    ((6, 12, 40), (9, 20, 17)),
    ((7, 9, 11), (3, 1, 1)),
    ((7, 1, 11), (1, 1, 5)),
    ((1, 13, 1), (4, 6, 1)),
    ((3, 50, 50), (3, 49, 2)),
    ((3, 50, 50), (2, 100, 100)),
]


def grids_of(source, model):
    """The grids of two shapes; their spacing plays no part."""
    return GridPair(source, (1, 1, 1), model, (1, 1, 1))


def product_of_matrices(image, shape_to):
    """The last three axes of ``image``, each multiplied by its whole matrix."""
    for axis, n_to in zip((-3, -2, -1), shape_to, strict=True):
        weights = axis_weights(image.shape[axis], n_to)
        image = np.moveaxis(np.tensordot(weights, image, axes=(1, axis)), 0, axis)
    return image


@pytest.mark.parametrize(("source", "model"), SHAPES)
def test_both_directions_are_the_product_of_three_matrices(source, model):
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 1000, source).astype(np.int16)
    expected = product_of_matrices(hu.astype(np.float32), model)
    assert to_model_grid(hu, grids_of(source, model)) == pytest.approx(expected, abs=1e-2)
    logits = rng.normal(size=(3, *model)).astype(np.float32)
    expected = product_of_matrices(logits, source)
    back = [plane for _, plane in to_source_grid([LogitSlab(0, logits)], grids_of(source, model))]
    assert np.stack(back, axis=1) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
@pytest.mark.parametrize("smoothness", [0.0, 2.0])
@pytest.mark.parametrize(("source", "model"), SHAPES)
def test_labels_are_the_highest_of_the_interpolated_logits(source, model, smoothness, classes):
    noise = np.random.default_rng(0).normal(size=(classes, *model))
    logits = ndimage.gaussian_filter(noise, (0, *[smoothness] * 3)).astype(np.float32)
    labels = [plane for _, plane in to_source_labels([LogitSlab(0, logits)], grids_of(source, model))]
    interpolated = product_of_matrices(logits, source)
    differs = np.stack(labels) != interpolated.argmax(axis=0)
    if classes > 1:
        second, first = np.sort(interpolated, axis=0)[-2:]
        differs &= first - second > 1e-6  # below that rounding decides
    assert not differs.any()


def test_of_equal_logits_the_first_class_is_taken():
    grids = PAIRS[0]
    logits = np.zeros((3, *grids.model_shape), np.float32)
    assert not any(plane.any() for _, plane in to_source_labels([LogitSlab(0, logits)], grids))
    logits[1:] = 1.0
    assert all((plane == 1).all() for _, plane in to_source_labels([LogitSlab(0, logits)], grids))
    # A border through the middle of a cell, on a source voxel: both classes have 0 there.
    logits = np.array([[[[1.0, -1.0]]], [[[-1.0, 1.0]]]], np.float32)
    labels = dict(to_source_labels([LogitSlab(0, logits)], grids_of((1, 1, 5), (1, 1, 2))))
    assert labels[0].tolist() == [[0, 0, 0, 1, 1]]


def test_labels_do_not_depend_on_how_slices_are_grouped():
    grids = PAIRS[0]
    logits = np.random.default_rng(0).normal(size=(4, *grids.model_shape)).astype(np.float32)
    whole = dict(to_source_labels([LogitSlab(0, logits)], grids))
    cuts = [0, 1, 8, 9, 30, logits.shape[1]]
    parts = dict(to_source_labels((LogitSlab(a, logits[:, a:b]) for a, b in zip(cuts, cuts[1:], strict=False)), grids))
    assert list(parts) == list(range(grids.source_shape[0]))
    assert all(np.array_equal(parts[z], whole[z]) for z in whole)


def test_a_wrong_shape_is_refused():
    with pytest.raises(VolumeError, match="source grid has"):
        to_model_grid(np.zeros((2, 2, 2)), PAIRS[1])
