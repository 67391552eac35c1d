"""Samples with a trained network."""

from collections.abc import Sequence

import jax
import numpy as np

from score_jax.cli import lock, provenance, samples, workdir
from score_jax.cli.flags import Command
from score_jax.cli.run import open_run
from score_jax.progress import announce


def sample_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Samples with the averaged parameters of the newest checkpoint; True when done.

    Many samples are written in shards, from which the same command continues if it is stopped.

    Raises:
        ValueError: If the command does not match the workdir, or another process writes samples
            of this name.
        OSError: If there is no checkpoint, or files cannot be written.
        FloatingPointError: If a chain is not finite; finished shards are kept.
    """
    # Check everything before anything is compiled.
    run = open_run(command, devices)
    options = command.options
    number = run.config["sampling"]["num_samples"] if options.number is None else options.number
    if number < 1:
        raise ValueError(f"--number={number} must be at least 1")
    labels = run.labels(number, options.label)
    params = run.for_samples(run.state.ema_params, run.step)
    score_fn = run.guided_score_fn(params, options.guidance)
    guided = {} if options.guidance is None else {"guidance": options.guidance}
    settings = samples.settings_of(run, number, options.label) | guided
    if command.dry_run:
        from score_jax.cli.estimate import estimate_sampling

        return estimate_sampling(run, settings)

    shards = samples.shards_of(run, "samples", params, settings, labels)

    def unfinished(name: str) -> str:
        return shards.renamed(f"{name}.shards").difference()

    name = lock.choose(run.folder, "samples", options.name, settings, unfinished)
    shards = shards.renamed(f"{name}.shards")
    announce(samples.describe(run, settings))

    def finish(drawn: samples.Drawn, name: str) -> None:
        samples.write(run, name, drawn, settings)
        provenance.record(command, devices, name)

    # A small set takes a name when it is written, a large one while its shards grow.
    if len(shards) == 1:
        drawn = samples.draw(run, score_fn, labels, shards)
        with lock.output(run.folder, name, settings, unfinished) as name:
            finish(drawn, name)
    else:
        workdir.check_writable(run.folder, 8 * number * int(np.prod(run.shape)))
        with lock.held(run.folder, name):
            # Another process may have finished in the meantime.
            reason = workdir.difference(run.folder / f"{name}.npz", settings) or unfinished(name)
            if reason:
                raise ValueError(f"{reason}: run the same command again, or choose a --name")
            finish(samples.draw(run, score_fn, labels, shards), name)
            shards.remove()
    announce(f"next: {workdir.command_line('--workdir', run.folder, '--mode=evaluate')}")
    return True
