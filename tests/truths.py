"""What several tests compare with: the golden files, and statistical bounds."""

import json
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).with_name("fixtures")
NCSN_FIXTURES = ["ncsn_cifar_ngf8", "ncsn_mnist_ngf8"]
NCSNV2_FIXTURES = ["ncsnv2_cifar_ngf8", "ncsnv2_deeper_64_ngf4", "ncsnv2_deepest_64_ngf4"]


def golden(name):
    """A golden file with images as [..., H, W, C].

    Its parameters and gradients have official names.
    """
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    g = {
        k: np.moveaxis(v, -3, -1) if v.ndim >= 4 and "/" not in k else v
        for k, v in arrays.items()
        if "/" not in k
    }
    g["config"] = json.loads(str(g["config"]))
    for prefix in ("param", "dsm_grad"):
        g[prefix] = {
            key.removeprefix(prefix + "/"): value
            for key, value in arrays.items()
            if key.startswith(prefix + "/")
        }
    return g


def relative(ours, theirs):
    """Relative L2 error."""
    return float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs))


def assert_mean(values, expected, what=""):
    """The mean of independent draws lies within 5 standard errors of its expectation."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert error > 0, f"{what}: no spread"
    assert abs(values.mean() - expected) < 5 * error, (
        f"{what}: {values.mean()} is not {expected} +- {error}"
    )
