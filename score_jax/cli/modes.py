"""The tables of the command: its modes, and the flags and settings that each of them uses."""

from typing import NamedTuple

from score_jax.cli.table import MANY, Setting

EVERY_MODE = ("mode", "config", "workdir", "devices", "coordinator", "cache", "help")
"""Flags that all modes use."""

PROCESSES = ("num_processes", "process_id")
"""Flags of modes that several processes can run together."""

POSTERIORS = ("moment_matching", "pseudo_inverse", "dps", "annealed")
"""Methods of `score_jax.posterior`."""

SAME_RUN = ("data.", "model.", "noise.")
"""Settings that must be those of the run in the workdir."""


class Mode(NamedTuple):
    """One mode.

    Attributes:
        function: Dotted path of its function, (command, devices) -> bool.
        meaning: One line.
        flags: The flags that it uses besides `EVERY_MODE`.
        reads: Names of the settings that it uses, or beginnings of them.
        batches: Sections of the config whose `batch_size` the devices share.
    """

    function: str
    meaning: str
    flags: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("",)
    batches: tuple[str, ...] = ("sampling",)


MODES = {
    "train": Mode(
        "score_jax.cli.train:train_mode",
        "Train, from the newest checkpoint if there is one, then draw samples.",
        ("dry_run", "debug_nans", *PROCESSES),
        batches=("training", "sampling"),
    ),
    "sample": Mode(
        "score_jax.cli.sample:sample_mode",
        "Draw samples from the trained network.",
        ("number", "label", "guidance", "name", "dry_run", "step", "debug_nans", *PROCESSES),
        ("seed", "sampling.", *SAME_RUN),
    ),
    "evaluate": Mode(
        "score_jax.cli.evaluate:evaluate_mode",
        "Compute the held-out loss at every noise level.",
        ("step", *PROCESSES),
        ("seed", "loss.", "training.batch_size", *SAME_RUN),
        batches=("training",),
    ),
    "likelihood": Mode(
        "score_jax.cli.likelihood:likelihood_mode",
        "Compute the log density of held-out data, in bits per dimension.",
        ("number", "step", *PROCESSES),
        ("seed", "sampling.batch_size", *SAME_RUN),
    ),
    "inpaint": Mode(
        "score_jax.cli.inpaint:inpaint_mode",
        "Complete images of which a part is missing.",
        (
            *("image", "mask", "method", "label", "number", "completions", "name", "step"),
            "debug_nans",
        ),
        ("seed", "sampling.", *SAME_RUN),
    ),
    "restore": Mode(
        "score_jax.cli.restore:restore_mode",
        "Restore images from linear measurements, with the uncertainty of the posterior.",
        (
            *("task", "noise", "method", "image", "label", "number", "completions", "name"),
            *("step", "debug_nans"),
        ),
        ("seed", "sampling.", *SAME_RUN),
    ),
    "interpolate": Mode(
        "score_jax.cli.interpolate:interpolate_mode",
        "Draw rows of samples that change gradually from one to another.",
        ("number", "completions", "name", "step", "debug_nans"),
        ("seed", "sampling.", *SAME_RUN),
    ),
    "export": Mode(
        "score_jax.cli.export:export_mode",
        "Write the sampler as one file that samples without this package.",
        ("step",),
        ("seed", "sampling.", *SAME_RUN),
    ),
    "metrics": Mode(
        "score_jax.cli.metrics:metrics_mode",
        "Compare samples with real examples: Frechet and kernel distance, precision, recall ...",
        ("samples", "features", "weights", "reference", "number"),
        ("data.", "model.", "noise."),
        batches=(),
    ),
    "stats": Mode(
        "score_jax.cli.metrics:stats_mode",
        "Store the statistics of a data set, as a reference of samples.",
        ("features", "weights", "reference", "name"),
        ("data.", "model.", "noise."),
        batches=(),
    ),
    "figures": Mode(
        "score_jax.cli.figures:figures_mode",
        "Draw the paper's figures, nearest training images and the mixing of chains.",
        ("number", "step"),
        ("seed", "sampling.", *SAME_RUN),
    ),
    "compare": Mode(
        "score_jax.cli.compare:compare_mode",
        "Compare the held-out losses of several runs, with errors and verdicts.",
        ("workdirs", "objectives", "draws", "number", "step"),
        ("seed",),
        batches=(),
    ),
    "report": Mode(
        "score_jax.cli.report:report_mode",
        "Write report.html: samples, losses, metrics and diagnostics of one run or several.",
        ("workdirs",),
        ("data.path",),
        batches=(),
    ),
    "schedule": Mode(
        "score_jax.cli.schedule:schedule_mode",
        "Suggest noise levels and a step size for the data at hand.",
        ("subsample", "write"),
        ("seed", "data.", "noise.sigma_min", "sampling."),
        batches=(),
    ),
    "import": Mode(
        "score_jax.cli.imports:import_mode",
        "Make a workdir of an official PyTorch checkpoint.",
        ("checkpoint",),
        batches=(),
    ),
}


FLAGS = (
    Setting("mode", str, "train", "Action; train also draws samples.", choices=tuple(MODES)),
    Setting(
        "config",
        str,
        None,
        "Published config by name, or Python file that defines get_config(); what follows a colon "
        "is an argument of get_config. By default the config saved in the workdir, else digits.",
    ),
    Setting(
        "workdir",
        str,
        None,
        "Folder of the run; by default runs/NAME of the config. In compare, the folder of the "
        "comparison; by default runs/compare.",
    ),
    Setting(
        "devices",
        int,
        None,
        "Number of devices per process; by default all accelerators, or the cores of the CPU.",
        low=1,
        high=4096,
    ),
    Setting(
        "coordinator",
        str,
        None,
        "Address of process 0 as HOST:PORT, if several processes run the command together; auto "
        "searches the environment of a cluster, none runs a single process. By default "
        "$JAX_COORDINATOR_ADDRESS, SLURM, Open MPI or the TPU pod decides.",
    ),
    Setting(
        "num_processes",
        int,
        None,
        "Number of processes; by default $JAX_NUM_PROCESSES.",
        low=1,
        high=100_000,
    ),
    Setting(
        "process_id",
        int,
        None,
        "Number of this process, counted from 0; by default $JAX_PROCESS_ID.",
        low=0,
        high=100_000,
    ),
    Setting(
        "cache",
        str,
        None,
        "Folder in which compiled programs are kept, empty for none; by default "
        "$JAX_COMPILATION_CACHE_DIR, else ~/.cache/score_jax.",
    ),
    Setting("dry_run", bool, False, "Print parameters, memory and time; write nothing."),
    Setting(
        "checkpoint",
        str,
        None,
        "Official checkpoint: a .pth, or an .npz of the arrays of its state dict.",
    ),
    Setting(
        "image",
        str,
        None,
        "Image files to complete, or patterns of them, separated by commas; by default held-out "
        "images.",
    ),
    Setting(
        "mask",
        str,
        None,
        "Missing side (right, left, top or bottom) or center, or an image file that is black or "
        "transparent where pixels are missing; by default right.",
    ),
    Setting(
        "task",
        str,
        None,
        "Inverse problem: colorize, superresolve:FACTOR, deblur:PIXELS, sense:FRACTION, "
        "mri:ACCELERATION, or inpaint:MASK.",
    ),
    Setting(
        "noise",
        float,
        None,
        "Standard deviation of the noise of the measurements, in the unit of the data; by "
        "default 0.05.",
        low=1e-6,
        high=1e6,
    ),
    Setting(
        "method",
        str,
        None,
        "Approximation of the posterior; by default moment_matching, and in inpaint the paper's "
        "algorithm.",
        choices=POSTERIORS,
    ),
    Setting(
        "label",
        int,
        None,
        "Class of the images; by default, sample draws the classes of the training set, and "
        "inpaint is unconditional.",
        low=0,
        high=MANY,
    ),
    Setting(
        "guidance",
        float,
        None,
        "Weight of the class in classifier-free guidance: 1 by default, above 1 for more typical "
        "images.",
        low=0,
        high=1000,
    ),
    Setting(
        "number",
        int,
        None,
        "Number of samples (by default sampling.num_samples, and in metrics all), of held-out "
        "examples in likelihood and compare (by default all), or of held-out images, rows, or "
        "samples in figures (by default 8).",
        low=1,
        high=100_000_000,
    ),
    Setting(
        "completions",
        int,
        None,
        "Number of completions per image, or of chains per row; by default 8.",
        low=1,
        high=100_000,
    ),
    Setting(
        "samples",
        str,
        None,
        "Samples to judge: a folder or .zip of images, or an .npz; by default samples.npz of the "
        "workdir.",
    ),
    Setting(
        "features",
        str,
        None,
        "Features in which samples are compared: classifier, inception, pixels, or your own "
        "function as package.module:name; by default classifier.",
    ),
    Setting(
        "weights",
        str,
        None,
        "Weights of Inception v3: the .pth of the usual conversion, or an .npz of its arrays.",
    ),
    Setting(
        "reference",
        str,
        None,
        "Real examples to compare with: held_out, train, a folder, .zip or .npz of images, or a "
        "file of statistics; by default held_out, and train with Inception and in stats.",
    ),
    Setting("name", str, None, "Name of the files to write, without suffix."),
    Setting(
        "subsample",
        int,
        None,
        "Number of training images that the suggestion is derived from; by default all.",
        low=2,
        high=MANY,
    ),
    Setting("write", str, None, "Python file to which the suggested config is written."),
    Setting(
        "step",
        str,
        None,
        "Step of the checkpoint to use, or best for that of config.training.best_by; by default "
        "the newest.",
    ),
    Setting("workdirs", str, None, "Folders of the runs, separated by commas."),
    Setting(
        "objectives",
        str,
        None,
        "Objectives to compare by, separated by commas: dsm, ssm, likelihood, exact; by default "
        "dsm, and exact where the density of the data is known.",
    ),
    Setting(
        "draws",
        int,
        None,
        "Number of draws of the noise per example and level; by default 4.",
        low=1,
        high=100_000,
    ),
    Setting(
        "debug_nans",
        bool,
        False,
        "Name the operation that gives the first NaN: takes steps one by one, and repeats the one "
        "that fails.",
    ),
    Setting("help", bool, False, "Show this text."),
)


def users(flag: str) -> str:
    """The modes that use a flag, in words."""
    return _listed([name for name, mode in MODES.items() if flag in mode.flags])


def readers(setting: str) -> str:
    """The modes that use a setting, in words."""
    return _listed([name for name, mode in MODES.items() if setting.startswith(mode.reads)])


def _listed(names: list[str]) -> str:
    *first, last = (f"--mode={name}" for name in names)
    return f"{', '.join(first)} and {last}" if first else last
