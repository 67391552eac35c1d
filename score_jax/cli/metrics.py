"""The modes metrics and stats: judge samples, and store the statistics of a data set."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from score_jax.cli import lock, workdir
from score_jax.cli.cache import cache_folder
from score_jax.cli.feature_space import check_space, choose_space, described, needs_data, rescaled
from score_jax.cli.flags import Command
from score_jax.cli.quality import (
    FEWEST,
    SPLITS,
    add_entry,
    as_entry,
    default_reference,
    judge,
    labelled_data,
    print_entry,
    read_samples,
    reference_of,
    saved_entries,
)
from score_jax.cli.settings import validate
from score_jax.data.dataset import spread_index
from score_jax.progress import announce
from score_jax.reading import load_arrays

KEPT = 10_000
"""Largest number of examples whose features a file of statistics holds."""


def metrics_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Prints the metrics of samples and adds them to quality.json; True when done.

    Raises:
        ValueError: If the samples, the features and the reference do not fit each other.
        OSError: If a file is missing, or quality.json cannot be written.
    """
    # Check everything before anything is computed.
    validate(command.config)
    options, folder = command.options, Path(command.workdir)
    data, any_shape = None, options.features == "inception"
    reference = options.reference or default_reference(options.features)
    if needs_data(options.features) or reference in SPLITS:
        data = labelled_data(command.config)
    path = options.samples or str(folder / "samples.npz")
    if options.samples is None and not Path(path).is_file():
        raise FileNotFoundError(
            f"--workdir={folder} holds no samples.npz: draw samples with --mode=sample, or name "
            "others with --samples"
        )
    saved_entries(folder)  # Report a damaged file now.
    workdir.check_writable(folder, 1_000_000)
    shape = None if any_shape or data is None else tuple(data.train.shape[1:])
    pixels = data is None or data.num_values is not None
    x = read_samples(path, "samples", shape, pixels)
    if options.number is not None and options.number < len(x):
        # Evenly spread over the samples, which can be sorted by class.
        x = x[spread_index(len(x), options.number)]
    check_space(data, options.features, options.weights, x.shape[1:])
    if len(x) < FEWEST:
        raise ValueError(f"--number={options.number} must be at least {FEWEST}")

    begun = time.monotonic()
    prepared = judge(
        data,
        command.config,
        devices,
        number=len(x),
        shape=x.shape[1:],
        features=options.features,
        weights=options.weights,
        reference=options.reference,
    )
    found = prepared.metrics(x)
    name = path if options.samples else "samples.npz"
    entry = as_entry(prepared, found, name, len(x), _step_of(path), time.monotonic() - begun)
    print_entry(prepared, entry)
    folder.mkdir(parents=True, exist_ok=True)
    add_entry(folder, entry)
    announce(f"wrote {folder / 'quality.json'}")
    return True


def _step_of(path: str) -> int | None:
    """The training step of the network that drew the samples of a file, if it says so."""
    if not path.endswith(".npz"):
        return None
    step = load_arrays(path, lambda names: [name for name in names if name == "step"]).get("step")
    whole = step is not None and step.shape == () and step.dtype.kind in "iu"
    return int(step) if whole else None


def stats_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Writes the statistics of a data set, to be the reference of samples; True when done.

    Raises:
        ValueError: If the features do not fit the data.
        OSError: If a file is missing or cannot be written.
    """
    validate(command.config)
    options, folder = command.options, Path(command.workdir)
    split = options.reference or "train"
    data = None
    if needs_data(options.features) or split in SPLITS:
        data = labelled_data(command.config)
    kind = (options.features or "classifier").rpartition(":")[2]
    source = split if split in SPLITS else Path(split).stem
    settings = {
        "features": options.features or "classifier",
        "weights": options.weights,
        "reference": split,
        "data": command.config["data"],
    }
    workdir.check_writable(folder, 50_000_000)
    if split in SPLITS:
        x = rescaled(data, data.train if split == "train" else data.held_out)
    else:
        shape = None if data is None else tuple(data.train.shape[1:])
        x = read_samples(split, "reference", shape, data is None or data.num_values is not None)
    check_space(data, options.features, options.weights, x.shape[1:])
    name = lock.choose(folder, f"stats_{kind}_{source}", options.name, settings)

    shape, cache = x.shape[1:], cache_folder()
    space = choose_space(data, options.features, options.weights, devices, cache, shape)
    reference = reference_of(split, x, space, devices, True)
    folder.mkdir(parents=True, exist_ok=True)
    # Examples evenly spread over the set, which can be sorted by class.
    kept = spread_index(reference.number, min(reference.number, KEPT))
    arrays = {
        "mu": reference.moments.mean,
        "sigma": reference.moments.covariance,
        "count": reference.number,
        "features": reference.outputs.features[kept],
        "fingerprint": space.fingerprint,
        "settings": json.dumps(settings),
    }
    with lock.output(folder, name, settings) as name:
        workdir.write_npz(folder / f"{name}.npz", arrays, compressed=False)
    announce(f"{reference.number} examples of {split}, {described(space)}")
    own = ["--features", options.features] if options.features else []
    own += ["--weights", options.weights] if options.weights else []
    file = folder / f"{name}.npz"
    using = workdir.command_line("--workdir", folder, "--mode=metrics", *own, "--reference", file)
    announce(f"wrote {file}; use it with {using}")
    return True
