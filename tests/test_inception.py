import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inception_reference import golden_inception, images, random_state
from scipy.ndimage import map_coordinates
from truths import relative

import score_jax as sj
from score_jax.models.inception import (
    Inception,
    max_pool,
    mean_pool,
    pixel_values,
    resize_bilinear_tf1,
)
from score_jax.models.inception_weights import inception_params

SHAPES, GOLDEN = golden_inception()


@pytest.fixture(scope="module")
def features():
    return sj.inception_features(inception_params(random_state(SHAPES)))


def test_features_are_those_of_the_reference_on_every_device(features):
    """The reference is torch-fidelity with the same random weights and images."""
    run = jax.pmap(lambda features, x: features(x), in_axes=(None, 0))
    found = run(features, images(32, 32)[:, None])
    for ours, theirs in zip(found, GOLDEN[32, 32], strict=True):
        assert relative(ours[:, 0], theirs) < 1e-5
        np.testing.assert_allclose(ours[:, 0], theirs, atol=1e-4 * theirs.std())


def test_features_of_larger_images_are_those_of_the_reference(features):
    found = jax.jit(features)(images(200, 150))
    for ours, theirs in zip(found, GOLDEN[200, 150], strict=True):
        assert relative(ours, theirs) < 1e-5
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.std())


def test_the_parameters_are_those_of_the_network():
    x = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), x)["params"]
    kernels = {name for name in SHAPES if name.endswith("conv.weight")}
    assert len(kernels) == 94
    leaves = {
        ".".join(entry.key for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    expected = {"fc.kernel": (2048, 1008)}
    for name in kernels:
        features, inputs, height, width = SHAPES[name]
        module = name.removesuffix(".conv.weight")
        expected[f"{module}.kernel"] = (height, width, inputs, features)
        expected[f"{module}.bias"] = (features,)
    assert leaves == expected

    # The reference has four arrays per batch norm and the bias of the logits.
    folded = sum(size[0] for name, size in SHAPES.items() if name.endswith("running_var"))
    total = sum(np.prod(shape) for shape in SHAPES.values())
    assert sum(np.prod(shape) for shape in leaves.values()) == total - 3 * folded - 1008
    assert round(total / 1e6, 1) == 23.9


@pytest.mark.parametrize(
    ("before", "after"),
    [((32, 32), (299, 299)), ((200, 150), (299, 299)), ((400, 301), (299, 299)), ((5, 9), (9, 4))],
)
def test_resizing_takes_pixel_i_at_i_times_in_over_out(before, after):
    x = np.random.default_rng(0).integers(0, 256, (2, *before, 3), np.uint8)
    found = jax.jit(lambda x: resize_bilinear_tf1(x, after))(x)
    assert found.shape == (2, *after, 3)
    assert found.dtype == jnp.float32
    positions = [np.arange(n) * (m / n) for m, n in zip(before, after, strict=True)]
    grid = np.meshgrid(*positions, indexing="ij")
    for example in range(2):
        for channel in range(3):
            image = x[example, ..., channel].astype(np.float64)
            expected = map_coordinates(image, grid, order=1, mode="nearest")
            # Positions up to 400 in float32 move values of neighbours up to 255 apart.
            tolerance = 2 * 255 * 400 * 2.0**-24 + 1e-4
            np.testing.assert_allclose(found[example, ..., channel], expected, atol=tolerance)


def test_resizing_by_hand():
    row = jnp.asarray([0.0, 1.0, 4.0, 9.0])[None, None, :, None]
    longer = resize_bilinear_tf1(row, (1, 8))[0, 0, :, 0]
    np.testing.assert_array_equal(longer, [0, 0.5, 1, 2.5, 4, 6.5, 9, 9])
    np.testing.assert_array_equal(resize_bilinear_tf1(row, (1, 2))[0, 0, :, 0], [0, 4])
    np.testing.assert_array_equal(resize_bilinear_tf1(row, (1, 4)), row)


def test_mean_pooling_does_not_count_the_padding():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    expected = [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]]
    np.testing.assert_allclose(mean_pool(x)[0, ..., 0], expected, rtol=1e-6)
    np.testing.assert_allclose(mean_pool(jnp.ones((1, 5, 4, 2))), 1, rtol=1e-6)


def test_max_pooling_ignores_the_padding():
    x = -1 - jnp.arange(9.0).reshape(1, 3, 3, 1)
    expected = [[-1, -1, -2], [-1, -1, -2], [-4, -4, -5]]
    np.testing.assert_array_equal(max_pool(x)[0, ..., 0], expected)


def test_floating_point_images_are_rounded_as_in_a_file():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = np.broadcast_to(values, (1, 16, 16, 3))
    for same in (values, values / 255, (values + 0.5) / 256):
        np.testing.assert_array_equal(pixel_values(same), expected)
    outside = np.array([-0.2, 1.0, 1.7, np.nan]).reshape(1, 2, 2, 1)
    found = pixel_values(outside)[0, ..., 0].ravel()
    np.testing.assert_array_equal(found, [0, 255, 255, np.nan])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8, 2)), r"images is \[2, 8, 8, 2\], but must be .* 1 channel"),
        (np.zeros((2, 8, 8)), r"images is \[2, 8, 8\], but must be"),
        (np.zeros((2, 8, 8, 3), np.int32), "images has dtype int32, but must be uint8"),
    ],
)
def test_other_images_are_errors(images, words):
    with pytest.raises(ValueError, match=words):
        sj.inception_features({})(images)


def blank_state(**changes):
    """Ones that take no memory; a change of None leaves an array out."""
    arrays = {name: np.broadcast_to(np.float32(1), shape) for name, shape in SHAPES.items()}
    arrays |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"Mixed_6a__branch3x3__conv__weight": None},
            r"^'Mixed_6a\.branch3x3\.conv\.weight' is missing \(and 0 more .*of 2015-12-05$",
        ),
        (
            {"fc__weight": None, "Mixed_7c__branch1x1__bn__running_mean": None},
            r"is missing \(and 1 more arrays of Inception v3 are\)",
        ),
        (
            {"Mixed_8a__conv__weight": np.zeros(3)},
            r"^'Mixed_8a\.conv\.weight' is no array of Inception v3 \(and 0 more",
        ),
        # The logits of later versions have 1000 classes.
        (
            {"fc__weight": np.zeros((1000, 2048), np.float32)},
            r"^'fc\.weight' is \[1000, 2048\], but must be \[1008, 2048\]: .*of 2015-12-05$",
        ),
        (
            {"Mixed_5b__branch1x1__bn__running_var": np.full(64, -2, np.float32)},
            r"^'Mixed_5b\.branch1x1\.bn\.running_var' is -2 at its smallest",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_errors(changes, words):
    with pytest.raises(ValueError, match=words):
        inception_params(blank_state(**changes))


def test_a_file_is_read_and_arrays_without_effect_are_ignored(tmp_path):
    ignored = {
        "AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1)),
        "Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(7),
        "fc.bias": np.zeros(3),
    }
    np.savez(tmp_path / "weights.npz", **(blank_state() | ignored))
    params = sj.read_inception(tmp_path / "weights.npz")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    branch = params["Mixed_5b"]["branch1x1"]
    np.testing.assert_allclose(branch["kernel"], 1.001**-0.5, rtol=1e-6)
    np.testing.assert_allclose(branch["bias"], 1 - 1.001**-0.5, rtol=1e-3)
    np.testing.assert_array_equal(params["fc"]["kernel"], 1)


def test_errors_name_the_file(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"^\S*other\.npz: 'Conv2d_1a_3x3\.\S+' is missing"):
        sj.read_inception(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError, match=r"none\.pth' is not a file"):
        sj.read_inception(tmp_path / "none.pth")
