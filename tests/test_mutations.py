"""Settings that are refused before anything is compiled, by their name."""

import importlib
import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import score_jax as sj
from score_jax.cli import own
from score_jax.cli.config_files import load_config
from score_jax.cli.memory import check_memory, check_state
from score_jax.cli.settings import validate
from score_jax.cli.table import shown
from score_jax.models.fields import check_booleans
from score_jax.noise import check_counts, check_seed

FILE = Path(__file__).parents[1] / "benchmarks" / "mutations.py"
SIGMAS = sj.geometric_sigmas(1.0, 0.1, 4)


def changed(base, **changes):
    config = load_config(base)
    for name, value in changes.items():
        section, _, last = name.partition("__")
        config[section][last] = value
    return config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim__learning_rate", 1e-320),
        ("optim__beta1", 1e-320),
        ("optim__beta2", 1 - 1e-9),  # 1 in float32
        ("optim__ema_decay", 1e-40),
        ("optim__clip_norm", float("nan")),
        ("model__data_mean", float("nan")),
        pytest.param("model__data_mean", 10**400, id="huge"),
        ("model__data_std", float("inf")),
        pytest.param("model__width", 10**5000, id="long"),
        ("model__width", True),
        ("model__heads", np.int64(4)),
        ("training__batch_size", 10**12),
        ("sampling__guidance", 1e-320),
        ("loss__name", "x" * 5000),
        ("data__path", b"bytes"),
    ],
)
def test_a_setting_that_float32_or_its_kind_does_not_hold(name, value):
    section, _, last = name.partition("__")
    with pytest.raises(ValueError, match=rf"^config\.{section}\.{last}=\S.* must be ") as caught:
        validate(changed("digits", **{name: value}))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [(1, 2), 1, "False", None])
def test_a_switch_of_a_network_is_true_or_false(value):
    with pytest.raises(ValueError, match=r"^config\.model\.remat="):
        validate(changed("digits_ncsn", model__remat=value))
    with pytest.raises(ValueError, match=r"^remat=.* must be True or False"):
        check_booleans(remat=value)


@pytest.mark.parametrize(
    ("changes", "shape", "named"),
    [
        ({"training__batch_size": 1_000_000}, (8, 8, 1), "training.batch_size=1000000"),
        ({"sampling__batch_size": 1_000_000}, (8, 8, 1), "sampling.batch_size=1000000"),
        ({"model__width": 65_536}, (8, 8, 1), "model.width=65536"),
        ({"training__steps_per_call": 10**6}, (8, 8, 1), "training.steps_per_call=1000000"),
        ({}, (65_536, 65_536, 3), "training.batch_size=128"),
        (
            {"loss__name": "ssm", "loss__num_projections": 65_536, "training__batch_size": 1024},
            (8, 8, 1),
            "loss.num_projections=65536",
        ),
    ],
)
def test_sizes_beyond_memory(changes, shape, named, monkeypatch):
    monkeypatch.setattr("score_jax.cli.memory.host_memory", lambda: 400_000_000)
    config = changed("digits", **changes)
    arguments = (jax.devices(), ("training", "sampling"), True)
    check_memory(load_config("digits"), (8, 8, 1), *arguments)
    check_memory(changed("digits", model__name="my:Net", model__width="9"), (8, 8, 1), *arguments)
    with pytest.raises(ValueError, match=rf"^config\.{named}.* needs at least .* lower config\."):
        check_memory(config, shape, *arguments)
    with pytest.raises(ValueError, match=r"state of training takes .* lower config\.model\.width"):
        check_state(10**9, jax.devices(), "model.width")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"levels": "score_jax.losses.dsm:annealed_dsm"}, "loss.levels='score_jax.losses"),
        ({"levels": "builtins:dict"}, "loss.levels='builtins:dict'"),
        ({"name": "operator:add"}, "loss.name='operator:add' cannot be used"),
        ({"name": "sys:exit"}, "loss.name='sys:exit' cannot be used .TypeError"),
    ],
)
def test_objects_that_are_not_what_their_setting_asks_for(settings, named):
    settings = {"name": "dsm", "levels": "uniform"} | settings
    loss_fn = sj.annealed_dsm
    if settings["name"] != "dsm":
        module, _, name = settings["name"].partition(":")
        loss_fn = getattr(importlib.import_module(module), name)
    with pytest.raises(ValueError, match=rf"^config\.{named}"):
        own.check_objective(settings, loss_fn, SIGMAS, (3,))
    own.check_objective({"name": "dsm", "levels": "uniform"}, sj.annealed_dsm, SIGMAS, (3,))
    name = "score_jax.losses.dsm:annealed_dsm"
    own.check_objective({"name": name, "levels": "uniform"}, sj.annealed_dsm, SIGMAS, (3,))


@pytest.mark.parametrize("value", [2.5, None, "3", True, float("nan"), float("inf"), [3]])
def test_counts_and_seeds_are_whole_numbers(value):
    with pytest.raises(ValueError, match=r"^number=.* must be a whole number of at least 1"):
        check_counts(number=value)
    if value != "3":
        with pytest.raises(ValueError, match=r"^seed="):
            check_seed(value)
    check_counts(number=np.int64(3), other=jax.numpy.int32(2))


def test_values_in_messages_are_short():
    assert shown(None) == "none"
    assert shown(10**5000) == "a int that cannot be shown"
    assert len(shown("x" * 5000)) == 100
    assert "\n" not in shown(np.zeros((9, 9)))


def test_mutations_are_refused_in_a_sentence_or_step(capsys):
    spec = importlib.util.spec_from_file_location("mutations", FILE)
    mutations = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = mutations
    spec.loader.exec_module(mutations)
    code = mutations.main(["--number=40", "--networks=0", "--steps=0"])
    shown_text = capsys.readouterr().out
    assert code == 0, shown_text
    assert "0 traceback, 0 unnamed" in shown_text
