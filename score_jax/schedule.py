"""Step sizes and noise levels that follow from the data: techniques 1, 2 and 4 of NCSNv2.

Reference: Song & Ermon (2020), "Improved techniques for training score-based generative models", arXiv 2006.09011.
"""

import numpy as np


def step_size_for(sigmas, num_steps: int) -> float:
    """Technique 4: the step size that keeps the spread of chains in step with the noise levels.

    With g the ratio of successive sigmas and e = step_size / sigma_L^2, chains that arrive at a level with the
    spread of the level before leave it with the variance, in units of the level's own,
        (1 - e)^(2T) (g^2 - v) + v,   v = 2 e / (1 - (1 - e)^2);
    the step size returned makes this as close to 1 as any in (0, sigma_L^2).

    Args:
        sigmas: Noise levels, decreasing, in a geometric sequence; two or more.
        num_steps: Steps per level, T.
    Returns:
        The step size at the last level, in the square of the unit of `sigmas`.
    Raises:
        ValueError: If there are fewer than two sigmas, or num_steps is below 1.
    Reference: equation 5 and technique 4 of the paper above.
    """
    sigmas = np.asarray(sigmas, np.float64)
    if len(sigmas) < 2:
        raise ValueError(f"technique 4 needs two or more noise levels, got {len(sigmas)}: set the step size by hand")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    ratio = (sigmas[0] / sigmas[-1]) ** (1 / (len(sigmas) - 1))

    def excess(e):
        v = 2 * e / (1 - (1 - e) ** 2)
        return (1 - e) ** (2 * num_steps) * (ratio**2 - v) + v - 1

    candidates = np.geomspace(1e-6, 1, 20001)[:-1]
    e = candidates[np.argmin(np.abs(excess(candidates)))]
    return float(e * sigmas[-1] ** 2)
