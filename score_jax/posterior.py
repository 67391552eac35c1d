"""Scores of the posterior p(x | y): score functions made of score functions, for any sampler.

    y = A x_0 + noise_std z,   z ~ N(0, I)
    grad log p(x | y) = s(x) + grad log p(y | x),   x = x_0 + sigma noise

The methods approximate p(y | x), with the denoiser D(x) = x + sigma^2 s(x) = E[x_0 | x] and its
Jacobian J, for which sigma^2 J = Cov[x_0 | x] =: V exactly (Tweedie's formula):

    moment_matching   s + J A^T (noise_std^2 I + A V A^T)^-1 (y - A D(x)),   V = sigma^2 J
    pseudo_inverse    s + J^T A^T (noise_std^2 I + r^2 A A^T)^-1 (y - A D(x))
                      with r^2 = sigma^2 v / (sigma^2 + v)
    dps               s - zeta sqrt(M) / (2 sigma |y - A D(x)|) grad |y - A D(x)|^2
    annealed          s + A^T (y - A x) / (noise_std^2 + (annealing sigma)^2)

Moment matching is exact for Gaussian data; the other three are not.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_jax.continuous_score import continuous, takes_fractional_levels
from score_jax.network import as_pytree
from score_jax.noise import checked_sigmas, per_example, sigma_of, sum_per_example
from score_jax.operators import Operator, adjoint
from score_jax.solvers import conjugate_residuals
from score_jax.typing import AnyLevels, Array, Batch, JaxBatch, Scalar, ScoreFn, Sigmas

METHODS = ("moment_matching", "pseudo_inverse", "dps", "annealed")


def posterior_score(
    score_fn: ScoreFn,
    y: Any,
    operator: Operator,
    noise_std: Scalar,
    sigmas: Sigmas,
    *,
    method: str = "moment_matching",
    num_iterations: int = 60,
    tolerance: Scalar = 0.02,
    variance: Scalar = 1.0,
    zeta: Scalar = 1.0,
    annealing: Scalar = 1.0,
) -> ScoreFn:
    """The score of x given y = A x + noise_std z, as a score function for any sampler.

    Args:
        score_fn: The score of the prior at every level, in 1/unit of `x`.
        y: Measurements [batch, *measurement], one per chain, or [1, *measurement] for all chains.
            With None the result is (x, level, y) -> score, and the measurements may be the
            `condition` of `sampling.sample`.
        operator: A, a linear function [batch, *shape] -> [batch, *measurement] of each example by
            itself: one of `operators`, or any linear JAX function.
        noise_std: Standard deviation of the noise of y, in its unit; above 0.
        sigmas: Noise levels of `score_fn`, decreasing.
        method: One of METHODS; the formulas are at the top of this module. "moment_matching" takes
            one forward derivative of the score per iteration and one more; "pseudo_inverse" and
            "dps" take one backward derivative; "annealed" takes none, and is meant for
            `annealed_langevin`, where its error vanishes with sigma.
        num_iterations: Largest number of iterations of conjugate residuals (conjugate gradients
            that minimise the residual), for "moment_matching" and "pseudo_inverse"; those of the
            latter do not evaluate the score. Exact scores of smooth data need 10 to 60; for a
            network, whose Jacobian is approximate itself, 3 to 6 do as well.
        tolerance: Iterations end where the residual of the linear system, per measurement, is
            below tolerance (noise_std^2 + tolerance^2 sigma^2 |A|^2)^(1/2). At sigma = 0 this
            bounds the error of the posterior mean in posterior standard deviations.
        variance: v of "pseudo_inverse", approximately the variance of an entry of x.
        zeta: Weight of "dps". The paper's steps change x by a multiple of grad |y - A D(x)|; here
            it is divided by sigma, so that a step proportional to sigma^2 changes x by a multiple
            of sigma, and multiplied by the root of the number M of measurements.
        annealing: Noise of "annealed" in units of sigma. 1 is exact for A A^T = I if x_0 was
            uniform; 0 is the likelihood of x itself.

    Returns:
        (x, level) -> score, a pytree of its arrays. It takes floating-point levels as in
        `noise.sigma_at`: if `score_fn` does not, the score between two levels is that of
        `continuous_score.continuous`.

    Raises:
        ValueError: If method is unknown, noise_std or another number is out of range, or sigmas do
            not decrease; when applied, if x, y and the operator do not fit each other.

    Reference: Rozet et al. (2024), "Learning diffusion priors from observations by expectation
        maximization" (moment matching); Song et al. (2023), "Pseudoinverse-guided diffusion models
        for inverse problems"; Chung et al. (2023), "Diffusion posterior sampling for general noisy
        inverse problems", Algorithm 1; Jalal et al. (2021), "Robust compressed sensing MRI with
        deep generative priors" (annealed).

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> first = sj.mask(jnp.array([True, False]))
        >>> posterior = sj.posterior_score(score_fn, jnp.array([[0.7]]), first, 0.1, sigmas)
        >>> posterior(jnp.zeros((1, 2)), jnp.array([4])).shape
        (1, 2)
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)}")
    if num_iterations < 1:
        raise ValueError(f"num_iterations={num_iterations} must be at least 1")
    _check("noise_std", noise_std, noise_std > 0, "give exact data a small one")
    _check("tolerance", tolerance, tolerance >= 0, "0 takes all iterations")
    _check("variance", variance, variance > 0, "it is the variance of the data")
    _check("zeta", zeta, zeta >= 0, "0 disables the guidance")
    _check("annealing", annealing, annealing >= 0, "0 is the likelihood without annealing")
    return jax.tree_util.Partial(
        _PosteriorScore(method, num_iterations),
        as_pytree(score_fn),
        as_pytree(operator),
        jnp.asarray(noise_std),
        jnp.asarray(checked_sigmas(sigmas)),
        jnp.asarray(tolerance),
        jnp.asarray({"pseudo_inverse": variance, "dps": zeta}.get(method, annealing)),
        **({} if y is None else {"y": jnp.asarray(y)}),
    )


def _check(name: str, value: Any, condition: Any, advice: str) -> None:
    """Raises a ValueError for a concrete number that is not finite or out of its range."""
    if isinstance(value, jax.core.Tracer) or (bool(condition) and math.isfinite(value)):
        return
    bound = "above 0" if name in ("noise_std", "variance") else "0 or above"
    raise ValueError(f"{name}={value} must be {bound} and finite: {advice}")


@dataclasses.dataclass(frozen=True)
class _PosteriorScore:
    """The function behind `posterior_score`; equal for equal settings."""

    method: str
    num_iterations: int

    def __call__(
        self,
        score_fn: ScoreFn,
        operator: Operator,
        noise_std: Array,
        sigmas: Array,
        tolerance: Array,
        setting: Array,
        x: Batch,
        level: AnyLevels,
        y: Any = None,
    ) -> JaxBatch:
        # Compute in float32 or wider, whatever the dtype of the chains.
        wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        problem = _Problem(
            score=_score_at(score_fn, level, sigmas),
            sigma=sigma_of(level, sigmas, wide).astype(wide.dtype),
            operator=operator,
            adjoint=adjoint(operator, wide),
            y=_measurements(y, operator, wide),
            noise_variance=(noise_std**2).astype(wide.dtype),
            setting=setting.astype(wide.dtype),
            tolerance=tolerance.astype(wide.dtype),
            num_iterations=self.num_iterations,
        )
        return _FORMULAS[self.method](problem, wide).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The arguments of the formulas of the methods, at one level of each chain.

    Attributes:
        score: x -> score of the prior.
        sigma: [batch, 1, ..., 1].
        operator: A.
        adjoint: A^T.
        y: Measurements [batch, *measurement].
        noise_variance: noise_std^2.
        setting: The number that belongs to the method.
        tolerance: Tolerance of conjugate residuals.
        num_iterations: Largest number of their iterations.
    """

    score: Callable[[Array], Array]
    sigma: Array
    operator: Operator
    adjoint: Operator
    y: Array
    noise_variance: Array
    setting: Array
    tolerance: Array
    num_iterations: int

    def scaled(self, factor: Array, y: Array) -> Array:
        """`factor` [batch, 1, ..., 1] times `y`, whose number of axes may be another."""
        return per_example(factor.reshape(factor.shape[0]), y) * y


def _score_at(score_fn: ScoreFn, level: AnyLevels, sigmas: Array) -> Callable[[Array], Array]:
    """x -> score at these levels, also between the levels of a function of whole levels."""

    def score(x):
        fractional = jnp.issubdtype(jnp.asarray(level).dtype, jnp.floating)
        if fractional and not takes_fractional_levels(score_fn, x):
            sigma = sigma_of(level, sigmas, x).reshape(x.shape[0])
            return continuous(score_fn, sigmas, fractional=False)(x, sigma)
        return score_fn(x, level)

    return score


def _measurements(y: Any, operator: Operator, x: Array) -> Array:
    """`y` as [batch, *measurement], in the dtype of x."""
    if y is None:
        raise ValueError("y is missing: give it to posterior_score, or as the third argument here")
    measured = jax.eval_shape(operator, jax.ShapeDtypeStruct(x.shape, x.dtype)).shape
    if jnp.shape(y)[1:] != measured[1:] or jnp.shape(y)[0] not in (1, x.shape[0]):
        raise ValueError(
            f"y is {list(jnp.shape(y))}, but the operator maps x {list(x.shape)} to "
            f"{list(measured)}: y needs that shape, or 1 as its first axis"
        )
    return jnp.broadcast_to(y, measured).astype(x.dtype)


def _moment_matching(problem: _Problem, x: Array) -> Array:
    """Takes forward derivatives only: E[x_0 | x, y] = D + V A^T u, with V = sigma^2 J.

    The Jacobian of a network is not quite symmetric and may have negative eigenvalues. The
    safeguards of `conjugate_residuals` keep the solution bounded then: its residual never grows,
    and an example stops where the variance along the residual would be negative.
    """
    score, slope = jax.linearize(problem.score, x)
    squares = problem.sigma**2
    residual = problem.y - problem.operator(x + squares * score)

    def jacobian(v):
        return v + squares * slope(v)

    def covariance(u):
        return problem.scaled(squares, problem.operator(jacobian(problem.adjoint(u))))

    solution = _solved(problem, covariance, residual)
    return score + jacobian(problem.adjoint(solution))


def _solved(problem: _Problem, covariance: Operator, residual: Array) -> Array:
    """Solves the system of the covariance of y - A D(x), within the tolerance of the problem.

    A residual e of the system shifts the posterior mean by at most |e| / noise_std posterior
    standard deviations. The chains forget shifts that are small against sigma.
    """
    unit = problem.adjoint(residual)
    scale = sum_per_example(unit**2) / jnp.maximum(sum_per_example(residual**2), 1e-30)
    noise = problem.noise_variance + (problem.tolerance * problem.sigma.reshape(-1)) ** 2 * scale
    size = math.prod(residual.shape[1:])
    return conjugate_residuals(
        covariance,
        residual,
        problem.num_iterations,
        shift=problem.noise_variance,
        tolerance=problem.tolerance * jnp.sqrt(size * noise),
    )


def _pseudo_inverse(problem: _Problem, x: Array) -> Array:
    score, residual, pull = _denoised(problem, x)
    squares, variance = problem.sigma**2, problem.setting
    spread = squares * variance / (squares + variance)

    def covariance(u):
        return problem.scaled(spread, problem.operator(problem.adjoint(u)))

    solution = _solved(problem, covariance, residual)
    return score + pull(problem.adjoint(solution))


def _dps(problem: _Problem, x: Array) -> Array:
    score, residual, pull = _denoised(problem, x)
    norm = jnp.sqrt(sum_per_example(residual**2))
    size = math.prod(residual.shape[1:])
    weight = problem.setting * jnp.sqrt(float(size)) / jnp.maximum(norm, 1e-12)
    return score + per_example(weight, x) / problem.sigma * pull(problem.adjoint(residual))


def _annealed(problem: _Problem, x: Array) -> Array:
    gradient = problem.adjoint(problem.y - problem.operator(x))
    spread = problem.noise_variance + (problem.setting * problem.sigma) ** 2
    return problem.score(x) + gradient / spread


_FORMULAS = {
    "moment_matching": _moment_matching,
    "pseudo_inverse": _pseudo_inverse,
    "dps": _dps,
    "annealed": _annealed,
}


def _denoised(problem: _Problem, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
    """The score, the residual y - A D(x), and v -> J^T v."""
    score, transposed = jax.vjp(problem.score, x)
    squares = problem.sigma**2
    residual = problem.y - problem.operator(x + squares * score)
    return score, residual, lambda v: v + transposed(squares * v)[0]


def likelihood_score(
    score_fn: ScoreFn,
    log_likelihood: Callable[..., Array],
    sigmas: Sigmas,
    *,
    weight: Scalar = 1.0,
) -> ScoreFn:
    """The score of x given data of any differentiable log likelihood, evaluated at the denoised x.

        s(x) + weight grad log p(data | D(x)),   D(x) = x + sigma^2 s(x)

    It takes one backward derivative of the score. As the uncertainty of D(x) is neglected, the
    likelihood should be broad where sigma is large; `posterior_score` accounts for it.

    Args:
        score_fn: The score of the prior at every level, in 1/unit of `x`.
        log_likelihood: Clean data [batch, *shape] -> log likelihood [batch]. Arguments of the
            result beyond (x, level) become further arguments of it.
        sigmas: Noise levels of `score_fn`, decreasing.
        weight: Weight of the likelihood; 0 disables it.

    Returns:
        (x, level, *condition) -> score, a pytree of its arrays.

    Raises:
        ValueError: If weight is negative or sigmas do not decrease; when applied, if
            log_likelihood does not return one number per example.

    Reference: Chung et al. (2023), "Diffusion posterior sampling for general noisy inverse
        problems", theorem 1.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> near_one = lambda x: -jnp.sum((x - 1.0) ** 2, axis=1)
        >>> posterior = sj.likelihood_score(score_fn, near_one, sigmas)
        >>> posterior(jnp.zeros((1, 2)), jnp.array([4])).shape
        (1, 2)
    """
    _check("weight", weight, weight >= 0, "0 disables the likelihood")
    return jax.tree_util.Partial(
        _likelihood_score,
        as_pytree(score_fn),
        as_pytree(log_likelihood),
        jnp.asarray(checked_sigmas(sigmas)),
        jnp.asarray(weight),
    )


def _likelihood_score(
    score_fn: ScoreFn,
    log_likelihood: Callable[..., Array],
    sigmas: Array,
    weight: Array,
    x: Batch,
    level: AnyLevels,
    *condition: Any,
) -> JaxBatch:
    x = jnp.asarray(x)
    score_at = _score_at(score_fn, level, sigmas)

    def total(x):
        score = score_at(x)
        denoised = x + (sigma_of(level, sigmas, x) ** 2).astype(x.dtype) * score
        values = log_likelihood(denoised, *condition)
        if jnp.shape(values) != x.shape[:1]:
            raise ValueError(
                f"log_likelihood returned {list(jnp.shape(values))} for x {list(x.shape)}, but "
                f"must return one number per example, [{x.shape[0]}]"
            )
        return jnp.sum(values), score

    gradient, score = jax.grad(total, has_aux=True)(x)
    return (score + weight * gradient).astype(x.dtype)


def independent_sources(score_fn: ScoreFn) -> ScoreFn:
    """The score of several independent sources of one prior, for `operators.sum_of_sources`.

    Args:
        score_fn: The score of one source, (x [batch, *shape], level) -> score.

    Returns:
        (x [batch, num, *shape], level [batch]) -> score, a pytree of its arrays.

    Reference: Jayaram & Thickstun (2020), "Source separation with deep generative priors".

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> both = sj.independent_sources(score_fn)
        >>> both(jnp.ones((1, 3, 2)), jnp.array([0])).shape
        (1, 3, 2)
    """
    return jax.tree_util.Partial(_independent_sources, as_pytree(score_fn))


def _independent_sources(score_fn: ScoreFn, x: Batch, level: AnyLevels) -> JaxBatch:
    batch, num, *shape = x.shape
    score = score_fn(x.reshape(batch * num, *shape), jnp.repeat(level, num))
    return score.reshape(x.shape)
