"""Noise conditional score networks in JAX and Flax.

The map of the package. `import score_jax as sj` loads nothing heavy: public names such as `sj.fit`
or `sj.NCSN` are imported when they are first used.

    typing         array shapes and protocols: ScoreFn, LossFn, Sampler
    noise          noise levels, perturbed data, one random key per example
    analytic       densities with closed-form scores, log densities and posteriors
    schedule       noise levels and step sizes from the data (NCSNv2's techniques 1, 2 and 4)
    network        networks as pairs of pure functions, and as score functions
    continuous_score   the score at any sigma
    guidance       classifier-free guidance, autoguidance
    gaussian_law   the variance with which a sampler's chains end on Gaussian data
    likelihood     log densities by the probability-flow ODE
    operators      linear measurements of images, for inverse problems
    solvers        linear systems, each example of a batch by itself
    posterior      scores given measurements y = A x + noise, for any sampler
    losses         dsm: denoising, ssm: sliced, implicit: exact score matching
    samplers       Langevin dynamics and its relatives, one XLA program each
    models         ncsn, ncsnv2: the published networks; unet: for small images; mlp: for points;
                   inception: features for FID
    ops            fast convolutions on CPUs
    data           sources of examples; batches as a pure function of (seed, step)
    devices        splitting and averaging over devices
    training       one optimisation step as a pure function
    training_log   losses and times of a training run, for the training loop alone
    fitting        the training loop
    sampling       chains in batches over devices
    checkpoint     training states on disk
    records        the step and the run that a checkpoint belongs to, with checksums
    exported       draws from an exported sampler, without the rest of this package
    evaluation     the objective at every noise level, comparison of runs, calibration; metrics of
                   samples in the features of a classifier or Inception; diagnostics of chains;
                   log densities; nearest neighbours
    debugging      the operation that gave the first NaN
    progress       the line that shows how far a loop is
    reading        files of unknown origin, within bounds of size
    writing        files whole or not at all
    cli            the command `score-jax`

Two values cross every border: a score function `(x, level) -> score` and `sigmas`, the decreasing
noise levels. Everything that learns makes a score function; everything that samples takes one.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

# Public name -> the module that defines it.
_HOMES = {
    "noise": (
        "edm_sigmas",
        "example_keys",
        "geometric_sigmas",
        "normal_levels",
        "perturb",
        "stratified_levels",
        "uniform_levels",
    ),
    "analytic": (
        "full_gaussian_log_density",
        "full_gaussian_posterior",
        "full_gaussian_score_fn",
        "gaussian_score_fn",
        "mixture_log_density",
        "mixture_score_fn",
        "sample_full_gaussian",
        "sample_mixture",
    ),
    "schedule": ("largest_distance", "num_levels_for", "overlap", "step_size_for"),
    "network": ("Model", "score_fn"),
    "continuous_score": ("at_sigmas", "continuous"),
    "guidance": ("autoguidance", "class_guidance", "with_fixed_label", "without_label"),
    "gaussian_law": ("final_variance",),
    "likelihood": ("bits_per_dimension", "density_flow", "log_density"),
    "operators": (
        "adjoint",
        "block_mean",
        "blur",
        "grayscale",
        "mask",
        "masked_fourier",
        "random_projections",
        "sum_of_sources",
    ),
    "posterior": ("independent_sources", "likelihood_score", "posterior_score"),
    "losses.dsm": ("annealed_dsm", "denoising_score_matching"),
    "losses.ssm": ("annealed_ssm", "ssm", "sliced_score_matching"),
    "losses.implicit": ("annealed_implicit", "implicit", "implicit_score_matching"),
    "samplers.loop": ("Trajectory", "anneal", "denoise"),
    "samplers.langevin": ("annealed_langevin", "langevin", "langevin_baseline", "langevin_step"),
    "samplers.consistent": ("ancestral_step_size", "consistent_annealed_sampling"),
    "samplers.ode": ("probability_flow", "stochastic_heun"),
    "samplers.predictor_corrector": ("ancestral", "predictor_corrector"),
    "samplers.inpainting": ("inpaint", "toward_known"),
    "samplers.interpolation": ("interpolate", "mixed_normal"),
    "models.ncsn": ("NCSN",),
    "models.ncsnv2": ("NCSNv2",),
    "models.unet": ("UNet", "with_principal_components"),
    "models.mlp": ("MLP",),
    "models.official": ("from_official", "read_official", "to_official"),
    "models.inception": ("inception_features",),
    "models.inception_weights": ("read_inception",),
    "data.dataset": ("Dataset", "LazyImages"),
    "data.transforms": ("make_prepare",),
    "training": ("Metrics", "Trainer", "TrainState", "make_trainer"),
    "training_log": ("Report",),
    "fitting": ("fit",),
    "sampling": ("normal_start", "run_chains", "sample", "uniform_start"),
    "checkpoint": ("Checkpoints",),
    "exported": ("load_sampler",),
    "evaluation.metrics": (
        "Moments",
        "Outputs",
        "coverings",
        "frechet_distance",
        "inception_score",
        "kernel_distance",
        "moments",
        "sample_metrics",
        "unlimited_frechet_distance",
    ),
    "evaluation.features": ("extract", "feature_batches", "flat_pixels"),
    "evaluation.classifier": ("classifier_features", "train_classifier"),
    "evaluation.diagnostics": ("ChainObserver", "data_moments", "diagnose"),
    "evaluation.calibration": ("calibrate", "residuals"),
    "data.image_sets": ("read_images",),
    "evaluation.comparison": ("Comparison", "compare"),
    "evaluation.densities": ("Likelihood", "log_likelihood"),
    "evaluation.objective": ("common_sigmas", "evaluate", "losses_per_level", "map_examples"),
    "evaluation.neighbors": ("nearest_neighbors",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
