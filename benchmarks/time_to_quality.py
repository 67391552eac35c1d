#!/usr/bin/env python3
"""Quality of unconditional MNIST samples against wall time of training.

    python benchmarks/time_to_quality.py mnist --output=runs/time_to_quality
    python benchmarks/time_to_quality.py mnist --only=mnist_small,ncsn      without PyTorch

Three contestants train on the same images and cores, one after the other:

    mnist_small   score_jax with configs/mnist_small.py. Its learning rate follows a cosine, so
                  every point is a run of its own, with the number of steps that fits into its
                  minutes; autoguidance takes the checkpoint at a quarter of the steps, and the
                  warmup is at most that quarter.
    ncsn          score_jax with the recipe of Song & Ermon (2019), see configs/mnist.py, at width
                  16. One run, sampled along the way.
    pytorch       The same network, recipe and initial parameters in eager PyTorch, by
                  benchmarks/pytorch_training.py. One run, sampled along the way.

Minutes count from the start of the process to the checkpoint on disk: imports, loading,
compilation (nothing is cached) and training. A run that is continued counts the training seconds
of its earlier processes and the whole of the last one, so that start and compilation count once.
Numbers of steps are chosen by a short run beforehand; the minutes of the results are measured.

Sampling is not on this clock. `sampling_seconds_per_1000` is measured without compilation: for
score_jax on all batches but the first; for PyTorch on a tenth of the steps of 100 images. The
samples of `pytorch` are drawn by score_jax from its converted parameters: the networks are equal,
and score_jax is faster.

One judge serves all: the classifier of score_jax.evaluation, trained on the real training images
and kept in the output folder. `confident` is the share of samples of whose class it is more than
95 % sure; `frechet` the Frechet distance of its features from 10,000 training images. `real` holds
both for 1000 held-out images, the distance as a mean over groups as large as the set of samples,
since it falls with their number.

Files: results.json, written after every training and every point, from which the same command
continues; time_to_quality.png; samples_NAME.png, the first 100 samples of the last point; and
samples_NAME_MINUTES.npz. The networks of 2019 take 1000 evaluations per sample: on two slow cores,
500 samples take about as long as the training.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import score_jax as sj
from score_jax.cli import images, workdir
from score_jax.cli.feature_space import Space, choose_space, quantized, rescaled
from score_jax.cli.flags import parse
from score_jax.cli.main import choose_devices
from score_jax.cli.provenance import versions
from score_jax.cli.quality import labelled_data
from score_jax.cli.run import open_run
from score_jax.data.dataset import Dataset, spread_index
from score_jax.devices import num_cores

RECIPE = [
    "--config=mnist",
    "--config.data.source=idx",
    "--config.model.width=16",
    # PyTorch computes no held-out loss.
    "--config.training.eval_batches=1",
    "--config.training.keep_best=0",
]
FLAGS = {"mnist_small": ["--config=mnist_small"], "ncsn": RECIPE, "pytorch": RECIPE}
"""Contestant -> the flags of its config."""
NAMES = {
    "mnist_small": "score_jax, configs/mnist_small.py",
    "ncsn": "score_jax, recipe of 2019",
    "pytorch": "PyTorch, recipe of 2019",
}
COLD = "--cache="
PACE_STEPS = 60
BATCH = 100
REFERENCE, HELD_OUT, CONFIDENT = 10_000, 1000, 0.95
PYTORCH = Path(__file__).with_name("pytorch_training.py")

Judge = Callable[[Any], dict[str, float]]
"""Images as pixels v / 255 -> confident and frechet."""


class Bench(NamedTuple):
    """The conditions that all contestants share.

    Attributes:
        data: Folder of MNIST's idx files.
        output: Folder of the results.
        minutes: Contestant -> minutes of its points.
        devices: Devices that sample and judge.
        judge: The judge.
        record: Content of results.json, which grows.
    """

    data: str
    output: Path
    minutes: dict[str, list[float]]
    devices: Sequence[jax.Device]
    judge: Judge
    record: dict[str, Any]


def training_command(name: str, data: str, folder: Path, steps: int) -> list[str]:
    """The command that trains a contestant in a folder up to a step, a multiple of 4."""
    if name == "pytorch":
        return [sys.executable, str(PYTORCH), data, str(folder), f"--num_steps={steps}"]
    settings = {"data.path": data, "training.num_steps": steps, "training.metric_samples": 0}
    if name == "mnist_small":
        settings |= {
            "training.checkpoint_every": steps // 4,
            "sampling.autoguidance_step": steps // 4,
            "optim.warmup_steps": min(100, steps // 4),
        }
    flags = [f"--config.{setting}={value}" for setting, value in settings.items()]
    return [sys.executable, "-m", "score_jax", *FLAGS[name], *flags, f"--workdir={folder}", COLD]


def wall_seconds(command: Sequence[str]) -> float:
    """Seconds from the start of a training command to its report that the network is trained.

    The command is ended then: score_jax would go on to sample.

    Raises:
        RuntimeError: If it ends before.
    """
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("trained in "):
                seconds = time.monotonic() - begun
                process.terminate()
                return seconds
    raise RuntimeError(
        f"the training ended before it was complete, with exit code {process.returncode}: "
        f"{' '.join(command)}"
    )


def trained_seconds(folder: Path) -> float:
    """Seconds of training in the processes that wrote a folder, without start and compilation."""
    metrics = workdir.read_json(folder / "metrics.json") or {}
    return metrics.get("seconds", {}).get("train", 0.0)


def write_initial(folder: Path) -> None:
    """Writes initial.npz, the parameters with which PyTorch begins."""
    config = parse(FLAGS["pytorch"]).config
    model = sj.NCSN(config["noise"]["num_levels"], config["model"]["width"])
    size = config["data"]["size"]
    x, level = np.zeros((1, size, size, 1), np.float32), np.zeros(1, np.int32)
    params = jax.jit(model.init)(jax.random.key(0), x, level)["params"]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "initial.npz", **sj.to_official(params))


def pace(name: str, data: str, folder: Path) -> dict[str, float]:
    """Seconds before the first step, and per step, from a short run that is thrown away."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        place = Path(place)
        if name == "pytorch":
            write_initial(place)
        command = training_command(name, data, place, PACE_STEPS)
        if name != "pytorch":
            command.append("--config.training.eval_batches=1")
        wall, training = wall_seconds(command), trained_seconds(place)
    return {"start": wall - training, "step": training / PACE_STEPS}


def steps_for(found: dict[str, float], minutes: float, position: int) -> int:
    """Steps that fit into some minutes: a multiple of 4 that rises with the point's position."""
    steps = int((60 * minutes - found["start"]) / found["step"])
    return max(steps // 4, position + 1) * 4


def train(name: str, data: str, folder: Path, steps: int) -> float:
    """Trains in a folder, on from its newest checkpoint; seconds as of an undisturbed run."""
    if name == "pytorch" and not (folder / "initial.npz").exists():
        write_initial(folder)
    before = trained_seconds(folder)
    return before + wall_seconds(training_command(name, data, folder, steps))


def draw(folder: Path, number: int, devices: Sequence[jax.Device]) -> tuple[np.ndarray, float]:
    """Draws samples with the newest checkpoint of a workdir.

    Returns:
        The samples as the pixels that images can have, v / 255, and the seconds per 1000 of them
        without those of the first batch, which compiles.
    """
    run = open_run(parse(["--mode=sample", f"--workdir={folder}"]), devices)
    params = run.for_samples(run.state.ema_params, run.step)
    batch = max(min(BATCH, number // 2) // len(devices), 1) * len(devices)
    times: list[float] = []
    x = sj.sample(
        run.score_fn(params),
        run.sigmas,
        callbacks=[lambda first, trajectory: times.append(time.monotonic())],
        **run.sampling(number) | {"batch_size": batch, "num_snapshots": 0, "observe": None},
    )
    seconds = (times[-1] - times[0]) / (len(times) - 1) * 1000 / batch
    dequantized = run.config["data"]["dequantize"]
    return quantized(run.to_images(x), 256, dequantized), seconds


def draw_converted(
    data: str, folder: Path, number: int, devices: Sequence[jax.Device]
) -> tuple[np.ndarray, float]:
    """As `draw`: samples of a PyTorch network by score_jax, and the seconds of PyTorch's own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        flags = [f"--checkpoint={folder / 'network.npz'}", f"--workdir={place}/run"]
        command = [sys.executable, "-m", "score_jax", "--mode=import", *FLAGS["pytorch"], *flags]
        subprocess.run(command, check=True)
        x, _ = draw(Path(place) / "run", number, devices)
    command = [sys.executable, str(PYTORCH), data, str(folder), f"--images={min(BATCH, number)}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return x, float(done.stdout)


def make_judge(data: Dataset, space: Space, devices: Sequence[jax.Device]) -> Judge:
    """The judge in the features of a classifier."""
    index = spread_index(len(data.train), min(REFERENCE, len(data.train)))
    real = space.outputs(rescaled(data, data.train[index]), devices, progress=False)
    reference = sj.moments([real.features])

    def judge(x):
        found = space.outputs(x, devices, progress=False)
        sure = found.probabilities.max(axis=1) > CONFIDENT
        distance = sj.frechet_distance(reference, sj.moments([found.features]))
        return {"confident": float(sure.mean()), "frechet": distance}

    return judge


def judge_real(data: Dataset, judge: Judge, number: int) -> dict[str, float]:
    """The judgement of held-out images, in groups of `number`."""
    index = spread_index(len(data.held_out), min(HELD_OUT, len(data.held_out)))
    x = rescaled(data, data.held_out[index])[:]
    number = min(number, len(x))
    # A group takes images from everywhere, as they can be sorted by class or writer.
    groups = len(x) // number
    found = [judge(x[i::groups][:number]) for i in range(groups)]
    distance = float(np.mean([each["frechet"] for each in found]))
    return {"confident": judge(x)["confident"], "frechet": distance, "number": len(x)}


def draw_chart(file: Path, record: dict[str, Any]) -> None:
    """Draws both measures against minutes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullLocator

    figure = Figure(figsize=(9, 4.2), dpi=200, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {
        "confident": "samples of whose class the judge is sure (%)",
        "frechet": "Fréchet distance from real images",
    }
    marks = sorted({point["minutes_asked"] for point in record["points"]})
    for axes, (measure, title) in zip(panels, titles.items()):
        scale = 100 if measure == "confident" else 1
        for name, colour, marker in zip(NAMES, ("#0b5fa5", "#d9730d", "#777777"), "os^"):
            points = [point for point in record["points"] if point["contestant"] == name]
            x = [point["minutes"] for point in points]
            y = [scale * point[measure] for point in points]
            if points:
                axes.plot(x, y, color=colour, marker=marker, label=NAMES[name], linewidth=2)
        real = scale * record["real"][measure]
        axes.axhline(real, color="black", linestyle="--", linewidth=1, label="real images")
        axes.set(title=title, xlabel="minutes of training, from the start of the program")
        axes.set_xscale("log")
        axes.set_xticks(marks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.25)
    panels[0].set_ylim(-3, 103)
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_formatter(LogFormatter())
    panels[1].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file)


def add_point(bench: Bench, name: str, position: int) -> None:
    """Trains, samples and judges one point, and writes all files."""
    record, output, minutes = bench.record, bench.output, bench.minutes[name][position]
    folder = output / name / (f"{minutes:g}" if name == "mnist_small" else "run")
    folder.mkdir(parents=True, exist_ok=True)
    save = functools.partial(workdir.write_json, output / "results.json", record)

    # Train, unless that was done before sampling was cut off.
    if name not in record["pace"]:
        record["pace"][name] = pace(name, bench.data, output / name)
        save()
    trained = record["trained"].get(f"{name} {minutes:g}")
    if trained is None:
        steps = steps_for(record["pace"][name], minutes, position)
        print(f"{NAMES[name]}: {minutes:g} minutes, {steps} steps", flush=True)
        seconds = train(name, bench.data, folder, steps)
        trained = {"minutes": seconds / 60, "steps": steps}
        record["trained"][f"{name} {minutes:g}"] = trained
        save()

    # Sample and judge.
    if name == "pytorch":
        x, seconds = draw_converted(bench.data, folder, record["number"], bench.devices)
    else:
        x, seconds = draw(folder, record["number"], bench.devices)
    point = {"contestant": name, "minutes_asked": minutes, **trained, **bench.judge(x)}
    record["points"].append(point | {"sampling_seconds_per_1000": seconds})
    print(json.dumps(record["points"][-1]), flush=True)
    np.savez_compressed(output / f"samples_{name}_{minutes:g}.npz", samples=x)
    images.save_png(output / f"samples_{name}.png", images.grid(x[:100], 10))
    draw_chart(output / "time_to_quality.png", record)
    save()


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of MNIST's idx files, plain or gzipped")
    parser.add_argument("--output", type=Path, default=Path("runs/time_to_quality"))
    parser.add_argument("--only", default=",".join(NAMES), help="contestants, with commas")
    parser.add_argument("--number", type=int, default=500, help="samples per point")
    numbers = lambda text: sorted({float(part) for part in text.split(",")})  # noqa: E731
    parser.add_argument("--minutes", type=numbers, default="2.5,5,10,20", help="points")
    parser.add_argument("--minutes_mnist_small", type=numbers, default="2.5,5,10,17")
    args = parser.parse_args(arguments)
    unknown = {*args.only.split(",")} - {*NAMES}
    if unknown:
        parser.error(f"--only={','.join(sorted(unknown))}: choose among {', '.join(NAMES)}")
    fewest = max(16, 2 * num_cores())
    if args.number < fewest:
        parser.error(f"--number={args.number} must be at least {fewest}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the points that results.json lacks."""
    args = parsed(arguments)
    config = parse([*FLAGS["ncsn"], f"--config.data.path={args.data}"]).config
    devices = choose_devices(config, None, "sample")
    output, settings = args.output, {"number": args.number, "cores": num_cores()}
    record = workdir.read_json(output / "results.json")
    if record is None:
        used = versions()
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            used["torch"] = importlib.metadata.version("torch")
        record = {**settings, "versions": used, "pace": {}, "trained": {}, "points": []}
    for name, value in settings.items():
        if record[name] != value:
            raise SystemExit(
                f"{output} holds results with {name} {record[name]}, not {value}: choose another "
                "--output"
            )

    # Every start finds the same judge in the output folder.
    output.mkdir(parents=True, exist_ok=True)
    data = labelled_data(config)
    space = choose_space(data, None, None, devices, output, data.train.shape[1:])
    judge = make_judge(data, space, devices)
    record["judge"] = {"fingerprint": space.fingerprint, "accuracy": space.accuracy}
    record["real"] = judge_real(data, judge, args.number)

    minutes = dict.fromkeys(NAMES, args.minutes) | {"mnist_small": args.minutes_mnist_small}
    bench = Bench(str(args.data), output, minutes, devices, judge, record)
    known = [(point["contestant"], point["minutes_asked"]) for point in record["points"]]
    for name in args.only.split(","):
        for position, asked in enumerate(minutes[name]):
            if (name, asked) not in known:
                add_point(bench, name, position)
    draw_chart(output / "time_to_quality.png", record)


if __name__ == "__main__":
    main()
