"""Linear systems of the examples of a batch, each solved by itself.

(shift I + S) u = b,   S symmetric and positive semidefinite,   u and b [batch, *shape]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_jax.noise import per_example, sum_per_example
from score_jax.typing import Array, Batch, Float, JaxBatch, Scalar


def conjugate_residuals(
    matrix: Callable[[Array], Array],
    b: Batch,
    num_iterations: int,
    *,
    shift: Scalar = 0.0,
    tolerance: Scalar | Float[Array, "batch"] = 0.0,
) -> JaxBatch:
    """Approximate solutions u of (shift I + S) u = b by conjugate residuals from u = 0.

    Conjugate gradients in the form that minimises the norm of the residual at every iteration
    (MINRES). `jax.scipy.sparse.linalg.cg` would take the batch as one vector and mix its examples.

    S need not be quite symmetric or positive: with these step sizes no residual grows, whatever S
    is, and an example stops where its residual r has r^T S r < -shift / 2 |r|^2, which is
    impossible for a positive S.

    Args:
        matrix: u -> S u, linear, of each example by itself. Once all examples have stopped, it is
            not applied any more.
        b: Right sides, [batch, *shape].
        num_iterations: Largest number of products with S.
        shift: 0 or above.
        tolerance: An example stops once the norm of its residual b - (shift I + S) u is at most
            this, or 1e-6 of that of b; one number, or [batch].

    Reference: Saad (2003), "Iterative methods for sparse linear systems", sections 6.8 and 6.9.
    """

    def dot(a, c):
        return per_example(sum_per_example(a * c), b)

    start = dot(b, b)
    tolerance = jnp.broadcast_to(jnp.asarray(tolerance, b.dtype), b.shape[:1])
    enough = jnp.maximum(1e-12 * start, per_example(tolerance, b) ** 2)

    def iterate(carry):
        u, residual, direction, image, active = carry
        product = shift * residual + matrix(residual)
        curvature = dot(residual, product)
        active = active & (curvature > 0) & (curvature >= 0.5 * shift * dot(residual, residual))

        # The next direction is the residual, with an image orthogonal to that of the last one.
        scale = dot(image, image)
        turn = jnp.where(scale > 0, dot(product, image) / jnp.where(scale > 0, scale, 1), 0)
        direction, image = residual - turn * direction, product - turn * image

        # Step along it to the smallest residual.
        scale = dot(image, image)
        active = active & (scale > 0)
        size = jnp.where(active, dot(residual, image) / jnp.where(active, scale, 1), 0)
        u, residual = u + size * direction, residual - size * image
        return u, residual, direction, image, active & (dot(residual, residual) > enough)

    def step(carry, _):
        return jax.lax.cond(carry[-1].any(), iterate, lambda carry: carry, carry), None

    zero = jnp.zeros_like(b)
    carry = (zero, b, zero, zero, start > enough)
    return jax.lax.scan(step, carry, None, length=num_iterations)[0][0]
