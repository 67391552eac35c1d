"""The exported sampler, loaded where the code that made it is not."""

import subprocess
import sys

import numpy as np
import pytest
from runs import (
    finished_run,
    make_command,
    perceptron,
    run_mode,
    samples,
    saved_config,
    train,
)
from test_docs import ROOT, blocks

import score_jax
from score_jax.exported import load_sampler


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory)


# Nothing but JAX, NumPy and the file itself.
ELSEWHERE = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("score_jax", "flax", "optax", "orbax", "ml_collections"):
            raise ImportError(name)

sys.meta_path.insert(0, Refusing())
file, seed, number, out = sys.argv[1:]
sys.path.insert(0, file)
import numpy as np
from exported import load_sampler
np.save(out, load_sampler(file)(int(seed), int(number)))
"""


def elsewhere(folder, seed, number, tmp_path):
    """Samples of a process that can load nothing of this package."""
    arguments = [str(folder / "sampler.zip"), str(seed), str(number), str(tmp_path / "images.npy")]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *arguments], cwd=tmp_path, check=True)
    return np.load(tmp_path / "images.npy", allow_pickle=False)


@pytest.fixture(scope="module")
def exported(finished):
    assert run_mode(make_command(finished, "export"))
    return finished


def test_it_draws_the_samples_of_the_run_without_its_code(exported, tmp_path):
    found, expected = elsewhere(exported, 0, 24, tmp_path), samples(exported)["samples"]
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    hidden = [path.name for path in exported.iterdir() if path.name.startswith(".")]
    assert all(name.endswith(".lock") for name in hidden)


def test_each_image_is_a_function_of_seed_number_and_class(exported):
    sampler = load_sampler(exported / "sampler.zip")
    expected, labels = (samples(exported)[name] for name in ("samples", "labels"))
    np.testing.assert_array_equal(sampler.classes(0, 24)[0], labels)
    assert sampler.classes(0, 3000)[0][1500] == labels[0]
    np.testing.assert_allclose(sampler(0, 3), expected[:3], atol=1e-5)
    np.testing.assert_allclose(sampler(0, 3, labels[:3]), expected[:3], atol=1e-5)
    assert np.abs(sampler(1, 3) - expected[:3]).reshape(3, -1).max(1).min() > 0.01
    assert sampler.facts["step"] == 60
    assert (sampler.facts["any_batch"], sampler.facts["shape"]) == (True, [8, 8, 1])
    for arguments, sentence in (
        ((-1, 3), r"seed=-1 must be in \[0, 2\*\*32\)"),
        ((0, 0), "number=0 must be at least 1"),
        ((0, 3, 11), "must be one or 3 whole numbers from 0 to 9, or 10 for all classes, got 11"),
        ((0, 3, [1, 2]), r"must be one or 3 whole numbers .* got \[1 2\]"),
        ((0, 3, np.full(3, 1.5)), r"got \[1.5 1.5 1.5\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sampler(*arguments)


def test_the_program_alone_is_enough(exported):
    """As docs/guides/exporting.md describes the file: jax.export and the arrays beside it."""
    sampler = load_sampler(exported / "sampler.zip")
    label = samples(exported)["labels"][[5]]
    image = sampler.program(sampler.parameters, np.uint32(0), np.array([5], np.int32), label)
    np.testing.assert_allclose(image[0], samples(exported)["samples"][5], atol=1e-5)


def test_the_lines_of_the_guide(exported, tmp_path, monkeypatch):
    (block,) = blocks(ROOT / "docs" / "guides" / "exporting.md", "python")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(block, scope)
    np.testing.assert_allclose(scope["images"][:24], samples(exported)["samples"], atol=1e-5)
    assert scope["threes"].shape == (10, 8, 8, 1)


@pytest.mark.parametrize(
    "settings",
    [{"data__logit": True, "sampling__start": "uniform"}, {"sampling__method": "consistent"}],
)
def test_other_samplers_and_spaces_are_exported(settings, tmp_path):
    train(tmp_path / "run", perceptron(sampling__num_frames=0, **settings))
    assert run_mode(make_command(tmp_path / "run", "export", saved_config(tmp_path / "run")))
    found = load_sampler(tmp_path / "run" / "sampler.zip")(0, 24)
    np.testing.assert_allclose(found, samples(tmp_path / "run")["samples"], atol=1e-5)
    with pytest.raises(ValueError, match="this network takes no labels"):
        load_sampler(tmp_path / "run" / "sampler.zip")(0, 24, 3)


def test_a_chain_that_is_not_finite_is_named(exported):
    sampler = load_sampler(exported / "sampler.zip")
    sampler.parameters.update({name: leaf * np.nan for name, leaf in sampler.parameters.items()})
    words = "chain 0 is not finite: export the sampler again with a smaller step size"
    with pytest.raises(FloatingPointError, match=words):
        sampler(0, 3)


def test_a_damaged_or_missing_file_is_named(exported, tmp_path):
    content = (exported / "sampler.zip").read_bytes()
    path = tmp_path / "sampler.zip"
    words = "sampler.zip' is not a file: it must name a sampler.zip that was exported"
    with pytest.raises(FileNotFoundError, match=words):
        load_sampler(path)
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    for damaged in (
        content[:middle],
        flipped,
        b"",
        (exported / "samples.npz").read_bytes(),
    ):
        path.write_bytes(damaged)
        words = "sampler.zip' cannot be read as an exported sampler .*copy or export it again"
        with pytest.raises(ValueError, match=words):
            load_sampler(path)


def test_the_command(finished, command, tmp_path):
    code, shown = command(f"--workdir={tmp_path / 'none'}", "--mode=export")
    assert (code, shown.count("\n")) == (2, 1)
    assert "holds no checkpoint to export from: train first" in shown
    noisy = "--config.sampling.denoise=False"
    assert command(f"--workdir={finished}", "--mode=export", noisy) == (0, "")
    found, denoised = load_sampler(finished / "sampler.zip")(0, 16), samples(finished)["samples"]
    assert np.abs(found - denoised[:16]).max() > 1e-4


def test_the_printed_lines_can_be_pasted(finished, tmp_path, capsys):
    folder = tmp_path / "it's a run"
    folder.symlink_to(finished)
    assert run_mode(make_command(folder, "export"))
    shown = capsys.readouterr().out
    code = shown.rpartition("next, in Python: ")[2].strip()
    found = eval(code.partition("; ")[2], {"sj": score_jax})
    np.testing.assert_allclose(found, samples(finished)["samples"][:10], atol=1e-5)
