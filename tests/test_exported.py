"""The reader of exported samplers, on a sampler.zip that is made by hand."""

import io
import json
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.exported import _array, _arrays, load_sampler


def saved(save, *values, **arrays):
    file = io.BytesIO()
    save(file, *values, **arrays)
    return file.getvalue()


def write_sampler(path, shape_key="shape", labels=None, limit=100):
    """A sampler.zip whose image i has the value scale * (seed + i + label i).

    Images are infinite from number `limit` on.
    """

    def images(parameters, seed, index, *label):
        value = seed + index + sum(label)
        value = jnp.where(index < limit, value, jnp.inf)
        return jnp.broadcast_to(parameters["scale"] * value[:, None, None], (*index.shape, 2, 3))

    (batch,) = jax.export.symbolic_shape("batch")
    chains = jax.ShapeDtypeStruct((batch,), np.int32)
    seed = jax.ShapeDtypeStruct((), np.uint32)
    scale = jax.ShapeDtypeStruct((), np.float32)
    label = [] if labels is None else [chains]
    program = jax.export.export(jax.jit(images))({"scale": scale}, seed, chains, *label)
    facts = {"batch_size": 4, "any_batch": True, "seed": 0, "step": 7, "num_classes": 10}
    facts[shape_key] = [2, 3]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sampler.bin", bytes(program.serialize()))
        archive.writestr("parameters.npz", saved(np.savez, scale=np.float32(0.5)))
        archive.writestr("sampler.json", json.dumps(facts))
        if labels is not None:
            archive.writestr("labels.npy", saved(np.save, np.asarray(labels, np.int32)))


@pytest.mark.parametrize("shape_key", ["shape", "event"])
def test_files_of_this_version_and_of_earlier_ones_are_read(shape_key, tmp_path):
    """Earlier versions called the shape of an image its event."""
    write_sampler(tmp_path / "sampler.zip", shape_key)
    sampler = load_sampler(tmp_path / "sampler.zip")
    assert sampler.facts["shape"] == [2, 3]
    assert "event" not in sampler.facts
    assert sampler.facts["step"] == 7
    images = sampler(seed=3, number=6)
    expected = np.broadcast_to(0.5 * (3 + np.arange(6))[:, None, None], (6, 2, 3))
    np.testing.assert_array_equal(images, expected)


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_sampler(tmp_path / "sampler.zip")
    assert load_sampler("~/sampler.zip")(0, 1).shape == (1, 2, 3)


def test_one_label_serves_all_images_and_several_serve_one_each(tmp_path):
    write_sampler(tmp_path / "sampler.zip", labels=[1, 4, 9])
    sampler = load_sampler(tmp_path / "sampler.zip")
    for labels in (7, np.full(6, 7), [7] * 6):
        np.testing.assert_array_equal(sampler(0, 6, labels)[:, 0, 0], 0.5 * (7 + np.arange(6)))
    np.testing.assert_array_equal(sampler(0, 2, [5, 3])[:, 0, 0], [2.5, 2.0])
    assert sorted(sampler.classes(0, 6)[0]) == [1, 1, 4, 4, 9, 9]


def test_the_first_chain_that_is_not_finite_is_named(tmp_path):
    write_sampler(tmp_path / "sampler.zip", limit=5)
    sampler = load_sampler(tmp_path / "sampler.zip")
    assert np.isfinite(sampler(0, 5)).all()
    words = "^chain 5 is not finite: export the sampler again with a smaller step size$"
    with pytest.raises(FloatingPointError, match=words):
        sampler(0, 7)


def test_labels_of_an_unconditional_network_are_an_error(tmp_path):
    write_sampler(tmp_path / "sampler.zip")
    with pytest.raises(ValueError, match="this network takes no labels: leave them out"):
        load_sampler(tmp_path / "sampler.zip")(0, 2, 3)


def test_arrays_that_claim_more_than_is_stored():
    with pytest.raises(ValueError, match="its arrays are compressed, or claim more bytes"):
        _arrays(saved(np.savez_compressed, scale=np.zeros(10**5, np.float32)))
    array = saved(np.save, np.zeros(999, np.int8))
    with pytest.raises(
        ValueError, match=r"a header claims float64 \[999\], but there are \d+ bytes"
    ):
        _array(array.replace(b"|i1", b"<f8"))
    with pytest.raises(ValueError, match=r"a header claims int8 \[-99\]"):
        _array(array.replace(b"(999,)", b"(-99,)"))
    assert _array(array).shape == (999,)


@pytest.mark.parametrize("missing", ["sampler.bin", "parameters.npz", "sampler.json"])
def test_a_file_that_lacks_a_part_is_an_error(missing, tmp_path):
    write_sampler(tmp_path / "sampler.zip")
    with (
        zipfile.ZipFile(tmp_path / "sampler.zip") as whole,
        zipfile.ZipFile(tmp_path / "part.zip", "w") as part,
    ):
        for name in whole.namelist():
            if name != missing:
                part.writestr(name, whole.read(name))
    words = rf"^path='.*part\.zip' cannot be read as an exported sampler .*{missing}"
    with pytest.raises(ValueError, match=words):
        load_sampler(tmp_path / "part.zip")
