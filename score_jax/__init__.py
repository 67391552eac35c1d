"""Noise conditional score networks in JAX and Flax.

The map of the package; importing it imports nothing but this page.

    typing         the shapes and the protocols: ScoreFn, LossFn, Trainer
    config         what a config may say, checked before anything runs; the published settings
    noise          noise levels, perturbed data, one random key per example
    schedule       noise levels and step sizes from the data (NCSNv2's techniques 1, 2 and 4)
    losses         dsm: denoising, ssm: sliced, implicit: exact score matching
    langevin       Langevin and annealed Langevin dynamics, one XLA program
    inpainting     annealed Langevin dynamics that is held to known pixels
    interpolation  chains between two chains
    consistent     consistent annealed sampling
    analytic       densities whose score is known in closed form
    models         ncsn, ncsnv2: the published networks; unet: for small images; mlp: for points
    convert        official PyTorch checkpoints <-> networks and parameters
    training       one optimisation step as a pure function
    data           where examples come from; batches as a pure function of (seed, step)
    checkpoint     the state of training <-> disk
    evaluation     the objective at every noise level; nearest neighbours
    images         grids, animations, plots as pictures and files
    progress       one line that redraws
    workdir        what a run leaves in its folder, whole or not at all
    exported       draws from an exported sampler, with nothing else of this package
    run            what `main.py` does, a module for each mode

Two values cross every border: a score function `(x, level) -> score` and `sigmas`, the decreasing
noise levels. Everything that learns makes a score function, everything that samples takes one.
"""

__version__ = "0.1.0"
