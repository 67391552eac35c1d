"""Distances between samples and real examples, in a space of features.

    FD = |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))            Frechet distance of fitted Gaussians
    KD = E k(x, x~) + E k(y, y~) - 2 E k(x, y)               squared MMD, k(x, y) = (x.y / d + 1)^3
    IS = exp E KL(p(class | x) || p(class))                  Inception score

All of them take arrays of features or of class probabilities, from any function of images, and
compute in float64. They run on the host: nothing here is differentiated.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from score_jax.typing import Float, Int

BLOCK_BYTES = 100_000_000
"""Memory for one block of a matrix of kernels or distances."""

CHUNK = 4096
"""Examples whose moments are computed at once."""


class Moments(NamedTuple):
    """Mean and covariance of features.

    Attributes:
        count: Number of examples.
        mean: [dimensions].
        covariance: Unbiased, normalised by count - 1; [dimensions, dimensions].
    """

    count: int  # type: ignore[assignment]  # Hides the method of tuples.
    mean: np.ndarray
    covariance: np.ndarray


class Estimate(NamedTuple):
    """A metric and its standard error; the error is None where no estimate is known."""

    value: float
    error: float | None


class Outputs(NamedTuple):
    """Features of a set of examples, and class probabilities if the features come with them.

    Attributes:
        features: [examples, dimensions].
        probabilities: [examples, classes], or None.

    Example:
        >>> sj.Outputs(np.zeros((100, 4))).features.shape
        (100, 4)
    """

    features: np.ndarray
    probabilities: np.ndarray | None = None


def moments(batches: Iterable[np.ndarray]) -> Moments:
    """Mean and covariance of features that come in batches, accumulated in float64.

    Args:
        batches: Arrays [batch, dimensions]; one array of all features is a list of one batch.

    Raises:
        ValueError: If there are fewer than two examples, or one is not finite.

    Reference: Chan, Golub & LeVeque (1983), for merging the moments of two sets.

    Example:
        >>> found = sj.moments([np.zeros((2, 3)), np.ones((2, 3))])
        >>> found.count, found.mean.tolist()
        (4, [0.5, 0.5, 0.5])
    """
    count = 0
    mean: Any = 0.0
    scatter: Any = 0.0
    # Large batches in pieces, so that float64 copies stay small.
    pieces = (batch[i : i + CHUNK] for batch in batches for i in range(0, len(batch), CHUNK))
    for piece in pieces:
        x = np.asarray(piece, np.float64)
        if not np.isfinite(x).all():
            raise ValueError("features must be finite: check the images and the network")
        # Centre each batch first, so that large means cost no digits.
        own_mean = x.mean(axis=0)
        centred = x - own_mean
        delta = own_mean - mean
        total = count + len(x)
        between = np.multiply.outer(delta, delta) * (count * len(x) / total)
        scatter = scatter + centred.T @ centred + between
        mean = mean + delta * len(x) / total
        count = total
    if count < 2:
        raise ValueError(f"moments need two examples or more, got {count}")
    return Moments(count, mean, scatter / (count - 1))


def _some(x: np.ndarray, largest: int, seed: int) -> np.ndarray:
    """At most `largest` examples, chosen at random: they can be sorted by class."""
    if len(x) <= largest:
        return x
    return x[np.random.default_rng(seed).permutation(len(x))[:largest]]


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance between two Gaussians; FID if the features are Inception's.

    Its bias is positive and falls like 1 / count, so compare sets of one size only.

    Reference: Heusel et al. (2017), equation 6.

    Example:
        >>> a = sj.Moments(100, np.zeros(2), np.eye(2))
        >>> b = sj.Moments(100, np.array([3.0, 4.0]), np.eye(2))
        >>> round(sj.frechet_distance(a, b), 6)
        25.0
    """
    root = _square_root(a.covariance)
    return _frechet(a, b, root)


def _frechet(a: Moments, b: Moments, root_a: np.ndarray) -> float:
    """`frechet_distance`, with the square root of a's covariance."""
    # The eigenvalues of A B are those of the symmetric A^(1/2) B A^(1/2).
    eigenvalues = np.linalg.eigvalsh(root_a @ b.covariance @ root_a)
    trace_root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    means = np.sum((a.mean - b.mean) ** 2)
    return float(means + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_root)


def _distances_to(reference: Moments, features: np.ndarray) -> Callable[[np.ndarray], float]:
    """The function from indices of some rows of `features` to their Frechet distance."""
    root = _square_root(reference.covariance)
    if len(features) >= features.shape[1]:
        return lambda index: _frechet(reference, moments([features[index]]), root)
    x = np.asarray(features, np.float64)
    if not np.isfinite(x).all():
        raise ValueError("features must be finite: check the images and the network")
    projected = x @ root

    def distance(index: np.ndarray) -> float:
        # With fewer rows than dimensions, the nonzero eigenvalues are those of a Gram matrix.
        own, image = x[index], projected[index]
        mean = own.mean(axis=0)
        image = image - image.mean(axis=0)
        eigenvalues = np.linalg.eigvalsh(image @ image.T / (len(own) - 1))
        trace = np.sum((own - mean) ** 2) / (len(own) - 1)
        trace_root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
        means = np.sum((mean - reference.mean) ** 2)
        return float(means + trace + np.trace(reference.covariance) - 2 * trace_root)

    return distance


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def unlimited_frechet_distance(
    features: Float[np.ndarray, "examples dimensions"],
    reference: Moments,
    *,
    seed: int = 0,
    num_sizes: int = 15,
) -> Estimate:
    """The Frechet distance in the limit of infinitely many samples.

    Extrapolates distances of random subsets, of a quarter of the samples up to all, linearly in
    1 / size. The bias from the finite reference remains.

    Args:
        features: Features of the samples.
        reference: Moments of the reference.
        seed: Seed of the subsets.
        num_sizes: Number of sizes.

    Returns:
        The intercept and its standard error from the scatter about the line.

    Raises:
        ValueError: If there are fewer than 8 samples.

    Reference: Chong & Forsyth (2020), "Effectively unbiased FID and Inception score".

    Example:
        >>> rng = np.random.default_rng(0)
        >>> reference = sj.moments([rng.normal(size=(5000, 4))])
        >>> found = sj.unlimited_frechet_distance(rng.normal(size=(2000, 4)), reference)
        >>> abs(found.value) < 0.1
        True
    """
    if len(features) < 8:
        raise ValueError(f"the extrapolation needs at least 8 samples, got {len(features)}")
    return _extrapolated(_distances_to(reference, features), len(features), seed, num_sizes)


def _extrapolated(
    distance: Callable[[np.ndarray], float], number: int, seed: int, num_sizes: int = 15
) -> Estimate:
    """The limit of the distances of random subsets; `distance` takes indices of `number` rows."""
    rng = np.random.default_rng(seed)
    sizes = np.linspace(number // 4, number, num_sizes).astype(int)
    distances = [distance(rng.permutation(number)[:size]) for size in sizes]
    line = np.stack([np.ones(num_sizes), 1 / sizes], axis=1)
    solution, *_ = np.linalg.lstsq(line, np.asarray(distances), rcond=None)
    residual = distances - line @ solution
    variance = np.sum(residual**2) / (num_sizes - 2) * np.linalg.inv(line.T @ line)[0, 0]
    return Estimate(float(solution[0]), float(np.sqrt(variance)))


def kernel_distance(
    x: Float[np.ndarray, "examples dimensions"], y: Float[np.ndarray, "others dimensions"]
) -> float:
    """Unbiased estimate of the squared MMD with the cubic kernel; KID for Inception's features.

    It is 0 on average for equal distributions, and can be negative.

    Raises:
        ValueError: If a set has fewer than two examples.

    Reference: Binkowski et al. (2018), "Demystifying MMD GANs", section 3.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=(200, 4)), rng.normal(size=(200, 4))
        >>> abs(sj.kernel_distance(x, y)) < 0.1
        True
    """
    ones = np.ones((1, len(x)))
    return float(_kernel_distances(x, y, ones)[0])


def _kernel_distances(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`kernel_distance` for resamples of `x`, which hold each example `counts` times.

    Pairs of an example with itself are left out, so that duplicates do not bias the estimate.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"the kernel distance needs two examples or more, got {len(x)}, {len(y)}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    own, cross, other = np.zeros(len(counts)), np.zeros(len(counts)), 0.0
    size = max(1, BLOCK_BYTES // (8 * max(len(x), len(y))))
    for first in range(0, len(x), size):
        block = slice(first, first + size)
        kernel = _cubic(x[block], x)
        kernel[np.arange(len(kernel)), first + np.arange(len(kernel))] = 0
        own += np.sum(counts[:, block] * (counts @ kernel.T), axis=1)
        cross += counts[:, block] @ _cubic(x[block], y).mean(axis=1)
    for first in range(0, len(y), size):
        kernel = _cubic(y[first : first + size], y)
        other += kernel.sum() - np.trace(kernel, first)
    total = counts.sum(axis=1)
    pairs = total**2 - np.sum(counts**2, axis=1)
    return own / pairs - 2 * cross / total + other / (len(y) * (len(y) - 1))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def inception_score(probabilities: Float[np.ndarray, "examples classes"]) -> float:
    """exp of the mean divergence of class probabilities from their average.

    Between 1 and the number of classes. Published scores are means over ten groups of samples.

    Reference: Salimans et al. (2016), section 4.

    Example:
        >>> sure_and_even = np.eye(10)
        >>> round(sj.inception_score(sure_and_even), 3)
        10.0
    """
    return float(_inception_scores(probabilities, np.ones((1, len(probabilities))))[0])


def _inception_scores(probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`inception_score` for resamples that hold each example `counts` times."""
    p = np.asarray(probabilities, np.float64)
    weights = counts / counts.sum(axis=1, keepdims=True)
    average = weights @ p
    negative_entropy = np.sum(_xlogx(p), axis=1)
    return np.exp(weights @ negative_entropy - np.sum(_xlogx(average), axis=1))


def _xlogx(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.where(p > 0, p, 1))


class Coverings(NamedTuple):
    """Fractions of one set near the other.

    Attributes:
        precision: Share of samples inside the real examples' neighbourhoods.
        recall: Share of real examples inside the samples' neighbourhoods.
        density: Mean number of the neighbourhoods that a sample lies in, over their size k.
        coverage: Share of real examples with a sample in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverings(
    x: Float[np.ndarray, "examples dimensions"],
    reference: Float[np.ndarray, "others dimensions"],
    *,
    manifold_k: int = 3,
    density_k: int = 5,
) -> Coverings:
    """Precision, recall, density and coverage.

    The neighbourhood of an example is the ball that reaches its k-th nearest neighbour among its
    own set.

    Args:
        x: Features of the samples.
        reference: Features of the real examples.
        manifold_k: k of precision and recall.
        density_k: k of density and coverage.

    Raises:
        ValueError: If a set has no more than k examples.

    Reference: Kynkaanniemi et al. (2019), "Improved precision and recall metric for assessing
        generative models"; Naeem et al. (2020), "Reliable fidelity and diversity metrics for
        generative models".

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> sj.coverings(x, x).precision
        1.0
    """
    table = _coverings(x, reference, np.ones((1, len(x))), manifold_k, density_k)
    return Coverings(*(float(np.ravel(values)[0]) for values in table))


def _coverings(
    x: np.ndarray, reference: np.ndarray, counts: np.ndarray, manifold_k: int, density_k: int
) -> Coverings:
    """`coverings` for resamples that hold each sample `counts` times, with the radii of all."""
    largest = max(manifold_k, density_k)
    if min(len(x), len(reference)) <= largest:
        raise ValueError(
            f"neighbourhoods of {largest} examples need sets of more than {largest} examples, got "
            f"{len(x)} and {len(reference)}"
        )
    x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
    of_x = _radii(x, (manifold_k,))[0]
    of_reference = _radii(reference, (manifold_k, density_k))

    inside, density = np.zeros(len(x)), np.zeros(len(x))
    recalled, covered = [], []
    present = (counts > 0).astype(np.float32)
    size = max(1, BLOCK_BYTES // (8 * len(x)))
    for first in range(0, len(reference), size):
        block = slice(first, first + size)
        squares = _squared_distances(reference[block], x)
        inside = np.maximum(inside, (squares <= of_reference[0][block, None]).any(axis=0))
        balls = squares <= of_reference[1][block, None]
        density += balls.sum(axis=0)
        # A resample lacks some samples, and with them their neighbourhoods.
        covered.append(present @ balls.T.astype(np.float32) > 0)
        recalled.append(present @ (squares <= of_x[None]).T.astype(np.float32) > 0)
    total = counts.sum(axis=1)
    return Coverings(
        precision=counts @ inside / total,
        recall=np.concatenate(recalled, axis=1).mean(axis=1),
        density=counts @ density / total / density_k,
        coverage=np.concatenate(covered, axis=1).mean(axis=1),
    )


def _radii(x: np.ndarray, numbers: tuple[int, ...]) -> list[np.ndarray]:
    """Squared distances of each example to its k-th nearest neighbours, for several k."""
    radii = np.empty((len(numbers), len(x)))
    size = max(1, BLOCK_BYTES // (8 * len(x)))
    for first in range(0, len(x), size):
        squares = _squared_distances(x[first : first + size], x)
        # The nearest of all is the example itself.
        squares[np.arange(len(squares)), first + np.arange(len(squares))] = 0
        nearest = np.partition(squares, numbers, axis=1)
        radii[:, first : first + size] = nearest[:, list(numbers)].T
    return list(radii)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None] - 2 * x @ y.T
    return np.maximum(squares, 0)


def resample_counts(number: int, num_resamples: int, seed: int) -> Int[np.ndarray, "resamples n"]:
    """Number of draws of each of `number` examples in bootstrap resamples of the same size."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(number, np.full(number, 1 / number), num_resamples)


def sample_metrics(
    samples: Outputs,
    reference: Outputs | None,
    reference_moments: Moments | None = None,
    *,
    num_resamples: int = 100,
    largest: int = 10_000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """All metrics of samples against a reference, with bootstrap errors.

    The bootstrap resamples the samples; the reference is taken as it is.

    Args:
        samples: Features of the samples, and class probabilities if there are any.
        reference: Those of the reference; None if only its moments are known.
        reference_moments: Moments of the reference; None computes them from its features.
        num_resamples: Number of resamples; a tenth of it for the Frechet distance of more than 512
            features.
        largest: Largest number of samples and of reference examples for the kernel distance and
            for neighbourhoods, whose cost grows with their product.
        seed: Seed of the resamples and subsets.

    Returns:
        Name -> estimate: frechet_distance, unlimited_frechet_distance, kernel_distance,
        precision, recall, density, coverage, inception_score; without the features of the
        reference the Frechet distances alone, and without probabilities no inception_score.

    Raises:
        ValueError: If features are not [examples, dimensions], there are too few examples, or
            neither features nor moments of a reference.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, y = (sj.Outputs(rng.normal(size=(200, 4))) for _ in range(2))
        >>> found = sj.sample_metrics(x, y, num_resamples=10)
        >>> found["frechet_distance"].value < 1
        True
    """
    x = samples.features
    for outputs in (samples, reference):
        if outputs is not None and np.ndim(outputs.features) != 2:
            raise ValueError(
                f"features are {list(np.shape(outputs.features))}, but need [examples, "
                "dimensions]: flat_pixels makes features of images"
            )
    if reference_moments is None:
        if reference is None:
            raise ValueError("give the features of a reference, or its moments")
        reference_moments = moments([reference.features])
    if x.shape[1] != len(reference_moments.mean):
        raise ValueError(
            f"the samples have {x.shape[1]} features, but the reference has "
            f"{len(reference_moments.mean)}: compute both with the same network"
        )

    found = {}
    few = num_resamples if x.shape[1] <= 512 else max(2, num_resamples // 10)
    distance, every = _distances_to(reference_moments, x), np.arange(len(x))
    distances = [distance(np.repeat(every, n)) for n in resample_counts(len(x), few, seed)]
    value = distance(every)
    found["frechet_distance"] = Estimate(value, float(np.std(distances, ddof=1)))
    if len(x) >= 8:
        found["unlimited_frechet_distance"] = _extrapolated(distance, len(x), seed)

    def add(names: tuple[str, ...], function: Callable, number: int) -> None:
        # Row 0 is the sample itself, the others are resamples.
        resampled = resample_counts(number, num_resamples, seed)
        table = function(np.concatenate([np.ones((1, number), int), resampled]))
        for name, values in zip(names, table, strict=True):
            found[name] = Estimate(float(values[0]), float(np.std(values[1:], ddof=1)))

    if reference is not None:
        near, real = _some(x, largest, seed), _some(reference.features, largest, seed)
        add(("kernel_distance",), lambda c: [_kernel_distances(near, real, c)], len(near))
        add(Coverings._fields, lambda c: _coverings(near, real, c, 3, 5), len(near))
    if samples.probabilities is not None:
        p = samples.probabilities
        add(("inception_score",), lambda c: [_inception_scores(p, c)], len(p))
    return found
