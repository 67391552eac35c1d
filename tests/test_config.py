import copy
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from score_jax.config import FREE_TO_CONTINUE, FREE_TO_USE, RULES, check_divides, check_same_run, flatten, validate
from score_jax.noise import geometric_sigmas
from score_jax.run import build

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.get_config().to_dict()


def digits(**settings):
    """The digits' config with dotted settings changed, or removed if None."""
    config = load(ROOT / "configs" / "digits.py")[1]
    for name, value in settings.items():
        *sections, last = name.split("__")
        section = config
        for word in sections:
            section = section[word]
        if value is None:
            del section[last]
        else:
            section[last] = value
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_documented_and_builds_a_step(path):
    module, config = load(path)
    validate(config)
    assert "Command: python main.py" in module.__doc__
    data, event = build.load_data(config["data"], needed=False)  # what is not at hand is not needed for shapes
    labels = config["data"]["labels"]
    sigmas = geometric_sigmas(**config["noise"])
    model = build.build_model(config["model"], sigmas, data.num_classes if data else 0, config["data"])
    trainer = build.build_trainer(config, data, model, sigmas, axis_name=None)
    shapes = build.init_shape(trainer, model, event, labels)
    x = jax.ShapeDtypeStruct((4, *event), np.uint8 if data is None else data.train.dtype)
    label = [jax.ShapeDtypeStruct((4,), np.int32)] if labels else []
    state, metrics = jax.eval_shape(trainer.step, jax.random.key(0), shapes, x, *label)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)
    assert metrics.loss.shape == ()
    assert build.step_size_of(config["sampling"], sigmas) > 0


SLICED = ("loss.projection", "loss.num_projections", "loss.variance_reduced")


@pytest.mark.parametrize("name", [name for name in RULES if "." in name])
def test_every_setting_is_read_somewhere(name):
    """A setting that no code reads is a promise that nobody keeps."""
    code = "".join(file.read_text() for file in [*(ROOT / "score_jax" / "run").glob("*.py"), ROOT / "score_jax" / "config.py"])
    code = re.sub(r"RULES: dict.*?\n}\n", "", code, flags=re.DOTALL)
    last = name.rpartition(".")[2]
    assert (
        f'["{last}"]' in code
        or (name in SLICED and f'"{last}"' in code)
        or (name.startswith("noise.") and '**config["noise"]' in code)
        or (last.endswith("_every") and 'f"{name}_every"' in code)
    ), f"config.{name} is read nowhere"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optim__lr": 1.0}, r"config\.optim\.lr is not a setting: choose among optim\.learning_rate, optim\.schedule"),
        ({"noises": 1.0}, r"config\.noises is not a setting: choose among .*noise"),
        ({"loss__levels": None}, r"config\.loss\.levels is missing: it must be 'uniform' or 'stratified'"),
        ({"model__name": None}, r"config\.model\.name is missing"),
        ({"training__num_steps": 0}, r"config\.training\.num_steps=0 must be at least 1"),
        ({"training__num_steps": 10.5}, r"config\.training\.num_steps=10\.5 must be of type int"),
        ({"training__num_steps": True}, r"num_steps=True must be of type int"),
        ({"seed": -1}, r"config\.seed=-1 must be in \[0, 2\*\*32\)"),
        ({"data__flip": 1}, r"config\.data\.flip=1 must be of type bool"),
        ({"optim__learning_rate": float("nan")}, r"learning_rate=nan must be above 0"),
        ({"optim__ema_decay": 1.0}, r"ema_decay=1\.0 must be in \[0, 1\)"),
        ({"optim__schedule": "step"}, r"schedule='step' must be 'constant' or 'cosine'"),
        ({"sampling__start": "zeros"}, r"start='zeros' must be 'uniform' or 'normal'"),
        ({"noise__sigma_min": 2.0}, r"32 levels from sigma_max=1 to sigma_min=2 do not decrease"),
        ({"noise__num_levels": 1}, r"1 levels from sigma_max=1 to sigma_min=0\.03 do not decrease"),
        ({"sampling__num_frames": 33}, r"num_frames=33 must be at most the number of noise levels, 32"),
        ({"sampling__step_size": 0.1}, r"step_size=0\.1 must be below 2 \* sigma_min\*\*2 = 0\.0018"),
        ({"optim__warmup_steps": 5000}, r"warmup_steps=5000 must be below config\.training\.num_steps=1500"),
    ],
)
def test_what_is_wrong_is_named(settings, words):
    with pytest.raises(ValueError, match=words):
        validate(digits(**settings))


def test_technique_4_needs_two_levels():
    single = digits(noise__sigma_min=0.01, noise__sigma_max=0.01, noise__num_levels=1, sampling__num_frames=0)
    with pytest.raises(ValueError, match="needs two or more noise levels: set the step size"):
        validate(single)
    single["sampling"]["step_size"] = 2e-5
    validate(single)


def test_whole_numbers_may_stand_for_floats():
    validate(digits(noise__sigma_max=2))


@pytest.mark.parametrize(("batch_size", "devices", "words"), [(127, 2, "use 126 or 128"), (3, 8, "use 8,")])
def test_a_batch_that_the_devices_do_not_divide(batch_size, devices, words):
    with pytest.raises(
        ValueError, match=f"config.training.batch_size={batch_size} cannot be split over {devices} devices: {words}"
    ):
        check_divides(batch_size, devices, "training.batch_size")
    check_divides(devices * 3, devices, "training.batch_size")


def test_another_run_is_recognised():
    saved = digits()
    check_same_run(saved, digits(training__num_steps=9000, sampling__num_steps=7), FREE_TO_CONTINUE, "runs/x")
    check_same_run(saved, digits(seed=4, optim__learning_rate=1.0), FREE_TO_USE, "runs/x")
    with pytest.raises(ValueError, match=r"runs/x holds another run: config\.seed is 0 there and 4 here; choose another --workdir"):
        check_same_run(saved, digits(seed=4), FREE_TO_CONTINUE, "runs/x")
    for free in (FREE_TO_CONTINUE, FREE_TO_USE):
        with pytest.raises(ValueError, match=r"config\.model\.width is 24 there and 32 here"):
            check_same_run(saved, digits(model__width=32), free, "runs/x")


def test_flatten_names_every_leaf():
    assert dict(flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}})) == {"a": 1, "b.c": 2, "b.d.e": 3}
    assert dict(flatten(copy.deepcopy(digits())))["noise.num_levels"] == 32
