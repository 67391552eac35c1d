"""The table of all settings of a config, and the values that each can have.

A setting is defined here and nowhere else. Validation, `--help`, the published configs and
docs/configs.md come from this table.
"""

import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

# Objects that a config can name, and where they are defined. Paths of the same form name others.
SOURCES = {
    "digits": "score_jax.data.sources:digits",
    "mixture": "score_jax.data.sources:mixture",
    "npz": "score_jax.data.sources:npz",
    "idx": "score_jax.data.sources:idx",
    "folder": "score_jax.data.files:folder",
    "zip": "score_jax.data.files:zipped",
    "tfds": "score_jax.data.prepared:tfds",
}
MODELS = {
    "ncsn": "score_jax.models.ncsn:NCSN",
    "ncsnv2": "score_jax.models.ncsnv2:NCSNv2",
    "unet": "score_jax.models.unet:UNet",
    "mlp": "score_jax.models.mlp:MLP",
}
LOSSES = {
    "dsm": "score_jax.losses.dsm:annealed_dsm",
    "ssm": "score_jax.losses.ssm:annealed_ssm",
    "implicit": "score_jax.losses.implicit:annealed_implicit",
    "ssm_clean": "score_jax.losses.ssm:ssm",
    "implicit_clean": "score_jax.losses.implicit:implicit",
}
LEVELS = {
    "uniform": "score_jax.noise:uniform_levels",
    "stratified": "score_jax.noise:stratified_levels",
    "normal": "score_jax.noise:normal_levels",
}
SAMPLERS = {
    "annealed": "score_jax.samplers.langevin:annealed_langevin",
    "consistent": "score_jax.samplers.consistent:consistent_annealed_sampling",
    "langevin": "score_jax.samplers.langevin:langevin_baseline",
    "ode": "score_jax.samplers.ode:probability_flow",
    "stochastic_heun": "score_jax.samplers.ode:stochastic_heun",
    "predictor_corrector": "score_jax.samplers.predictor_corrector:predictor_corrector",
    "ancestral": "score_jax.samplers.predictor_corrector:ancestral",
}
WHOLE_CHAIN = ("ode", "stochastic_heun", "predictor_corrector", "ancestral")
"""Samplers whose num_steps counts the steps of the whole chain, and which take no step size."""
NAMING = {
    "data": "data.source",
    "model": "model.name",
    "loss": "loss.name",
    "sampling": "sampling.method",
}
"""Section -> the setting that names its object. With a dotted path there, the section can hold
settings that are not in the table."""

REQUIRED = object()
LONGEST_TUPLE = 100
"""Number of integers in a setting that is a tuple."""
LONGEST_SHOWN = 100
"""Number of characters of a value in messages."""
MANY = 2**31 - 1
SMALLEST_FLOAT32 = 2.0**-126
CONTINUE, USE, NEVER = "continue", "use", "never"
FREE = {"loss": USE, "optim": USE, "training": CONTINUE, "sampling": CONTINUE}
"""Section -> when its settings can differ from those of a saved run: CONTINUE, also when training
is resumed; USE, when its network is only used. A section that is not listed: NEVER."""


class Setting(NamedTuple):
    """One setting of a config, or one flag of the command.

    Attributes:
        name: Dotted name, such as "optim.learning_rate".
        kind: int, float, bool, str, or tuple for a tuple of ints.
        default: The value published for NCSN on CIFAR-10.
        meaning: One sentence.
        low: Smallest allowed number.
        high: Largest allowed number.
        below: Upper bound that is not itself allowed.
        choices: The allowed values, if there are few.
        own: If True, a dotted path `package.module:name` is allowed besides the choices.
        optional: If True, None is allowed.
        networks: For a field of networks: network -> default. Empty for other settings.
        before: Its value in configs that were saved before it existed; REQUIRED if there are none.
        free: When it can differ from a saved run, if not as its section; see `FREE`.
    """

    name: str
    kind: type
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    own: bool = False
    optional: bool = False
    networks: Mapping[str, Any] = {}
    before: Any = REQUIRED
    free: str = ""


def _text(name: str, default: str | None, meaning: str, **more: Any) -> Setting:
    return Setting(name, str, default, meaning, **more)


def _switch(name: str, default: bool, meaning: str, **more: Any) -> Setting:
    return Setting(name, bool, default, meaning, **more)


def _choice(
    name: str, choices: tuple[str, ...], default: str, meaning: str, **more: Any
) -> Setting:
    return Setting(name, str, default, meaning, choices=choices, **more)


def _named(
    name: str, table: Mapping[str, str], default: str, meaning: str, **more: Any
) -> Setting:
    return Setting(name, str, default, meaning, choices=tuple(table), own=True, **more)


def _count(
    name: str, default: int | None, meaning: str, low: int = 1, high: int = MANY, **more: Any
) -> Setting:
    return Setting(name, int, default, meaning, low=low, high=high, **more)


def _number(
    name: str, default: float | None, meaning: str, low: float, high: float, **more: Any
) -> Setting:
    return Setting(name, float, default, meaning, low=low, high=high, **more)


def _fraction(name: str, default: float, meaning: str, **more: Any) -> Setting:
    return Setting(name, float, default, meaning, low=0, below=1, **more)


def _field(
    name: str, networks: Mapping[str, Any], kind: type, meaning: str, **more: Any
) -> Setting:
    default = next(iter(networks.values()))
    return Setting(f"model.{name}", kind, default, meaning, networks=networks, **more)


_TABLE = (
    _count("seed", 0, "Seed of all random numbers.", 0, 2**32 - 1, free=USE),
    # Data
    _named("data.source", SOURCES, "tfds", "Data set, or kind of files."),
    _text(
        "data.path",
        None,
        "File, folder or archives of the data; for tfds its data_dir, none for the usual one.",
        optional=True,
        free=CONTINUE,
    ),
    _text("data.name", "cifar10", "Name in tensorflow-datasets.", optional=True, before=None),
    _text("data.train_split", "train", "Split to train on.", before="train"),
    _text("data.held_out_split", "test", "Split for held-out losses.", before="test"),
    _count(
        "data.crop",
        None,
        "Size in pixels of a central square that is cut out first; none crops nothing.",
        high=65_536,
        optional=True,
        before=None,
    ),
    _count(
        "data.size",
        32,
        "Height and width to which images are resized; none keeps them.",
        high=65_536,
        optional=True,
        before=None,
    ),
    Setting(
        "data.channels",
        int,
        3,
        "Number of channels to which images are converted; none keeps them.",
        choices=(1, 3),
        optional=True,
        before=None,
    ),
    _switch("data.dequantize", True, "Add uniform noise as wide as one pixel value."),
    _switch("data.logit", False, "Train on the logits of pixels.", before=False),
    _switch("data.flip", True, "Flip training images horizontally at random."),
    _switch("data.labels", False, "Condition the network on the class of each example."),
    _fraction(
        "data.label_dropout",
        0.0,
        "Probability of dropping the label, as in classifier-free guidance.",
        before=0.0,
    ),
    _count(
        "data.device_megabytes",
        1024,
        "Largest data set that every device holds; larger ones are streamed from the host.",
        low=0,
        before=1024,
        free=CONTINUE,
    ),
    # Noise levels
    _number("noise.sigma_max", 1.0, "Largest noise level, in the unit of the data.", 1e-6, 1e6),
    _number("noise.sigma_min", 0.01, "Smallest noise level.", 1e-6, 1e6),
    _count("noise.num_levels", 10, "Number of noise levels, a geometric sequence.", high=100_000),
    # Network
    _named("model.name", MODELS, "ncsn", "Score network; the other settings are its fields."),
    _field(
        "width",
        {"ncsn": 128, "ncsnv2": 128, "unet": 24},
        int,
        "Number of features of the first layers.",
        low=1,
        high=65_536,
    ),
    _field(
        "variant",
        {"ncsnv2": "standard"},
        str,
        "Depth: standard up to 64x64, deeper for 96x96 and 128x128, deepest for 256x256.",
        choices=("standard", "deeper", "deepest"),
    ),
    _field(
        "centered",
        {"ncsn": True, "ncsnv2": True},
        bool,
        "Map inputs from [0, 1] to [-1, 1] first; False for logits.",
    ),
    _field(
        "multipliers",
        {"unet": (1, 2)},
        tuple,
        "Number of features at each resolution of the U-Net, in units of the width.",
        low=1,
        high=1024,
    ),
    _field(
        "num_blocks",
        {"unet": (1, 2)},
        tuple,
        "Number of blocks at each resolution of the U-Net.",
        low=1,
        high=1024,
    ),
    _field(
        "attention",
        {"unet": 1},
        int,
        "Number of resolutions of the U-Net with attention, counted from the last.",
        low=0,
        high=100,
    ),
    _field(
        "patch_size",
        {"unet": 1},
        int,
        "Side of the squares of pixels that are the positions of the first resolution.",
        low=1,
        high=1024,
    ),
    _field("heads", {"unet": 4}, int, "Number of attention heads.", low=1, high=65_536),
    _field("groups", {"unet": 4}, int, "Number of groups of group norms.", low=1, high=65_536),
    _field("data_mean", {"unet": 0.5}, float, "Mean of the data.", low=-1e6, high=1e6),
    _field(
        "data_std", {"unet": 0.5}, float, "Standard deviation of the data.", low=1e-6, high=1e6
    ),
    _field(
        "components",
        {"unet": 0},
        int,
        "Number of principal components of the data whose Gaussian the U-Net corrects; 0 takes "
        "that of the mean and standard deviation alone.",
        low=0,
        high=65_536,
    ),
    _field(
        "hidden", {"mlp": (128, 128)}, tuple, "Widths of the hidden layers.", low=1, high=65_536
    ),
    _field(
        "dtype",
        {"ncsn": "float32", "ncsnv2": "float32", "unet": "float32"},
        str,
        "Precision of the layers; bfloat16 is meant for GPUs and TPUs.",
        choices=("float32", "bfloat16"),
    ),
    _field(
        "remat",
        {"ncsn": False, "ncsnv2": False},
        bool,
        "Recompute activations for the gradient instead of keeping them in memory.",
    ),
    # Objective
    _named(
        "loss.name",
        LOSSES,
        "dsm",
        "Denoising, sliced or implicit score matching; _clean leaves the data unperturbed.",
    ),
    _named(
        "loss.levels",
        LEVELS,
        "uniform",
        "Draw of the noise levels of a batch: independent and uniform, evenly spread, or evenly "
        "spread over a normal distribution about the middle level.",
    ),
    _number(
        "loss.data_std",
        None,
        "Standard deviation d in the weights 1 + sigma^2 / d^2 of dsm; none weighs all levels "
        "alike.",
        1e-6,
        1e6,
        optional=True,
        before=None,
    ),
    _count(
        "loss.num_references",
        0,
        "Number of training examples that stabilise the targets of dsm in training, for data "
        "without labels; 0 takes targets of one example.",
        low=0,
        high=1_000_000,
        before=0,
    ),
    _choice(
        "loss.projection",
        ("rademacher", "gaussian", "sphere"),
        "rademacher",
        "Distribution of the projections of ssm and ssm_clean.",
        before="rademacher",
    ),
    _count(
        "loss.num_projections",
        1,
        "Number of projections per example of ssm and ssm_clean.",
        high=65_536,
        before=1,
    ),
    _switch(
        "loss.variance_reduced",
        True,
        "Use the variance-reduced form of ssm and ssm_clean.",
        before=True,
    ),
    # Optimizer
    _choice(
        "optim.name",
        ("adam", "muon"),
        "adam",
        "Optimizer: Adam, or Muon for the weights of hidden layers and Adam for all others.",
        before="adam",
    ),
    _number("optim.learning_rate", 1e-3, "Learning rate.", 1e-12, 100.0),
    _choice(
        "optim.schedule",
        ("constant", "cosine"),
        "constant",
        "Learning rate after the warmup: constant, or a cosine down to 1 % of it.",
    ),
    _count(
        "optim.warmup_steps",
        0,
        "Number of steps in which the learning rate rises linearly.",
        low=0,
    ),
    _fraction("optim.beta1", 0.9, "Decay of Adam's first moment."),
    _fraction("optim.beta2", 0.999, "Decay of Adam's second moment."),
    _number("optim.epsilon", 1e-8, "Constant in Adam's denominator.", 1e-20, 1.0),
    _number(
        "optim.clip_norm",
        None,
        "Largest norm of the gradient; none does not clip it.",
        1e-9,
        1e9,
        optional=True,
    ),
    _fraction(
        "optim.ema_decay",
        0.0,
        "Decay of the moving average of the parameters that samples are drawn with; 0 does not "
        "average.",
    ),
    # Training
    _count(
        "training.batch_size",
        128,
        "Number of examples per step, over all devices.",
        high=1_000_000,
        free=USE,
    ),
    _count("training.num_steps", 200_000, "Number of training steps."),
    _count("training.log_every", 100, "Number of steps between training losses."),
    _count("training.eval_every", 5000, "Number of steps between held-out losses."),
    _count("training.eval_batches", 8, "Number of batches per held-out loss."),
    _count(
        "training.preview_every",
        None,
        "Number of steps between previews of samples; none draws no preview.",
        optional=True,
    ),
    _count("training.checkpoint_every", 5000, "Number of steps between checkpoints."),
    _count("training.keep_checkpoints", 3, "Number of checkpoints to keep."),
    _count(
        "training.keep_best",
        1,
        "Number of best checkpoints to keep besides, of the steps with a held-out loss.",
        low=0,
        before=0,
    ),
    _choice(
        "training.best_by",
        ("held_out_loss", "fd_classifier"),
        "held_out_loss",
        "Measure of the best checkpoints: the held-out loss, or the distance of samples in the "
        "features of a classifier.",
        before="held_out_loss",
    ),
    _count(
        "training.metrics_every",
        None,
        "Number of steps between metrics of samples, for labelled images; none computes them at "
        "the end only.",
        optional=True,
        before=None,
    ),
    _count(
        "training.metric_samples",
        1000,
        "Number of samples in metrics; 0 leaves them out.",
        low=0,
        before=0,
    ),
    _count(
        "training.steps_per_call",
        10,
        "Number of steps that run as one XLA program; Ctrl-C waits for its end.",
        high=1_000_000,
        before=1,
    ),
    # Sampling
    _count("sampling.num_samples", 1000, "Number of samples.", high=100_000_000),
    _count(
        "sampling.batch_size",
        128,
        "Number of chains at once, over all devices.",
        high=1_000_000,
    ),
    _named(
        "sampling.method",
        SAMPLERS,
        "annealed",
        "Annealed Langevin dynamics, consistent annealed sampling, the baseline of Langevin "
        "dynamics at the last level only, the probability-flow ODE, Heun's method with churn, "
        "predictor-corrector or ancestral sampling.",
        before="annealed",
    ),
    _choice(
        "sampling.start",
        ("uniform", "normal", "data"),
        "uniform",
        "Start of the chains: uniform in [0, 1]; normal with mean 0.5 and standard deviation "
        "sigma_max; data, normal with mean data_mean and variance sigma_max^2 + data_std^2.",
    ),
    _count(
        "sampling.num_steps",
        100,
        "Number of steps per noise level; of the whole chain for the methods ode, "
        "stochastic_heun, predictor_corrector and ancestral.",
        high=100_000_000,
    ),
    _number(
        "sampling.step_size",
        2e-5,
        "Step size at the last level; none chooses it by technique 4 of NCSNv2, or, with the "
        "method consistent, that of ancestral sampling. Unused by methods without one.",
        1e-18,
        1e12,
        optional=True,
    ),
    _switch("sampling.denoise", False, "End with a denoising step."),
    _count(
        "sampling.num_frames", 10, "Number of frames of the animation of the chains.", 0, 100_000
    ),
    _choice(
        "sampling.grid",
        ("edm", "geometric"),
        "edm",
        "Spacing of the sigmas of ode, stochastic_heun, predictor_corrector and ancestral.",
        before="edm",
    ),
    _choice(
        "sampling.solver",
        ("heun", "euler"),
        "heun",
        "Solver of the ode: two evaluations of the network per step, or one.",
        before="heun",
    ),
    _number(
        "sampling.churn",
        0.4,
        "Relative increase of the noise before each step of stochastic_heun.",
        0.0,
        100.0,
        before=0.4,
    ),
    _choice(
        "sampling.predictor",
        ("reverse_diffusion", "ancestral", "euler"),
        "reverse_diffusion",
        "Predictor of predictor_corrector.",
        before="reverse_diffusion",
    ),
    _count(
        "sampling.num_corrector_steps",
        1,
        "Number of Langevin steps after each step of predictor_corrector.",
        low=0,
        high=100_000,
        before=1,
    ),
    _number(
        "sampling.snr",
        0.16,
        "Signal-to-noise ratio of the Langevin steps of predictor_corrector.",
        1e-6,
        1e3,
        before=0.16,
    ),
    _count(
        "sampling.inpaint_steps",
        None,
        "Inpainting: steps per noise level of the paper's algorithm; none takes "
        "sampling.num_steps, or 10 where it counts the steps of the whole chain.",
        high=100_000_000,
        optional=True,
        before=None,
    ),
    _switch(
        "sampling.renew_known",
        False,
        "Inpainting: draw new noise for the known pixels at every step, not once per level.",
        before=False,
    ),
    _number(
        "sampling.guidance",
        0.0,
        "Inpainting: weight of the gradient towards the known pixels; 0 is the paper's algorithm.",
        0.0,
        1e6,
        before=0.0,
    ),
    _count(
        "sampling.autoguidance_step",
        None,
        "Training step, a multiple of checkpoint_every, whose weaker network guides the samples; "
        "none samples without autoguidance.",
        optional=True,
        before=None,
    ),
    _number(
        "sampling.autoguidance_weight",
        2.0,
        "Weight of the network against the weaker one; 1 is the network alone.",
        0.0,
        100.0,
        before=2.0,
    ),
    _number(
        "sampling.autoguidance_sigma_max",
        None,
        "Largest sigma at which the weaker network guides the samples; none is no limit.",
        1e-6,
        1e6,
        optional=True,
        before=None,
    ),
)
SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _TABLE}
SECTIONS = tuple(dict.fromkeys(name.split(".")[0] for name in SETTINGS if "." in name))


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and shortened if it is long."""
    if value is None:
        return "none"
    try:
        text = repr(value)
    except Exception:  # The integer is too long, or the repr of an object of the user's fails.
        return f"a {type(value).__name__} that cannot be shown"
    return shortened(text)


def shortened(text: str) -> str:
    """A text on one line, and its beginning if it is long."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 4]} ..."


def written(value: Any) -> str:
    """A value as it is written in a flag."""
    return value if isinstance(value, str) else shown(value)


def allowed(setting: Setting) -> str:
    """The allowed values of a setting, in words."""
    if setting.choices:
        *first, last = (written(choice) for choice in setting.choices)
        words = f"{', '.join(first)} or {last}"
        words += ", or your own as package.module:name" if setting.own else ""
    elif setting.kind is bool:
        words = "True or False"
    elif setting.kind is str:
        words = "a non-empty text"
    elif setting.below is not None:
        words = f"a number in [{_short(setting.low)}, {_short(setting.below)})"
    elif setting.kind is float:
        words = f"a number from {_short(setting.low)} to {_short(setting.high)}"
    else:
        high = {MANY: "2**31 - 1", 2**32 - 1: "2**32 - 1"}.get(setting.high, setting.high)
        words = f"an integer from {setting.low} to {high}"
        if setting.kind is tuple:
            words = f"a tuple such as {setting.default} of at most {LONGEST_TUPLE}, each {words}"
    return f"{words}, or none" if setting.optional else words


def _short(number: int | float) -> str:
    return re.sub(r"e([+-])0*", r"e\1", f"{number:g}").replace("e+", "e")


def holds(setting: Setting, value: Any) -> bool:
    """Returns True if a setting can have this value."""
    if value is None:
        return setting.optional
    if setting.kind is tuple:
        each = setting._replace(kind=int)
        is_list = isinstance(value, tuple | list)
        in_range = is_list and 0 < len(value) <= LONGEST_TUPLE
        return in_range and all(holds(each, element) for element in value)
    kinds = (int, float) if setting.kind is float else (setting.kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and setting.kind is not bool):
        return False
    if setting.choices:
        return value in setting.choices or (setting.own and is_own(value))
    if setting.kind is str:
        return value != ""
    if setting.kind is bool:
        return True
    within = setting.low <= value
    within &= value < setting.below if setting.below is not None else value <= setting.high
    return bool(within) and (setting.kind is int or _in_float32(setting, value))


def _in_float32(setting: Setting, value: int | float) -> bool:
    """Returns True if float32 holds a number: not as 0, nor as the bound that is not allowed."""
    # Numpy is too slow to import for the help.
    (single,) = struct.unpack("f", struct.pack("f", value))
    if value != 0 and abs(single) < SMALLEST_FLOAT32:
        return False
    return setting.below is None or single < setting.below


def is_own(value: Any) -> bool:
    """Returns True for the dotted path of a user's own object, `package.module:name`."""
    return isinstance(value, str) and re.fullmatch(r"[\w.]+:[\w.]+", value) is not None
