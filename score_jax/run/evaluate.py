"""The held-out loss at every noise level."""

import jax
import numpy as np

from score_jax import workdir
from score_jax.evaluation.objective import losses_per_level
from score_jax.noise import example_keys
from score_jax.progress import Progress
from score_jax.run.build import loss_of, prepare_examples
from score_jax.run.job import Job, merge_second, say


def evaluate(job: Job) -> bool:
    """Prints the held-out loss at every noise level and writes it to evaluation.json; True when done."""
    step, state = job.restored
    losses = _held_out_losses(job, state.ema_params)
    number = len(losses)
    mean, error = losses.mean(0), losses.std(0) / np.sqrt(number)
    say(f"held-out loss of step {step} on {number} examples, sum over {int(np.prod(job.event))} dimensions:")
    say("level    sigma      loss  standard error")
    for level, sigma in enumerate(np.asarray(job.sigmas)):
        say(f"{level:5d} {sigma:8.4g} {mean[level]:9.4f} {error[level]:9.4f}")
    say(f" mean          {mean.mean():9.4f}")
    report = {
        "step": step,
        "examples": number,
        "held_out_loss": float(mean.mean()),
        "levels": [
            {"level": i, "sigma": float(s), "loss": float(m), "standard_error": float(e)}
            for i, (s, m, e) in enumerate(zip(np.asarray(job.sigmas), mean, error, strict=True))
        ],
    }
    workdir.write_json(job.folder / "evaluation.json", report)
    say(f"wrote {job.folder / 'evaluation.json'}")
    return True


def _held_out_losses(job: Job, params) -> np.ndarray:
    """float64 [examples, levels]."""
    settings, loss_fn = {**job.config["data"], "label_dropout": 0.0}, loss_of(job.config["loss"])
    params, number, batch_size = job.replicate(params), len(job.data.held_out), job.config["training"]["batch_size"]
    feed = job.feed(job.data.held_out, job.data.held_out_labels)

    def batch_losses(key, params, index, held, args):
        prepare_key, loss_key = jax.random.split(key)
        keys = example_keys(prepare_key, index)
        x, *label = prepare_examples(settings, job.data.num_values, job.data.num_classes, keys, *feed.take(held, args))
        return losses_per_level(loss_key, loss_fn, lambda x, level: job.apply(params, x, level, *label), x, index, job.sigmas)

    program, losses = job.pmap(batch_losses, (None, None, 0, None, 0), 0), []
    with Progress(number, "evaluate", "example") as progress:
        for first in range(0, number, batch_size):
            index = first + np.arange(batch_size)
            found = program(job.keys["evaluate"], params, job.split(index), feed.constants, feed.args(index % number))
            losses.append(merge_second(found))
            progress.update(min(first + batch_size, number))
    return np.concatenate(losses)[:number].astype(np.float64)
