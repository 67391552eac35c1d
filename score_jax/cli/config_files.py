"""Finds and loads config files: the published ones by name, others by path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from score_jax.cli.settings import plain
from score_jax.reading import expanded


def config_folder() -> Path:
    """The folder of the published configs: within the installed package, or beside it."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def published_configs() -> list[str]:
    """Names of the published configs."""
    return sorted(path.stem for path in config_folder().glob("*.py"))


def load_config(name: str) -> dict[str, Any]:
    """The config of a file.

    Args:
        name: Path of a Python file, or name of a published config; what follows a colon is passed
            to its get_config.

    Raises:
        ValueError: If there is no such file, or it does not give a config.
    """
    path, _, variant = name.partition(":")
    file = _find_config(Path(path))
    scope = {"__name__": file.stem, "__file__": str(file)}
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), scope)
        if "get_config" not in scope:
            raise NameError("it defines no function get_config")
        config = scope["get_config"](*([variant] if variant else []))
    except Exception as error:  # The file's own code can raise anything.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"--config={name}: {file} cannot be loaded ({reason})") from error
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise ValueError(
            f"--config={name}: get_config() must return an ml_collections.ConfigDict, got "
            f"{type(config).__name__}"
        )
    return plain(config)


def _find_config(path: Path) -> Path:
    """The file of a config: a path, or the name of a published one with or without `.py`."""
    if path.suffix == ".py" and expanded(path).is_file():
        return expanded(path)
    if path.suffix in ("", ".py") and path.parent in (Path(), Path("configs")):
        published = config_folder() / f"{path.stem}.py"
        if published.is_file():
            return published
    names = ", ".join(published_configs())
    raise ValueError(
        f"--config={path} is neither a Python file nor a published config: choose among {names}"
    )
