"""Moments of the training data, from the data set or from the workdir where it is not at hand."""

from pathlib import Path
from typing import Any

import numpy as np

from score_jax.cli import workdir
from score_jax.data.dataset import spread_index
from score_jax.data.transforms import make_prepare
from score_jax.evaluation.diagnostics import DataMoments, data_moments
from score_jax.noise import example_keys, run_keys

EXAMPLES = 4096
"""Largest number of training examples that the moments are taken from."""
ENOUGH = 4
"""Smallest number of examples per dimension for which the covariance's eigenvalues are used."""


def moments_of(run: Any) -> DataMoments | None:
    """The moments of the training data in the unit of the network.

    They come from the data set if it is open, else from moments.json; None without either. `run`
    is a `run.Run`, whose attribute `moments` keeps the result.
    """
    if run.data is None:
        return _read(run.folder / "moments.json")
    x = prepared_examples(run, EXAMPLES)
    # Logits have no range.
    ranged = run.has_pixels and not run.config["data"]["logit"]
    found = data_moments(x, *((0.0, 1.0) if ranged else (None, None)))
    if len(x) < ENOUGH * int(np.prod(run.shape)):
        return found._replace(eigenvalues=None)  # Too few examples for a covariance
    return found


def prepared_examples(run: Any, most: int) -> np.ndarray:
    """Up to `most` training examples, evenly spread, as the network sees them."""
    train = run.data.train
    index = spread_index(len(train), min(len(train), most))
    settings, num_values = run.config["data"], run.data.num_values
    names = ("dequantize", "flip", "logit")
    prepare = make_prepare(num_values, **{name: settings[name] for name in names})
    keys = example_keys(run_keys(run.config["seed"])["evaluate"], index)
    return np.asarray(prepare(keys, train[index])[0])


def write_moments(run: Any) -> None:
    """Writes moments.json, for sampling without the data set."""
    found = run.moments
    content = found._asdict()
    if found.eigenvalues is not None:
        content["eigenvalues"] = found.eigenvalues.tolist()
    workdir.write_json(run.folder / "moments.json", content)


def _read(path: Path) -> DataMoments | None:
    content = workdir.read_json(path)
    if content is None:
        return None
    try:
        found = {name: content.get(name) for name in DataMoments._fields}
        for name in ("center", "square", "low", "high"):
            if found[name] is not None or name in ("center", "square"):
                found[name] = _finite(found[name], 0)
        if found["eigenvalues"] is not None:
            found["eigenvalues"] = _finite(found["eigenvalues"], 1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} does not hold the moments of data ({error}): restore it from a copy, or move "
            "it away and sample without diagnostics"
        ) from error
    return DataMoments(**found)


def _finite(value: Any, axes: int) -> Any:
    """A number, or a float64 vector, that is finite; raises a ValueError for anything else."""
    array = np.asarray(value, np.float64)
    if array.ndim != axes or isinstance(value, str) or not np.isfinite(array).all():
        raise ValueError(f"{value!r} is not {'a number' if axes == 0 else 'a list of numbers'}")
    return array if axes else float(array)
