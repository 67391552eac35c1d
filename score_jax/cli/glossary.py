"""Definitions of the numbers in a report: one entry per quantity.

Settings of the config are defined in `table.SETTINGS`; `define` finds both.
"""

from typing import NamedTuple

from score_jax.cli.table import SETTINGS

EXACT = "exact"
LOWER, HIGHER, FLOOR = "lower", "higher", "floor"
BETTER = {
    LOWER: "Lower is better.",
    HIGHER: "Higher is better.",
    FLOOR: "The closer to the floor, the better.",
    "": "",
}


class Term(NamedTuple):
    """The definition of a quantity.

    Attributes:
        name: Its name.
        definition: One or two sentences.
        unit: Its unit; "" for a number without one.
        better: LOWER, HIGHER, FLOOR, or "" where no direction is better.
        error: The meaning of its error; EXACT if it has none.
    """

    name: str
    definition: str
    unit: str = ""
    better: str = ""
    error: str = EXACT


OVER_EXAMPLES = "standard error over held-out examples"
BOOTSTRAP = "bootstrap standard error over samples"
LINE = "standard error of the extrapolated line; at least, since its points share samples"
ORDER = "standard error, from the order statistics around the median"
OVER_CHAINS = "standard error over chains"
UNIT_OF_DATA = "unit of the data"
FEATURES = "in the feature space of the classifier that the tool trains on the labelled data"


METRICS = {
    "fid": Term(
        "FID",
        "Fréchet distance between Gaussians fitted to the Inception features of samples and "
        "reference images (Heusel et al. 2017). Biased upwards for few samples.",
        "squared features",
        LOWER,
        BOOTSTRAP,
    ),
    "fid_unlimited": Term(
        "FID, unlimited samples",
        "FID extrapolated to infinitely many samples (Chong & Forsyth 2020).",
        "squared features",
        LOWER,
        LINE,
    ),
    "kid": Term(
        "KID",
        "Unbiased squared maximum mean discrepancy of Inception features with a cubic kernel "
        "(Bińkowski et al. 2018). Its expectation is 0 for equal distributions; it can be "
        "negative.",
        "squared discrepancy",
        LOWER,
        BOOTSTRAP,
    ),
    "inception_score": Term(
        "Inception score",
        "Exponential of the mean KL divergence between the class probabilities of a sample and "
        "those of all samples (Salimans et al. 2016): between 1 and the number of classes.",
        "effective classes",
        HIGHER,
        BOOTSTRAP,
    ),
    "fd_classifier": Term(
        "Fréchet distance, own classifier",
        f"Fréchet distance between samples and reference images {FEATURES}. Not a published FID: "
        "compare it with its floor and with other runs on the same data only.",
        "squared features",
        LOWER,
        BOOTSTRAP,
    ),
    "fd_classifier_unlimited": Term(
        "Fréchet distance, own classifier, unlimited samples",
        "fd_classifier extrapolated to infinitely many samples, which removes the bias of few "
        "samples.",
        "squared features",
        LOWER,
        LINE,
    ),
    "kd_classifier": Term(
        "Kernel distance, own classifier",
        f"Unbiased squared maximum mean discrepancy with a cubic kernel {FEATURES}. Its "
        "expectation is 0 for equal distributions; it can be negative.",
        "squared discrepancy",
        LOWER,
        BOOTSTRAP,
    ),
    "is_classifier": Term(
        "Classifier score",
        "The inception score with the classifier that the tool trains on the labelled data: "
        "between 1 and the number of classes.",
        "effective classes",
        HIGHER,
        BOOTSTRAP,
    ),
    "fd_pixels": Term(
        "Fréchet distance, pixels",
        "Fréchet distance between Gaussians fitted to the values of samples and reference "
        "examples themselves.",
        "squared unit of the data",
        LOWER,
        BOOTSTRAP,
    ),
    "fd_features": Term(
        "Fréchet distance, own features",
        "Fréchet distance between Gaussians fitted to samples and reference images in the "
        "feature space of the function that was given.",
        "squared features",
        LOWER,
        BOOTSTRAP,
    ),
    **{
        f"fd_{features}_unlimited": Term(
            f"Fréchet distance, {name}, unlimited samples",
            f"fd_{features} extrapolated to infinitely many samples, which removes the bias of "
            "few samples.",
            unit,
            LOWER,
            LINE,
        )
        for features, name, unit in (
            ("pixels", "pixels", "squared unit of the data"),
            ("features", "own features", "squared features"),
        )
    },
    **{
        f"kd_{features}": Term(
            f"Kernel distance, {name}",
            f"Unbiased squared maximum mean discrepancy of {name} with a cubic kernel. Its "
            "expectation is 0 for equal distributions; it can be negative.",
            "squared discrepancy",
            LOWER,
            BOOTSTRAP,
        )
        for features, name in (("pixels", "pixels"), ("features", "own features"))
    },
    "precision": Term(
        "Precision",
        "Share of samples that lie within the neighbourhood of some reference image in feature "
        "space (Kynkäänniemi et al. 2019).",
        "fraction",
        HIGHER,
        BOOTSTRAP,
    ),
    "recall": Term(
        "Recall",
        "Share of reference images that lie within the neighbourhood of some sample in feature "
        "space (Kynkäänniemi et al. 2019).",
        "fraction",
        HIGHER,
        BOOTSTRAP,
    ),
    "density": Term(
        "Density",
        "Mean number of neighbourhoods of reference images that hold a sample in feature space, "
        "divided by the number of neighbours; 1 for samples of the same distribution (Naeem et "
        "al. 2020).",
        "ratio",
        FLOOR,
        BOOTSTRAP,
    ),
    "coverage": Term(
        "Coverage",
        "Share of reference images whose neighbourhood in feature space holds a sample (Naeem et "
        "al. 2020).",
        "fraction",
        HIGHER,
        BOOTSTRAP,
    ),
    "metric": Term(
        "Metric",
        "A measure of the samples against the reference, as named in quality.json.",
        "",
        FLOOR,
        BOOTSTRAP,
    ),
    "floor": Term(
        "Floor",
        "The same metric with other real images instead of samples, as many as the samples if the "
        "data hold as many: the value of a perfect model.",
        "",
        "",
        "bootstrap standard error, where shown",
    ),
    "classifier_accuracy": Term(
        "Accuracy of the classifier",
        "Share of held-out images that the classifier behind the features labels correctly.",
        "fraction",
        HIGHER,
        "not estimated",
    ),
    "reference_number": Term("Reference images", "Number of images of the reference.", "images"),
    "floor_number": Term(
        "Images of the floor", "Number of real images that stand for samples.", "images"
    ),
    "seconds": Term("Time", "Time that it took.", "seconds", "", "not estimated; one measurement"),
}

LOSSES = {
    "train_loss": Term(
        "Training loss",
        "Mean of the objective over the batches since the entry before, with the parameters of "
        "each step; the sum over all dimensions.",
        "sum over dimensions",
        LOWER,
        "not estimated; the scatter of neighbouring points shows it",
    ),
    "held_out_loss": Term(
        "Held-out loss",
        "Mean of the objective over held-out examples and all noise levels, with the averaged "
        "parameters; the sum over all dimensions. Its minimum is not 0.",
        "sum over dimensions",
        LOWER,
        OVER_EXAMPLES,
    ),
    "loss": Term(
        "Loss at one level",
        "Mean of the objective at one noise level over held-out examples, weighted by sigma "
        "squared; the sum over all dimensions. Its minimum is not 0.",
        "sum over dimensions",
        LOWER,
        OVER_EXAMPLES,
    ),
    "residual": Term(
        "Residual",
        "E|sigma s + z|^2 / D on held-out data: 1 for a score of 0, smaller the more of the noise "
        "the network predicts.",
        "variance of the noise",
        LOWER,
        OVER_EXAMPLES,
    ),
    "gaussian_residual": Term(
        "Residual of the best linear denoiser",
        "The residual of the exact score of a Gaussian with the mean and covariance of the "
        "training data. A trained network lies below it.",
        "variance of the noise",
        "",
        "not estimated",
    ),
    "slope": Term(
        "Slope",
        "Regression of -z / sigma on the score: 1 if the denoiser is a posterior mean; below 1 if "
        "the score is too large.",
        "ratio",
        "",
        OVER_EXAMPLES,
    ),
    "bias": Term(
        "Bias of the denoiser",
        "Root mean square over pixels of E[denoised - clean], corrected for noise: 0 for a "
        "posterior mean.",
        UNIT_OF_DATA,
        LOWER,
        OVER_EXAMPLES,
    ),
    "whiteness": Term(
        "Correlation of the residual",
        "Correlation of the residual sigma s + z between neighbouring pixels. Compare it between "
        "levels: a level that stands out is not trained like its neighbours.",
        "correlation",
        "",
        OVER_EXAMPLES,
    ),
}

CHAINS = {
    "score_norm": Term(
        "Norm of the score",
        "sigma |s| / sqrt(D), root mean square over chains. It is about 1 where noise dominates.",
        "1 / sqrt(D)",
        "",
        OVER_CHAINS,
    ),
    "score_norm_expected": Term(
        "Norm of the score of Gaussian data",
        "sigma |s| / sqrt(D) for a Gaussian of the data's covariance, perturbed at this level: a "
        "lower bound for other data. The upper bound is 1.",
        "1 / sqrt(D)",
    ),
    "step_to_noise": Term(
        "Step-to-noise ratio",
        "Size of the deterministic part of a step divided by that of its random part.",
        "ratio",
        "",
        OVER_CHAINS,
    ),
    "out_of_range": Term(
        "Out of range",
        "Share of pixels of the denoised state that lie outside [0, 1] by more than 0.1.",
        "fraction",
        LOWER,
        OVER_CHAINS,
    ),
    "spread": Term(
        "Spread",
        "Root mean square of the state around the mean value c of the data, divided by that of "
        "perturbed data, sqrt(E|x - c|^2 + D sigma^2).",
        "ratio",
        "",
        OVER_CHAINS,
    ),
    "spread_expected": Term(
        "Expected spread", "The spread of data perturbed at this level: 1.", "ratio"
    ),
}

SAMPLES = {
    "number": Term("Samples", "Number of samples.", "samples"),
    "shown": Term("Shown", "Number of samples in this report.", "samples"),
    "step": Term("Training step", "Training step of the parameters.", "steps"),
    "seed": Term("Seed", "Seed of all random numbers."),
    "examples": Term("Held-out examples", "Number of held-out examples.", "examples"),
    "warnings": Term(
        "Warnings",
        "Number of sentences in which diagnostics of the chains or calibration of the network "
        "find a figure far out.",
        "warnings",
        LOWER,
    ),
    "num_train": Term(
        "Training examples", "Number of training examples that were compared.", "examples"
    ),
    "level": Term("Noise level", "Index of the noise level; 0 is the largest sigma."),
    "sigma": Term(
        "Sigma", "Standard deviation of the noise at a noise level.", UNIT_OF_DATA, "", EXACT
    ),
    "frame": Term("Frame", "Position in the chain; the last frame is the sample.", "frames"),
    "sample": Term("Sample", "Index of the chain; it draws from (seed, index) alone."),
    "class": Term("Class", "Class of the image. That of a sample is the class it was drawn for."),
    "example": Term("Training example", "Index in the training split."),
    "distance": Term(
        "Distance",
        "Euclidean distance between two images, over all pixels and channels.",
        UNIT_OF_DATA,
        "",
        EXACT,
    ),
    "nearest_samples": Term(
        "Distance of samples",
        "Median over samples of the distance to the nearest training example.",
        UNIT_OF_DATA,
        FLOOR,
        ORDER,
    ),
    "nearest_held_out": Term(
        "Distance of held-out examples",
        "Median over held-out examples of the distance to the nearest training example: the "
        "yardstick for samples that are new.",
        UNIT_OF_DATA,
        "",
        ORDER,
    ),
    "near_share": Term(
        "Share of near samples",
        "Share of samples nearer to a training example than 95 % of held-out examples are. Its "
        "floor is 0.05, that of new images; a network that copies has a share near 1.",
        "fraction",
        FLOOR,
        "binomial standard error over the samples",
    ),
    "rank": Term(
        "Rank among held-out examples",
        "Share of held-out examples that are nearer to a training example than this sample is.",
        "fraction",
        "",
        "binomial standard error over held-out examples",
    ),
}

INVERSE = {
    "misfit": Term(
        "Data misfit",
        "Root mean square of |y - A x| / noise over measurements: 1 for samples of the exact "
        "posterior.",
        "noise",
        "",
        "standard error over images",
    ),
    "rmse": Term(
        "Error of the mean",
        "Root mean square difference between the mean of the completions and the original, over "
        "the restored or missing pixels.",
        UNIT_OF_DATA,
        LOWER,
        "standard error over images",
    ),
    "std": Term(
        "Standard deviation",
        "Root mean square standard deviation between completions of the same image, unbiased. "
        "With N completions of a correct posterior, the error of the mean is sqrt(1 + 1/N) times "
        "it.",
        UNIT_OF_DATA,
        "",
        "standard error over images",
    ),
    "images": Term("Images", "Number of images that were restored.", "images"),
    "completions": Term("Completions", "Number of completions of each image.", "completions"),
    "noise": Term(
        "Noise", "Standard deviation of the noise of the measurements.", UNIT_OF_DATA, "", EXACT
    ),
}

COMPARISON = {
    "total": Term(
        "Held-out objective",
        "Mean of the objective over the same held-out examples, levels and noise for all runs.",
        "sum over dimensions",
        LOWER,
        "standard error over examples and draws",
    ),
    "difference": Term(
        "Difference",
        "Mean of the paired difference, first run minus second: negative if the first is better.",
        "sum over dimensions",
        "",
        "standard error of the paired difference",
    ),
    "interval": Term(
        "Interval",
        "Confidence interval of the difference, corrected for the number of comparisons.",
        "sum over dimensions",
        "",
        "is itself the statement of the error",
    ),
    "p_value": Term(
        "p-value",
        "Probability of a paired difference at least as large if both runs are equally good, "
        "corrected for the number of comparisons.",
        "probability",
    ),
    "power_2_percent": Term(
        "Power",
        "Probability of finding a true difference of 2 % with these examples and draws.",
        "probability",
        HIGHER,
        "not estimated",
    ),
    "detectable_percent": Term(
        "Detectable difference",
        "Smallest true difference that is found with a probability of 80 %.",
        "%",
        LOWER,
        "not estimated",
    ),
    "confidence": Term("Confidence", "Confidence of all intervals together.", "probability"),
    "draws": Term("Draws", "Number of draws of the noise per example and level.", "draws"),
}

TERMS: dict[str, Term] = METRICS | LOSSES | CHAINS | SAMPLES | INVERSE | COMPARISON


def define(key: str) -> Term:
    """The definition of a quantity, or of a setting such as "config.noise.sigma_max".

    Raises:
        KeyError: If there is none.
    """
    if key.startswith("config."):
        setting = SETTINGS[key.removeprefix("config.")]
        return Term(setting.name, setting.meaning)
    return TERMS[key]
