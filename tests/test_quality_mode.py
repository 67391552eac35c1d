"""--mode=metrics and --mode=stats, and metrics at the end of training."""

import json

import numpy as np
import pytest
from PIL import Image
from runs import make_command, run_command, run_mode, small, train

from score_jax.cli import feature_space
from score_jax.data import sources
from score_jax.evaluation.metrics import Outputs, sample_metrics

TINY = {
    "training__num_steps": 4,
    "optim__warmup_steps": 0,
    "sampling__num_samples": 20,
    "sampling__num_steps": 1,
}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """A classifier of few steps."""
    monkeypatch.setattr(feature_space, "FEWEST_STEPS", 5)
    monkeypatch.setattr(feature_space, "EPOCHS", 0)


def digits(number=60):
    data = sources.digits()
    return data, data.train[:number].astype(np.float32) / 16


@pytest.fixture
def folder(tmp_path):
    """A workdir of training digits as samples, without a trained network."""
    (tmp_path / "config.json").write_text(json.dumps(small()))
    np.savez(tmp_path / "samples.npz", samples=digits()[1], step=7)
    return tmp_path


def run(capsys, folder, *arguments, mode="metrics"):
    code, error = run_command(capsys, f"--mode={mode}", f"--workdir={folder}", *arguments)
    assert (code, error) == (0, "")
    return (
        json.loads((folder / "quality.json").read_text())["entries"] if mode != "stats" else None
    )


def values(entry):
    return {row["name"]: row["value"] for row in entry["metrics"]}


def test_metrics_of_a_workdir_are_those_of_the_library(folder, capsys):
    [entry] = run(capsys, folder, "--features=pixels")
    data, x = digits()
    flat = x.reshape(60, 64)
    real = data.held_out.reshape(297, 64) / np.float32(16)
    expected = sample_metrics(Outputs(flat), Outputs(real))
    found = values(entry)
    for name in ("precision", "recall", "density", "coverage"):
        assert found[name] == pytest.approx(expected[name].value)
    assert found["fd_pixels"] == pytest.approx(expected["frechet_distance"].value, rel=1e-6)
    assert (entry["step"], entry["number"], entry["reference"]) == (7, 60, "held_out")
    # The floor is made of as many training digits.
    assert entry["floor_number"] == 60
    assert all(row["floor"] is not None for row in entry["metrics"])


def test_each_comparison_keeps_its_entry(folder, capsys):
    run(capsys, folder, "--features=pixels")
    entries = run(capsys, folder, "--features=pixels", "--reference=train", "--number=40")
    assert [entry["reference"] for entry in entries] == ["train", "held_out"]
    assert entries[0]["number"] == 40
    entries = run(capsys, folder, "--features=pixels")
    assert [entry["reference"] for entry in entries] == ["held_out", "train"]


def test_the_classifier_is_trained_once(folder, capsys, monkeypatch, tmp_path):
    cache = f"--cache={tmp_path / 'cache'}"
    [first] = run(capsys, folder, cache)
    assert {"fd_classifier", "is_classifier"} <= set(values(first))
    monkeypatch.setattr(feature_space, "train_classifier", None)
    [second] = run(capsys, folder, cache)
    assert values(second) == values(first)
    assert second["classifier_accuracy"] == first["classifier_accuracy"]


def test_a_damaged_classifier_is_trained_again(folder, capsys, tmp_path):
    cache = f"--cache={tmp_path / 'cache'}"
    [first] = run(capsys, folder, cache)
    [file] = (tmp_path / "cache").glob("classifier_*.npz")
    file.write_bytes(file.read_bytes()[:1000])
    [second] = run(capsys, folder, cache)
    assert values(second) == values(first)


def test_statistics_are_a_reference(folder, capsys):
    run(capsys, folder, "--features=pixels", "--reference=held_out", "--name=mine", mode="stats")
    with np.load(folder / "mine.npz") as file:
        real = sources.digits().held_out.reshape(297, 64) / 16
        np.testing.assert_allclose(file["mu"], real.mean(axis=0), atol=1e-7)
        np.testing.assert_allclose(file["sigma"], np.cov(real.T), atol=1e-7)
    [plain] = run(capsys, folder, "--features=pixels")
    found = run(capsys, folder, "--features=pixels", f"--reference={folder / 'mine.npz'}")
    assert values(found[0]) == pytest.approx(values(plain))
    # Statistics of other programs hold mean and covariance alone.
    np.savez(folder / "plain.npz", mu=real.mean(axis=0), sigma=np.cov(real.T))
    found = run(capsys, folder, "--features=pixels", f"--reference={folder / 'plain.npz'}")
    assert set(values(found[0])) == {"fd_pixels", "fd_pixels_unlimited"}
    assert values(found[0])["fd_pixels"] == pytest.approx(values(plain)["fd_pixels"], rel=1e-5)


def test_samples_in_a_folder_of_images(folder, capsys):
    (folder / "pictures").mkdir()
    _, x = digits()
    for i, image in enumerate(x):
        pixels = np.uint8(np.round(255 * image[..., 0]))
        Image.fromarray(pixels).save(folder / "pictures" / f"{i:03d}.png")
    [plain] = run(capsys, folder, "--features=pixels")
    found = run(capsys, folder, "--features=pixels", f"--samples={folder / 'pictures'}")
    assert values(found[0]) == pytest.approx(values(plain))


def test_features_of_the_user(folder, capsys, monkeypatch):
    (folder / "mine.py").write_text(
        "import numpy as np\n\n"
        "def traced(x):\n    return x.mean(axis=(1, 3))\n\n"
        "def plain(x):\n    return np.stack([np.float64(each).mean(axis=(0, 2)) for each in x])\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    [traced] = run(capsys, folder, "--features=mine:traced")
    assert "fd_features" in values(traced)
    plain = run(capsys, folder, "--features=mine:plain")[0]
    assert {row["name"] for row in plain["metrics"]} == {row["name"] for row in traced["metrics"]}


BAD = {
    "no samples": (["--samples=nowhere"], "--samples=nowhere is not there"),
    "no weights": (["--features=inception"], "--features=inception needs its weights"),
    "weights": (["--weights=x.npz"], "--weights=x.npz is used with --features=inception alone"),
    "few": (["--number=3"], "--number=3 must be at least 16"),
    "features": (
        ["--features=mine"],
        "--features=mine must be classifier, inception, pixels, or your own",
    ),
    "no reference": (["--reference=nowhere"], "--reference=nowhere is not there"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(case, folder, capsys):
    arguments, message = BAD[case]
    code, error = run_command(capsys, "--mode=metrics", f"--workdir={folder}", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert not (folder / "quality.json").exists()


def test_other_samples_are_refused(folder, capsys):
    np.savez(folder / "large.npz", np.zeros((20, 9, 9, 1), np.float32))
    np.savez(folder / "bright.npz", np.full((20, 8, 8, 1), 2.0, np.float32))
    for name, message in (("large", "[9, 9, 1], but those"), ("bright", "from 2 to 2")):
        arguments = [f"--workdir={folder}", f"--samples={folder / name}.npz"]
        code, error = run_command(capsys, "--mode=metrics", *arguments)
        assert code == 2
        assert message in error


def test_training_ends_with_metrics_and_their_floor(tmp_path, capsys):
    config = small(**TINY, training__metric_samples=20, training__metrics_every=2)
    train(tmp_path, config)
    [entry] = json.loads((tmp_path / "quality.json").read_text())["entries"]
    assert (entry["number"], entry["step"], entry["features"]) == (20, 4, "classifier")
    printed = capsys.readouterr().out
    assert "fd_classifier" in printed
    assert "floor: 20 training examples" in printed
    # A run that is complete is judged once.
    train(tmp_path, config)
    assert "fd_classifier" not in capsys.readouterr().out


def test_the_best_checkpoint_by_a_metric_of_samples(tmp_path):
    config = small(**TINY, training__metric_samples=16, training__eval_every=2)
    config["training"] |= {"best_by": "fd_classifier", "keep_best": 1}
    train(tmp_path, config)
    [kept] = (tmp_path / "best").iterdir()
    assert kept.name in ("2", "4")


def test_a_measure_that_cannot_be_computed_is_refused(tmp_path):
    config = small(**TINY)
    config["training"] |= {"best_by": "fd_classifier"}
    with pytest.raises(ValueError, match="best_by='fd_classifier' cannot be computed"):
        run_mode(make_command(tmp_path, config=config))
    assert not list(tmp_path.iterdir())
