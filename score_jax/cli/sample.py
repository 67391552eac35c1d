"""Samples with a trained network."""

from collections.abc import Sequence

import jax

from score_jax.cli import lock, provenance, samples, workdir
from score_jax.cli.flags import Command
from score_jax.cli.run import open_run
from score_jax.progress import announce


def sample_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Samples with the averaged parameters of the newest checkpoint; True when done.

    Raises:
        ValueError: If the command does not match the workdir.
        OSError: If there is no checkpoint, or files cannot be written.
        FloatingPointError: If a chain is not finite; nothing is written.
    """
    # Check everything before anything is compiled.
    run = open_run(command, devices)
    options = command.options
    number = run.config["sampling"]["num_samples"] if options.number is None else options.number
    if number < 1:
        raise ValueError(f"--number={number} must be at least 1")
    labels = run.labels(number, options.label)
    score_fn = run.guided_score_fn(run.state.ema_params, options.guidance)
    guided = {} if options.guidance is None else {"guidance": options.guidance}
    settings = samples.settings_of(run, number, options.label) | guided
    if command.dry_run:
        from score_jax.cli.estimate import estimate_sampling

        return estimate_sampling(run, settings)
    name = workdir.output_name(run.folder, "samples", options.name, settings)

    # Draw the samples, and write them with the way of those in the picture.
    announce(samples.describe(run, settings))
    drawn = samples.draw(run, score_fn, number, labels)
    with lock.output(run.folder, name, settings) as name:
        samples.write(run, name, drawn, settings)
        provenance.record(command, devices, name)
    announce(f"next: {workdir.command_line('--workdir', run.folder, '--mode=evaluate')}")
    return True
