"""The repository holds what it says of itself: layers, light imports, README, names, style."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import score_jax as sj

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "score_jax").rglob("*.py"))
PROGRAMS = [ROOT / "main.py", *sorted((ROOT / "configs").glob("*.py"))]
TEXTS = [*MODULES, *PROGRAMS, *sorted((ROOT / "tests").glob("*.py"))]
TEXTS += sorted((ROOT / "benchmarks").glob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

# A module imports modules of earlier lines only.
LAYERS = [
    ["debugging", "typing", "progress", "exported", "reading", "writing"],
    ["data.dataset", "data.stream", "data.retry", "records", "devices"],
    ["noise", "operators", "ops.winograd", "data.layout", "checkpoint", "evaluation.metrics"],
    ["evaluation.neighbors", "evaluation.comparison", "schedule", "solvers"],
    ["network", "analytic"],
    ["continuous_score", "guidance"],
    ["posterior", "evaluation.features", "evaluation.calibration"],
    ["data.transforms", "data.examples", "data.files", "data.sources", "likelihood"],
    ["losses.dsm", "losses.ssm", "losses.implicit", "samplers.loop", "data.prepared"],
    ["data.image_sets", "evaluation.diagnostics"],
    [
        "samplers.langevin",
        "samplers.consistent",
        "samplers.grid",
        "gaussian_law",
        "models.preconditioning",
        "models.fields",
        "models.layers",
    ],
    ["samplers.ode", "samplers.predictor_corrector", "models.classifier"],
    ["evaluation.classifier"],
    ["samplers.inpainting", "samplers.interpolation", "models.refinenet", "models.unet"],
    ["models.ncsn", "models.ncsnv2", "models.mlp", "models.inception", "training"],
    ["training_log"],
    ["models.official", "fitting", "sampling", "evaluation.objective", "evaluation.densities"],
    ["models.inception_weights"],
    ["cli"],
]


def name_of(path):
    parts = path.relative_to(ROOT / "score_jax").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path):
    """Modules of this package that a file imports, at its top or anywhere inside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "score_jax":
            inside = node.module.partition(".")[2]
            for alias in node.names:
                longer = f"{inside}.{alias.name}".lstrip(".")
                exists = (ROOT / "score_jax" / (longer.replace(".", "/") + ".py")).exists()
                yield longer if exists else inside
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name.partition(".")[2] for name in names if name.startswith("score_jax"))


def layer_of(name):
    group = "cli" if name.startswith("cli.") else name
    numbers = [i for i, names in enumerate(LAYERS) if group in names]
    assert numbers, f"{name} is in no layer"
    return numbers[0]


def test_imports_run_one_way():
    """Nothing below the command imports it, and no module imports one of a later layer."""
    for path in MODULES:
        name = name_of(path)
        if path.name in ("__init__.py", "__main__.py"):
            continue
        for imported in imports_of(path):
            if name.startswith("cli.") and imported.startswith("cli"):
                continue
            assert layer_of(imported) < layer_of(name), f"{name} imports {imported}"


def test_the_modules_of_the_command_form_no_circle():
    graph = {name_of(path): set(imports_of(path)) for path in MODULES}
    graph = {name: edges for name, edges in graph.items() if name.startswith("cli.")}

    def reachable(name, seen):
        for imported in graph.get(name, ()):
            if imported not in seen:
                seen.add(imported)
                reachable(imported, seen)
        return seen

    for name in graph:
        assert name not in reachable(name, set()), f"{name} imports itself"


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("flax", ("models.",)),
        ("optax", ("training", "evaluation.classifier", "cli.")),
        ("orbax", ("checkpoint",)),
        ("diffrax", ("likelihood",)),
        ("tqdm", ("progress",)),
        ("ml_collections", ("cli.",)),
        ("absl", ("cli.",)),
        ("tensorboard", ("cli.",)),
        ("matplotlib", ("cli.",)),
        ("jinja2", ("cli.",)),
        ("PIL", ("data.files", "cli.")),
        ("tensorflow_datasets", ("data.prepared",)),
        ("torch", ("models.official",)),
    ],
)
def test_a_library_is_imported_in_its_homes_only(library, homes):
    pattern = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    users = [name_of(path) for path in MODULES if pattern.search(path.read_text())]
    assert users, f"{library} is used nowhere"
    assert not [name for name in users if not name.startswith(homes)]


def loaded_by(code):
    """Top-level names of the modules that a fresh process loads."""
    code += "\nimport sys; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


HEAVY = {
    "flax",
    "optax",
    "orbax",
    "diffrax",
    "tensorflow",
    "tensorflow_datasets",
    "ml_collections",
    "absl",
    "matplotlib",
    "PIL",
    "tensorboard",
    "tqdm",
    "torch",
}


@pytest.mark.parametrize(
    "module",
    [
        "losses.dsm",
        "losses.ssm",
        "losses.implicit",
        "samplers.langevin",
        "samplers.inpainting",
        "samplers.interpolation",
        "samplers.consistent",
        "sampling",
        "analytic",
        "schedule",
        "exported",
    ],
)
def test_a_pure_function_loads_jax_and_nothing_heavier(module):
    assert not loaded_by(f"import score_jax.{module}") & HEAVY


def test_the_package_itself_loads_nothing():
    loaded = loaded_by("import score_jax as sj; dir(sj)")
    assert not loaded & (HEAVY | {"jax", "numpy"})


def test_one_loss_loads_jax_and_two_modules_of_this_package():
    code = "import score_jax as sj; sj.annealed_dsm"
    code += (
        "\nimport sys; print(sorted(n for n in sys.modules if n.partition('.')[0] == 'score_jax'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    own = {"score_jax", "score_jax.losses", "score_jax.losses.dsm"}
    assert set(ast.literal_eval(done.stdout)) == own | {"score_jax.noise", "score_jax.typing"}


def test_every_public_name_is_there():
    for name in sj.__all__:
        assert callable(getattr(sj, name)), name
        assert name in dir(sj)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sj.nothing  # noqa: B018


def test_fit_is_the_function_whatever_was_imported_before():
    code = "import score_jax.fitting, score_jax.sampling, score_jax as sj\n"
    code += "import score_jax.cli.train\nprint(callable(sj.fit), callable(sj.sample))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "True True\n"


def test_the_map_of_the_package_is_complete():
    folders = {name_of(path).split(".")[0] for path in MODULES} - {"", "__main__"}
    described = set(re.findall(r"^    (\w+)  ", sj.__doc__, re.MULTILINE))
    assert folders == described


def readme_blocks(language):
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_program_of_the_readme_is_the_one_that_is_tested():
    """test_fit runs it, and test_export runs the block about sampler.zip."""
    from test_fit import PROGRAM

    def lines(text):
        code = [line.partition("#")[0].rstrip() for line in text.splitlines()]
        return [line for line in code if line]

    assert lines(readme_blocks("python")[0]) == lines(PROGRAM)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_and_names_of_a_page_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(((?!http|#)[^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`score_jax\.([a-z_.]+)`", text):
        path = ROOT / "score_jax" / name.replace(".", "/")
        known = name in sj.__all__ or path.is_dir() or path.with_suffix(".py").exists()
        assert known, name


def test_ci_calls_the_test_command_of_the_readme():
    command = readme_blocks("bash")[1].strip()
    assert "pytest" in command
    assert command in (ROOT / ".ci" / "run").read_text()


def test_requirements_and_imports_agree():
    lines = (ROOT / "requirements.txt").read_text().split()
    declared = {re.split(r"[<>=\[]", line)[0].lower().replace("-", "_") for line in lines}
    own_name = {
        "PIL": "pillow",
        "orbax": "orbax_checkpoint",
        "absl": "absl_py",
    }
    for path in [*MODULES, *PROGRAMS]:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module)
        roots = {name.partition(".")[0] for name in names}
        # PyTorch is an extra, for reading official checkpoints.
        for name in roots - sys.stdlib_module_names - {"score_jax", "torch"}:
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


def definitions(path):
    """Functions and classes of a file, with their docstrings."""
    kinds = ast.FunctionDef | ast.ClassDef
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def test_every_public_function_is_documented():
    for path in MODULES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


def test_no_function_is_longer_than_two_screens():
    """Counted in lines of its body, without the signature and the docstring."""
    for path in [*MODULES, *PROGRAMS]:
        for node in definitions(path):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1 if ast.get_docstring(node) and node.body[1:] else 0]
                length = node.end_lineno - first.lineno + 1
                assert length <= 80, f"{path}: {node.name} has {length} lines"


def test_lines_are_shorter_than_100_columns():
    for path in TEXTS:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) < 100, f"{path}:{number} has {len(line)} columns"


# Phrases that a reader of the field stumbles over, and docstrings that begin with a clause.
RIDDLES = (
    r"plays? no part|used up|is told|are told|not told|all the same|in the place of|lay beside"
)


def test_sentences_use_the_terms_of_the_field():
    texts = [*MODULES, *PROGRAMS, *PAGES]
    for path in texts:
        found = re.search(RIDDLES, path.read_text(), re.IGNORECASE)
        assert not found, f"{path}: {found[0]}"
    for path in [*MODULES, *PROGRAMS]:
        docs = [ast.get_docstring(ast.parse(path.read_text())) or ""]
        docs += [ast.get_docstring(node) or "" for node in definitions(path)]
        for doc in docs:
            assert not re.match(r"(What|Where|Whether|How|Of)\b", doc), f"{path}: {doc[:60]}"


def test_the_library_speaks_of_its_own_arguments():
    """Flags and config settings are named by the command only."""
    for path in MODULES:
        if not name_of(path).startswith(("cli", "__main__")):
            strings = [
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
            for text in strings:
                found = re.search(r"\bconfig\.[a-z]|--[a-z]{3,}=|main\.py", text)
                assert not found or name_of(path) == "exported", f"{path}: {text[:80]}"
