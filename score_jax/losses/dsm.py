"""Denoising score matching, weighted by sigma^2.

    l(x, z, i) = w_i/2 || sigma_i s(x + sigma_i z, i) + z ||^2,   z ~ N(0, I)

with w_i = 1 as published, or w_i = 1 + sigma_i^2 / d^2 for data of standard deviation d: large
noise levels, where a network can remove little of the noise, then weigh as much as others.

With references, further examples of the data, z is replaced by its posterior mean given
x + sigma z (`stable_noise`): the gradient keeps its mean and has less variance.

Two layers: `denoising_score_matching` is deterministic and takes the noise, `annealed_dsm` draws
it.

Reference: Vincent (2011), "A connection between score matching and denoising autoencoders"; Song &
Ermon (2019), equations 5 and 6 with lambda(sigma) = sigma^2; Karras et al. (2022), "Elucidating
the design space of diffusion-based generative models", table 1 for the weights with d; Xu, Tong &
Jaakkola (2023), "Stable target field for reduced variance score estimation in diffusion models".
"""

import functools
import math

import jax
import jax.numpy as jnp

from score_jax.noise import (
    check_batch,
    check_level,
    perturb,
    sigma_at,
    sigma_of,
    standard_normal,
    sum_per_example,
)
from score_jax.typing import AnyBatch, AnyKeys, Batch, JaxBatch, Levels, Losses, ScoreFn, Sigmas


def denoising_score_matching(
    score_fn: ScoreFn,
    x: AnyBatch,
    noise: Batch,
    level: Levels,
    sigmas: Sigmas,
    *,
    data_std: float | None = None,
    references: AnyBatch | None = None,
) -> Losses:
    """The loss of each example for a given draw of the noise.

    Its minimiser over all score functions is the score of the perturbed data. The minimum value is
    not zero; for data N(0, v I) in D dimensions it is w D v / (2 (v + sigma^2)) in expectation,
    which is D / 2 at all levels with data_std^2 = v.

    Args:
        score_fn: The score to be learned.
        x: Clean data, [batch, *shape].
        noise: Standard normal, of the shape of `x`.
        level: Noise level of each example, an index into `sigmas`.
        sigmas: Noise levels, decreasing, in the unit of `x`.
        data_std: d above, above 0; None for weights of 1.
        references: Other examples, [references, *shape], for `stable_noise`; None for `noise`
            itself. They lower the minimum by the variance of z that they remove.

    Returns:
        One loss per example, summed over its dimensions; without a unit.

    Raises:
        ValueError: If `x` is not real floating-point, a concrete level is out of range, or
            data_std is not above 0.

    Example:
        >>> sigmas = jnp.array([2.0])
        >>> point_mass = lambda x, level: -x / 4.0  # the score of data that are all 0
        >>> noise = jnp.array([[0.3, -1.0]])
        >>> level = jnp.array([0])
        >>> print(sj.denoising_score_matching(point_mass, jnp.zeros((1, 2)), noise, level, sigmas))
        [0.]
    """
    if data_std is not None and not 0 < data_std < math.inf:
        raise ValueError(f"data_std={data_std} must be above 0 and finite, or None")
    x = check_batch(x)
    level = check_level(level, len(sigmas))
    sigma = sigma_of(level, sigmas, x)
    score = score_fn(perturb(x, noise, level, sigmas), level)
    if references is not None:
        noise = stable_noise(x, noise, level, sigmas, references)
    residual = sigma * score + noise
    residual = residual.astype(jnp.promote_types(x.dtype, jnp.float32))
    losses = 0.5 * sum_per_example(residual**2)
    if data_std is None:
        return losses
    return losses * (1 + (sigma_at(level, sigmas) / data_std) ** 2).astype(losses.dtype)


def annealed_dsm(
    keys: AnyKeys,
    score_fn: ScoreFn,
    x: AnyBatch,
    level: Levels,
    sigmas: Sigmas,
    *,
    data_std: float | None = None,
    references: AnyBatch | None = None,
) -> Losses:
    """`denoising_score_matching` with noise drawn from `keys`, one per example (a LossFn).

    Raises:
        ValueError: As `denoising_score_matching`; if the number of keys differs from the batch
            size.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> x, level = jnp.zeros((8, 2)), jnp.zeros(8, int)
        >>> losses = sj.annealed_dsm(keys, score_fn, x, level, sigmas)
        >>> losses.shape  # one per example
        (8,)
    """
    x = check_batch(x, keys)
    noise = standard_normal(keys, x.shape[1:], x.dtype)
    return denoising_score_matching(
        score_fn, x, noise, level, sigmas, data_std=data_std, references=references
    )


def stable_noise(
    x: AnyBatch, noise: Batch, level: Levels, sigmas: Sigmas, references: AnyBatch
) -> JaxBatch:
    """The posterior mean of z given x + sigma z, for data that are `x` and the references.

        z* = (x~ - sum_k w_k x_k) / sigma,   w = softmax(-||x~ - x_k||^2 / (2 sigma^2))

    At small sigmas it is `noise`, since only `x` is near x~ = x + sigma z; at large ones it has
    far less variance. It is -sigma times the exact score of the data {x, references}.

    Args:
        x: Clean data, [batch, *shape].
        noise: z, of the shape of `x`.
        level: Noise level of each example, an index into `sigmas`.
        sigmas: Noise levels, decreasing.
        references: Independent examples of the data, [references, *shape].

    Returns:
        z*, of the shape and dtype of `noise`.

    Raises:
        ValueError: If the references have another shape than `x`, or there are none.

    Reference: Xu, Tong & Jaakkola (2023), equation 8.
    """
    references = jnp.asarray(references)
    if references.shape[1:] != x.shape[1:] or not len(references):
        raise ValueError(
            f"references of shape {references.shape} must be examples of shape {x.shape[1:]}, at "
            "least one"
        )
    dtype = jnp.promote_types(noise.dtype, jnp.float32)
    size = math.prod(x.shape[1:])
    flat, others, z = (
        jnp.asarray(part, dtype).reshape(len(part), size) for part in (x, references, noise)
    )
    sigma = sigma_at(level, sigmas).astype(dtype)[:, None]

    # -||x~ - x_k||^2 / (2 sigma^2) relative to that of x, which is -||z||^2 / 2. Centred, because
    # the squares would cancel otherwise.
    center = jnp.mean(others, axis=0, keepdims=True)
    flat, others = flat - center, others - center
    perturbed = flat + sigma * z
    norms = 0.5 * jnp.sum(others**2, axis=1)
    own = jnp.sum(perturbed * flat, axis=1, keepdims=True)
    own = own - 0.5 * jnp.sum(flat**2, axis=1, keepdims=True)
    product = functools.partial(jnp.matmul, precision="highest")  # Exponents need all digits.
    logits = (product(perturbed, others.T) - norms[None] - own) / sigma**2

    # With the weight of x apart, z* = z exactly where no reference is near.
    weights = jax.nn.softmax(jnp.pad(logits, ((0, 0), (1, 0))))[:, 1:]
    change = jnp.sum(weights, axis=1, keepdims=True) * flat - product(weights, others)
    return (z + change / sigma).reshape(noise.shape).astype(noise.dtype)
