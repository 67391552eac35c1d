"""The repository holds what it says of itself: layers, light imports, README, names."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import score_jax

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "score_jax").rglob("*.py"))

# Imports run from right to left only; modules of one layer do not import each other, but along CHAINS.
LAYERS = [
    ["typing", "config", "workdir", "progress", "images", "exported", "run.cache"],
    ["noise", "models.convolution"],
    [
        "schedule",
        "losses.dsm",
        "losses.ssm",
        "losses.implicit",
        "langevin",
        "inpainting",
        "interpolation",
        "consistent",
        "analytic",
    ],
    ["models.layers", "models.refinenet", "models.ncsn", "models.ncsnv2", "models.unet", "models.mlp"],
    ["training", "checkpoint", "convert", "evaluation.objective", "evaluation.neighbors"],
    ["data.dataset", "data.sources", "data.files", "data.prepared", "data.stream"],
    ["run.build"],
    ["run.job"],
    ["run.sample"],
    ["run.train", "run.export", "run.evaluate", "run.inpaint", "run.interpolate", "run.schedule", "run.figures", "run.imports"],
]
CHAINS = {
    ("inpainting", "langevin"),
    ("interpolation", "langevin"),
    ("consistent", "langevin"),
    ("models.refinenet", "models.layers"),
    ("models.ncsn", "models.refinenet"),
    ("models.ncsn", "models.layers"),
    ("models.ncsnv2", "models.refinenet"),
    ("models.ncsnv2", "models.layers"),
    ("models.unet", "models.layers"),
    ("models.mlp", "models.layers"),
    ("data.sources", "data.dataset"),
    ("data.files", "data.dataset"),
    ("data.prepared", "data.dataset"),
    ("data.prepared", "data.files"),
}


def name_of(path):
    parts = path.relative_to(ROOT / "score_jax").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path):
    """Modules of this package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "score_jax":
            inside = node.module.partition(".")[2]
            for alias in node.names:
                longer = f"{inside}.{alias.name}".lstrip(".")
                yield longer if (ROOT / "score_jax" / (longer.replace(".", "/") + ".py")).exists() else inside
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("score_jax"))


def test_imports_run_one_way():
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    for path in MODULES:
        name = name_of(path)
        if path.name == "__init__.py":
            assert not list(imports_of(path)), f"{path} imports something"
            continue
        assert name in layer, f"{name} stands in no layer"
        for imported in imports_of(path):
            lower = layer[imported] < layer[name] or (name, imported) in CHAINS
            assert lower, f"{name} imports {imported}, which is not below it"


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("flax", ("models.", "convert", "run.")),
        ("optax", ("training", "run.")),
        ("orbax", ("checkpoint",)),
        ("ml_collections", ("config",)),
        ("matplotlib", ("images",)),
        ("PIL", ("images", "data.files")),
        ("tensorflow_datasets", ("data.prepared",)),
        ("torch", ("convert",)),
        ("tensorboardX", ("run.",)),
        ("absl", ()),
    ],
)
def test_a_library_is_used_where_it_belongs(library, homes):
    for path in MODULES:
        if re.search(rf"^\s*(import|from) {library}\b", path.read_text(), re.MULTILINE):
            assert name_of(path).startswith(homes or "-"), f"{path} imports {library}"


def loaded_by(module):
    code = f"import sys; import {module}; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    return set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())


HEAVY = {
    "flax",
    "optax",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "ml_collections",
    "absl",
    "matplotlib",
    "PIL",
    "tensorboardX",
    "tqdm",
}


@pytest.mark.parametrize(
    "module",
    [
        "score_jax.losses.dsm",
        "score_jax.losses.ssm",
        "score_jax.losses.implicit",
        "score_jax.langevin",
        "score_jax.inpainting",
        "score_jax.interpolation",
        "score_jax.consistent",
        "score_jax.analytic",
        "score_jax.schedule",
        "score_jax.exported",
    ],
)
def test_a_pure_function_loads_jax_and_nothing_heavier(module):
    loaded = loaded_by(module)
    assert not loaded & HEAVY
    if module != "score_jax.schedule":
        assert "jax" in loaded


def test_the_package_itself_loads_nothing():
    assert not loaded_by("score_jax") & (HEAVY | {"jax", "numpy"})


def test_the_map_of_the_package_is_complete():
    folders = {name_of(path).split(".")[0] for path in MODULES} - {""}
    described = set(re.findall(r"^    (\w+)  ", score_jax.__doc__, re.MULTILINE))
    assert folders == described


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_lines_of_the_readme_run_as_printed():
    blocks = [block for block in readme_blocks("python") if "sampler.zip" not in block]  # that one is run by test_export
    assert len(blocks) == 2
    scope = {}
    for block in blocks:
        exec(block, scope)
    assert scope["samples"].shape == (16, 8, 8, 1)
    assert bool(jax.numpy.isfinite(scope["samples"]).all())
    assert scope["losses"].shape == (16,)


def test_ci_calls_the_test_command_of_the_readme():
    command = readme_blocks("bash")[1].strip()
    assert "pytest" in command
    assert command in (ROOT / ".ci" / "run").read_text()


def test_requirements_and_imports_agree():
    declared = {re.split(r"[<>=\[]", line)[0].lower().replace("-", "_") for line in (ROOT / "requirements.txt").read_text().split()}
    own_name = {"PIL": "pillow", "orbax": "orbax_checkpoint", "absl": "absl_py", "tensorboardX": "tensorboardx"}
    for path in [*MODULES, ROOT / "main.py", *(ROOT / "configs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            # PyTorch is an extra, wanted only by those who have an official checkpoint.
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"score_jax", "torch"}:
                assert own_name.get(name, name) in declared, f"{path} imports {name}"
    assert {
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax_checkpoint",
        "tensorflow_datasets",
        "ml_collections",
        "numpy",
        "absl_py",
        "flatbuffers",  # for jax.export
    } <= declared


def test_every_public_function_is_documented():
    for path in MODULES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


def test_no_function_is_longer_than_two_screens():
    for path in [*MODULES, ROOT / "main.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 90, f"{path}: {node.name} has {node.end_lineno - node.lineno} lines"
