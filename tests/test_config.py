import ast
import copy
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from truths import assert_mean

from score_jax import fitting, sampling
from score_jax.cli import build, settings, table
from score_jax.cli.config_files import load_config, published_configs
from score_jax.cli.settings import (
    FREE_TO_CONTINUE,
    FREE_TO_USE,
    check_same_run,
    completed,
    flatten,
    markdown,
    ncsn,
    ncsnv2,
    validate,
)
from score_jax.cli.table import MODELS, REQUIRED, SETTINGS, WHOLE_CHAIN, allowed, holds
from score_jax.noise import geometric_sigmas

ROOT = Path(__file__).parents[1]
REMOVED = object()


def digits(**changes):
    """The digits' config with dotted settings changed, or removed."""
    config = load_config("digits")
    for name, value in changes.items():
        *sections, last = name.split("__")
        section = config
        for word in sections:
            section = section[word]
        if value is REMOVED:
            del section[last]
        else:
            section[last] = value
    return config


def built(config):
    """The shape of an example and the trainer of a config."""
    data, shape = build.load_data(config["data"], needed=False)
    num_classes = data.num_classes if config["data"]["labels"] else None
    sigmas = geometric_sigmas(**config["noise"])
    model = build.build_model(config["model"], sigmas, num_classes, config["data"])
    return data, shape, build.build_trainer(config, data, model, sigmas)


NUM_PARAMETERS = {
    "cifar10": 30_117_635,
    "mnist": 7_638_657,
    "cifar10_v2": 29_694_083,
    "celeba_v2": 29_694_083,
    "lsun_church_v2": 83_445_379,
    "lsun_bedroom_v2": 83_445_379,
    "ffhq_v2": 94_132_611,
}
"""As published; the noise levels among the parameters do not count."""


@pytest.mark.parametrize("name", published_configs())
def test_every_published_config_is_valid_documented_and_builds_a_step(name):
    module = ast.parse((ROOT / "configs" / f"{name}.py").read_text())
    sheet = ast.get_docstring(module)
    command = "score-jax" if name == "digits" else f"score-jax --config={name}"
    assert re.search(rf"^Command: {command}( |$)", sheet, re.MULTILINE)
    config = load_config(name)
    validate(config)

    data, shape, trainer = built(config)
    conditional = config["data"]["labels"]
    state = build.state_shape(trainer, config["model"]["name"], shape, conditional)
    x = jax.ShapeDtypeStruct((4, *shape), np.uint8 if data is None else data.train.dtype)
    label = [jax.ShapeDtypeStruct((4,), np.int32)] if conditional else []
    after, metrics = jax.eval_shape(trainer.step, jax.random.key(0), state, x, *label)

    def kind(leaf):
        return leaf.shape, leaf.dtype

    assert jax.tree.map(kind, after) == jax.tree.map(kind, state)
    assert metrics.loss.shape == ()
    sampler = build.build_sampler(config["sampling"])
    step_size = build.build_step_size(config["sampling"], sampler, trainer.sigmas)
    if config["sampling"]["method"] in WHOLE_CHAIN:
        assert step_size is None
    else:
        assert step_size > 0

    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    sizes = [leaf.size for path, leaf in leaves if "sigmas" not in jax.tree_util.keystr(path)]
    assert sum(sizes) == NUM_PARAMETERS.get(name, sum(sizes))


@pytest.mark.parametrize("name", published_configs())
def test_a_published_config_has_the_fields_of_its_network_and_no_other(name):
    model = load_config(name)["model"]
    fields = {"name", *(field.removeprefix("model.") for field in SETTINGS if "model." in field)}
    own = {
        field
        for field in fields
        if model["name"] in (SETTINGS[f"model.{field}"].networks or {model["name"]})
    }
    assert set(model) == own


def objects_of(section):
    """The objects of the package that a section can name."""
    tables = {
        "data": [table.SOURCES],
        "model": [table.MODELS],
        "loss": [table.LOSSES, table.LEVELS],
        "sampling": [table.SAMPLERS],
    }
    for paths in tables.get(section, []):
        for path in paths.values():
            module, _, name = path.partition(":")
            yield getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", [name for name in SETTINGS if "." in name])
def test_every_setting_is_used(name):
    """By name in the command, or as an argument of what its section names or is passed to."""
    section, _, last = name.rpartition(".")
    arguments = {"training": [fitting.fit], "sampling": [sampling.sample], "noise": []}
    arguments["noise"] = [geometric_sigmas]
    functions = [*objects_of(section), *arguments.get(section, [])]
    used = {word for function in functions for word in inspect.signature(function).parameters}
    for file in (ROOT / "score_jax" / "cli").glob("*.py"):
        if file.stem in ("table", "settings"):
            continue
        nodes = ast.walk(ast.parse(file.read_text()))
        used |= {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert last in used, f"config.{name} is read nowhere"


def test_the_defaults_of_fields_are_those_of_the_networks():
    for network, path in MODELS.items():
        module, _, name = path.partition(":")
        fields = dataclasses.fields(getattr(importlib.import_module(module), name))
        defaults = {field.name: field.default for field in fields}
        own = {
            setting.rpartition(".")[2]: row.networks[network]
            for setting, row in SETTINGS.items()
            if network in row.networks
        }
        given = {"parent", "name", "sigmas", "num_levels", "num_classes"}
        assert own == {field: defaults[field] for field in defaults if field not in given}


def test_every_default_is_allowed_and_explained():
    for name, setting in SETTINGS.items():
        for default in (setting.default, *setting.networks.values()):
            assert holds(setting, default), name
        if setting.before is not REQUIRED:
            assert holds(setting, setting.before), name
        assert re.fullmatch(r"[A-Z].*\.", setting.meaning), name
        assert ("none" in setting.meaning or name == "data.name") == setting.optional, name


def test_the_page_of_settings_is_up_to_date():
    """If not, run `python -m score_jax.cli.settings > docs/configs.md`."""
    assert (ROOT / "docs" / "configs.md").read_text() == markdown()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim__lr": 1.0}, r"config\.optim\.lr is not a setting \(did you mean optim\.learning"),
        (
            {"optim__beta3": 1.0},
            r"\(did you mean .*optim\.beta2.*\?\): optim has name, learning_rate, sch",
        ),
        ({"noises": 1.0}, r"config\.noises is not a setting: the sections are data, noise, model"),
        ({"data__extra": {"a": 1}}, r"config\.data\.extra\.a is not a setting"),
        ({"noise": 3}, r"config\.noise is not a setting"),
        (
            {"noise": {}},
            r"config\.noise\.sigma_max is missing: it must be a number from 1e-6 to 1e6",
        ),
        (
            {"loss__levels": REMOVED},
            r"config\.loss\.levels is missing: it must be uniform, strat",
        ),
        ({"model__name": REMOVED}, r"config\.model\.name is missing"),
        (
            {"model__name": 3},
            r"config\.model\.name=3 must be ncsn, ncsnv2, unet or mlp, or your own",
        ),
        ({"model__name": ["unet"]}, r"config\.model\.name=\['unet'\] must be ncsn"),
        (
            {"model__name": "ncsn"},
            r"attention is not a setting: the network 'ncsn' has name, width, ",
        ),
        ({"model__width": 0}, r"config\.model\.width=0 must be an integer from 1 to 65536"),
        ({"model__data_mean": float("nan")}, r"data_mean=nan must be a number from -1e6 to 1e6"),
        ({"model__dtype": "float16"}, r"dtype='float16' must be float32 or bfloat16"),
        ({"model": {"name": "ncsn", "remat": (1, 2)}}, r"remat=\(1, 2\) must be True or False"),
        (
            {"model": {"name": "mlp", "hidden": ()}},
            r"hidden=\(\) must be a tuple such as \(128, 128",
        ),
        ({"model": {"name": "mlp", "hidden": (8, 0)}}, r"hidden=\(8, 0\) must be a tuple"),
        ({"model": {"name": "mlp", "hidden": 8}}, r"hidden=8 must be a tuple"),
        (
            {"training__num_steps": 0},
            r"config\.training\.num_steps=0 must be an integer from 1 to",
        ),
        ({"training__num_steps": 10.5}, r"config\.training\.num_steps=10\.5 must be an integer"),
        ({"training__num_steps": True}, r"num_steps=True must be an integer"),
        (
            {"training__num_steps": 2**31},
            r"num_steps=2147483648 must be an integer from 1 to 2\*\*31",
        ),
        ({"training__batch_size": 10**12}, r"batch_size=1000000000000 must be an integer"),
        ({"training__preview_every": 0}, r"preview_every=0 must be an integer .*, or none"),
        ({"seed": -1}, r"config\.seed=-1 must be an integer from 0 to 2\*\*32 - 1"),
        ({"seed": None}, r"config\.seed=none must be an integer"),
        ({"data__flip": 1}, r"config\.data\.flip=1 must be True or False"),
        ({"data__channels": 2}, r"config\.data\.channels=2 must be 1 or 3, or none"),
        ({"data__path": ""}, r"config\.data\.path='' must be a non-empty text, or none"),
        ({"optim__learning_rate": float("nan")}, r"learning_rate=nan must be a number from"),
        ({"optim__learning_rate": float("inf")}, r"learning_rate=inf must be a number from"),
        (
            {"optim__learning_rate": 1e-320},
            r"learning_rate=1e-320 must be a number from 1e-12 to 100",
        ),
        ({"optim__learning_rate": "1e-3"}, r"learning_rate='1e-3' must be a number"),
        ({"optim__clip_norm": 0.0}, r"clip_norm=0\.0 must be a number from 1e-9 to 1e9, or none"),
        ({"optim__ema_decay": 1.0}, r"ema_decay=1\.0 must be a number in \[0, 1\)"),
        ({"optim__schedule": "step"}, r"schedule='step' must be constant or cosine"),
        ({"sampling__start": "zeros"}, r"start='zeros' must be uniform, normal or data"),
        (
            {"sampling__method": "euler"},
            r"method='euler' must be annealed, consistent, langevin, ode, ",
        ),
        ({"model__name": np.zeros(3)}, r"config\.model\.name=array\(.*must be ncsn, ncsnv2, unet"),
        (
            {"loss__name": "mine"},
            r"name='mine' must be dsm, ssm, implicit, ssm_clean or implicit_clean",
        ),
        (
            {"noise__sigma_min": 2.0},
            r"num_levels=32: levels from sigma_max=1 to sigma_min=2 do not decrease",
        ),
        (
            {"noise__num_levels": 1},
            r"single level needs sigma_max=1 and sigma_min=0\.03 to be equal",
        ),
        (
            {"sampling__num_frames": 33},
            r"num_frames=33 must be at most config.noise.num_levels=32",
        ),
        (
            {"sampling__method": "annealed", "sampling__step_size": 0.1},
            r"step_size=0\.1 must be below 2 \* sigma_min\*\*2 = 0\.0018",
        ),
        (
            {"optim__warmup_steps": 5000},
            r"warmup_steps=5000 must be below config\.training\.num_steps",
        ),
        (
            {"sampling__autoguidance_step": 300},
            r"autoguidance_step=300 must be a multiple of config\.training\.checkpoint_every=500",
        ),
        (
            {"sampling__autoguidance_step": 1500},
            r"autoguidance_step=1500 .* below config\.training\.num_steps=1500, or none",
        ),
        ({"data__labels": False}, r"label_dropout=0\.1 needs config\.data\.labels=True"),
        (
            {"loss__num_references": 10},
            r"num_references=10 needs data without labels: set it to 0, or set config",
        ),
        (
            {"data__logit": True, "data__dequantize": False},
            r"logit=True needs config\.data\.dequan",
        ),
    ],
)
def test_what_is_wrong_is_named(changes, words):
    with pytest.raises(ValueError, match=words) as found:
        validate(digits(**changes))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["ssm", "implicit"])
def test_references_need_an_objective_that_takes_them(name):
    config = digits(data__labels=False, data__label_dropout=0.0, loss__num_references=10)
    build.build_loss(config["loss"])
    config["loss"]["name"] = name
    words = rf"num_references=10 needs an objective that takes references, .*name='{name}' does"
    with pytest.raises(ValueError, match=words):
        build.build_loss(config["loss"])


def test_chains_can_start_from_the_gaussian_of_the_data():
    """N(m, sigma_1^2 + d^2): data N(m, d^2) perturbed by the first noise level."""
    model = {"name": "unet", "data_mean": 0.13, "data_std": 0.3}
    start = build.build_start({"start": "data"}, geometric_sigmas(0.4, 0.1, 3), False, model)
    x = np.asarray(start(jax.random.split(jax.random.key(0), 20_000), (1,)), np.float64)[:, 0]
    assert_mean(x, 0.13)
    assert_mean((x - 0.13) ** 2, 0.4**2 + 0.3**2)


def test_that_start_needs_the_moments_of_the_data():
    words = r"start='data' needs config\.model\.data_mean and data_std, .* not set for .*'mlp'"
    with pytest.raises(ValueError, match=words):
        build.build_start({"start": "data"}, geometric_sigmas(0.4, 0.1, 3), False, {"name": "mlp"})


def test_technique_4_needs_two_levels():
    levels = {"sigma_min": 0.01, "sigma_max": 0.01, "num_levels": 1}
    single = digits(noise=levels, sampling__num_frames=0, sampling__method="annealed")
    with pytest.raises(ValueError, match="needs two or more noise levels: set the step size"):
        validate(single)
    single["sampling"]["step_size"] = 2e-5
    validate(single)


def test_whole_numbers_may_stand_for_floats_and_lists_for_tuples():
    validate(digits(noise__sigma_max=2))
    validate(digits(model={"name": "mlp", "hidden": [8, 8]}))


def test_fields_that_a_config_leaves_out_have_the_default_of_the_network():
    validate(digits(model={"name": "ncsn", "width": 8}))


OWN = {
    "data__source": ("mine:spirals", "data__turns", "turns"),
    "model__name": ("my.package:Net", "model__depth", "depth"),
    "loss__name": ("mine:robust", "loss__scale", "scale"),
    "sampling__method": ("mine:walk", "sampling__weight", "weight"),
}


@pytest.mark.parametrize("naming", OWN)
def test_a_section_that_names_an_own_object_can_hold_settings_of_its_own(naming):
    path, extra, last = OWN[naming]
    with pytest.raises(ValueError, match=f"{last} is not a setting"):
        validate(digits(**{extra: 2.0}))
    for value in (2.0, 3, "text", True, None, (1, 2), [0.5]):
        validate(digits(**{naming: path, extra: value}))
    with pytest.raises(ValueError, match=rf"{last}=nan must be finite"):
        validate(digits(**{naming: path, extra: float("nan")}))
    with pytest.raises(ValueError, match=rf"{last}=.* must be a number, text, True"):
        validate(digits(**{naming: path, extra: np.float32(1)}))


def test_published_settings_can_be_changed_section_by_section():
    config = ncsn(seed=3, data={"flip": False}, optim={"clip_norm": 1.0}).to_dict()
    validate(config)
    different = dict(flatten(config)).items() - dict(flatten(ncsn().to_dict())).items()
    assert different == {("seed", 3), ("data.flip", False), ("optim.clip_norm", 1.0)}
    assert ncsn(model={"name": "mlp"}).model.to_dict() == {"name": "mlp", "hidden": (128, 128)}
    assert ncsnv2(model={"name": "ncsnv2", "variant": "deeper"}).model.width == 128
    with pytest.raises(
        ValueError, match=r"config\.data\.flop is not a setting \(did you mean data\.fl"
    ):
        ncsn(data={"flop": True})


def test_an_optional_setting_without_a_value_keeps_its_type():
    config = ncsn()
    assert isinstance(config, ml_collections.ConfigDict)
    config.optim.clip_norm = 2
    assert config.optim.clip_norm == 2.0
    with pytest.raises(TypeError):
        ncsn().data.crop = "wide"
    config = ncsnv2()
    config.sampling.step_size = None
    validate(config)


def test_a_config_of_an_earlier_version_is_completed():
    saved = json.loads(json.dumps(digits(model={"name": "mlp", "hidden": (16,)})))
    for name, setting in SETTINGS.items():
        section, _, last = name.rpartition(".")
        if setting.before is not REQUIRED:
            saved[section].pop(last)
    saved["optim"]["clip_norm"] = 0.0
    saved["training"]["preview_every"] = 0
    saved["sampling"]["step_size"] = 0.0
    saved["data"] |= {"path": "", "size": 0}
    untouched = copy.deepcopy(saved)
    config = completed(saved)
    assert saved == untouched
    for name in ("optim.clip_norm", "training.preview_every", "sampling.step_size", "data.path"):
        section, _, last = name.partition(".")
        assert config[section][last] is None
    assert config["data"]["size"] is None
    assert config["training"]["steps_per_call"] == 1
    assert config["loss"]["projection"] == "rademacher"
    assert config["model"]["hidden"] == (16,)
    config["data"] |= {"labels": False, "label_dropout": 0.0}
    validate(config)


def test_a_saved_network_gets_the_defaults_of_fields_that_it_lacks():
    saved = json.loads(json.dumps(load_config("cifar10")))
    saved["model"] = {"name": "ncsn", "width": 8, "centered": True}
    assert completed(saved)["model"] == load_config("cifar10")["model"] | {"width": 8}


def test_another_run_is_recognised():
    saved, folder = json.loads(json.dumps(digits())), "runs/x"
    free = digits(training__num_steps=9000, sampling__num_steps=7, data__path="elsewhere")
    check_same_run(saved, free, FREE_TO_CONTINUE, folder)
    check_same_run(saved, digits(seed=4, optim__learning_rate=1.0), FREE_TO_USE, folder)
    words = (
        r"runs/x holds another run: config\.seed is 0 there and 4 here; choose another --workdir"
    )
    with pytest.raises(ValueError, match=words):
        check_same_run(saved, digits(seed=4), FREE_TO_CONTINUE, folder)
    for settings_that_differ in (FREE_TO_CONTINUE, FREE_TO_USE):
        with pytest.raises(ValueError, match=r"config\.model\.width is 64 there and 32 here"):
            check_same_run(saved, digits(model__width=32), settings_that_differ, folder)
    with pytest.raises(ValueError, match=r"batch_size is 128 there and 64 here"):
        check_same_run(saved, digits(training__batch_size=64), FREE_TO_CONTINUE, folder)
    with pytest.raises(ValueError, match=r"crop is none there and 4 here"):
        check_same_run(saved, digits(data__crop=4), FREE_TO_USE, folder)
    bare = {"name": "unet", "data_mean": 0.3, "data_std": 0.35}
    explicit = digits(model=bare | {"width": 24, "heads": 4, "groups": 4, "patch_size": 1})
    check_same_run(json.loads(json.dumps(explicit)), digits(model=bare), (), folder)
    tuples = digits(model={"name": "mlp", "hidden": (4,)})
    check_same_run(json.loads(json.dumps(tuples)), tuples, (), folder)


@pytest.mark.parametrize(("naming", "use", "resume"), [("loss__name", True, False)])
def test_settings_of_an_own_object_are_as_free_as_its_name(naming, use, resume):
    path, extra, last = OWN[naming]
    saved = digits(**{naming: path, extra: 1.0})
    other = digits(**{naming: path, extra: 2.0})
    check_same_run(saved, other, FREE_TO_USE, "runs/x")
    with pytest.raises(ValueError, match=f"{last} is 1.0 there and 2.0 here"):
        check_same_run(saved, other, FREE_TO_CONTINUE, "runs/x")


def test_flatten_names_every_leaf():
    nested = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert dict(flatten(nested)) == {"a": 1, "b.c": 2, "b.d.e": 3}
    assert dict(flatten(ncsn()))["noise.num_levels"] == 10


def test_allowed_values_in_words():
    words = {
        "optim.learning_rate": "a number from 1e-12 to 100",
        "optim.beta1": "a number in [0, 1)",
        "data.flip": "True or False",
        "data.channels": "1 or 3, or none",
        "model.hidden": "a tuple such as (128, 128) of at most 100, each an integer from 1 to "
        "65536",
    }
    assert {name: allowed(SETTINGS[name]) for name in words} == words


def test_settings_module_writes_the_page(capsys):
    spec = importlib.util.find_spec("score_jax.cli.settings")
    source = Path(spec.origin).read_text()
    exec(compile(source, spec.origin, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == settings.markdown()
