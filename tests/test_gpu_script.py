"""The command for a day with a GPU, rehearsed with tiny sizes on a CPU."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from score_jax.data.sources import digits

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BUDGETS = ",".join(f"{name}=1000" for name in ("correctness", "speed", "profile", "quality"))
METRICS = {"fd_classifier", "kd_classifier", "precision", "recall", "is_classifier"}


def gpu(out, *arguments):
    """Runs the command; its exit code and output."""
    environment = os.environ | {
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "NPROC": "2",
    }
    flags = ["--tiny", f"--scratch={out}_scratch", "--dtype=bfloat16", "--rounds=1"]
    flags += ["--total=4000", f"--budget={BUDGETS}"]
    line = ["bash", str(BENCHMARKS / "gpu.sh"), str(out), *arguments, *flags]
    done = subprocess.run(line, env=environment, text=True, capture_output=True)
    return done.returncode, f"{done.stdout}\n{done.stderr}"


def archive(path):
    """Digits as JPEG files in a zip archive, as CIFAR-10 comes."""
    data = digits()
    train = ("train", data.train, data.train_labels)
    test = ("test", data.held_out, data.held_out_labels)
    with zipfile.ZipFile(path, "w") as file:
        for split, x, labels in (train, test):
            for i, (image, label) in enumerate(zip(x[:200], labels[:200], strict=True)):
                encoded = io.BytesIO()
                pixels = np.repeat(15 * image.astype(np.uint8), 3, axis=-1)
                Image.fromarray(pixels).save(encoded, format="JPEG")
                file.writestr(f"{split}/{label}/{i:04}.jpg", encoded.getvalue())
    return path


def test_all_stages_run_and_one_that_fails_is_reported(tmp_path):
    out = tmp_path / "out"

    # The stage that fails comes first, and the others still run.
    names = ("correctness", "speed", "profile", "quality")
    code, text = gpu(out, "cifar10", *names, f"--data={tmp_path / 'none.zip'}")
    assert code == 1, text
    stages = json.loads((out / "summary.json").read_text())["stages"]
    assert stages["cifar10"]["status"] == "failed"
    assert any("none.zip" in line for line in stages["cifar10"]["last_lines"])
    assert {stages[name]["status"] for name in names} == {"done"}, text

    # The stage alone, with sound data, replaces its entry in the summary.
    data = archive(tmp_path / "cifar10.zip")
    code, text = gpu(out, "cifar10", f"--data={data}", "--minutes=0.002,0.004")
    assert code == 0, text
    summary = json.loads((out / "summary.json").read_text())
    assert {stage["status"] for stage in summary["stages"].values()} == {"done"}
    assert summary["missing_packages"] == []
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in summary["stages"]}
    assert all(each["complete"] and each["about"]["platform"] == "cpu" for each in found.values())
    assert len(list(out.iterdir())) <= 8

    check_correctness(found["correctness"]["checks"])
    check_speed(found["speed"])
    check_profile(found["profile"]["programs"])
    assert found["quality"]["bfloat16"]["metrics"].keys() >= METRICS
    check_cifar10(found["cifar10"])
    for name in ("quality", "cifar10"):
        assert np.asarray(Image.open(out / f"{name}.png")).std() > 0


def check_correctness(checks):
    assert all(check["right"] and check["value"] <= check["bound"] for check in checks.values())
    assert checks["ncsn_mnist_ngf8, float32, highest precision"]["bound"] == 1e-5
    assert checks["ncsn_mnist_ngf8, bfloat16"]["value"] > 1e-4  # It is bfloat16.
    assert checks["training twice, largest difference"]["value"] == 0
    assert checks["sampling twice, largest difference"]["value"] == 0


def check_speed(found):
    torch = importlib.util.find_spec("torch")
    assert found["pytorch"].startswith("absent") == (torch is None)
    [case] = found["cases"]
    assert min(case["sample, score_jax"]["min"], case["train, score_jax"]["min"]) > 0
    # A training step is about three evaluations; a CPU's peak is not in the table.
    flop = {name: case["utilisation"][name]["gflop"] for name in ("sample", "train")}
    assert 2 * flop["sample"] < flop["train"] < 3.2 * flop["sample"]
    assert case["utilisation"]["sample"]["share_of_peak"] is None
    assert "not in the table" in case["utilisation"]["note"]


def check_profile(programs):
    assert [each["program"] for each in programs] == ["sample", "train"]
    for each in programs:
        listed = each["operations"]
        assert len(listed) == 10
        assert sorted(listed, key=lambda one: -one["ms"]) == listed
        assert 0 < sum(one["share"] for one in listed) <= 1
        assert any("MLP" in one["computes"] for one in listed)
        assert each["memory"] == "the platform does not report it"


def check_cifar10(found):
    assert found["not_reached_minutes"] == []
    assert found["floor"].keys() >= METRICS
    seconds = [entry["train_seconds"] for entry in found["times"]]
    assert seconds[-1] >= 0.004 * 60
    assert seconds == sorted(seconds)
    for entry in found["times"]:
        assert entry["metrics"].keys() >= METRICS
        assert entry["images_per_second"] > 0


def test_a_loop_does_not_count_the_operations_inside_it(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_speed

    events = [(6, 8, "b"), (0, 10, "loop"), (3, 4, "c"), (2, 5, "b"), (10, 11, "loop")]
    own = sorted(gpu_speed.own_times(events))
    assert own == [("b", 2), ("b", 2), ("c", 1), ("loop", 1), ("loop", 5)]


def test_the_peak_of_a_card_is_found_by_its_name(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_stages

    assert gpu_stages.peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989
    assert gpu_stages.peak("NVIDIA H100 PCIe", "float32") == 378
    assert gpu_stages.peak("NVIDIA A100-SXM4-40GB", "float32") == 156
    assert gpu_stages.peak("cpu", "bfloat16") is None
