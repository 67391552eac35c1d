"""Noise conditional score networks in JAX and Flax.

The map of the package; importing it imports nothing but this page.

    typing      the shapes and the three protocols: ScoreFn, LossFn, Trainer
    config      what a config may say, checked before anything runs
    noise       noise levels, perturbed data, one random key per example
    schedule    step sizes and noise levels from the data (NCSNv2's techniques)
    losses      dsm: denoising score matching
    langevin    Langevin and annealed Langevin dynamics, one XLA program
    analytic    densities whose score is known in closed form
    models      ncsn: the network of the paper; unet: a small one for small images
    convert     official PyTorch weights <-> parameters
    training    one optimisation step as a pure function
    data        images in memory, batches as a pure function of (seed, step)
    checkpoint  the state of training <-> disk
    evaluation  the objective at every noise level
    images      grids, animations and curves as files
    progress    one line that redraws
    workdir     what a run leaves in its folder, whole or not at all
    run         what `main.py` does: train, sample, evaluate

Two values cross every border: a score function `(x, level) -> score` and `sigmas`, the decreasing
noise levels. Everything that learns makes a score function, everything that samples takes one.
"""

__version__ = "0.1.0"
