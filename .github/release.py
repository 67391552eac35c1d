"""Prepares a checkout for a package index, where links that are relative lead nowhere.

    python .github/release.py OWNER/NAME v0.2.0

README.md gets absolute links to the pages and pictures of that tag on GitHub, and its first
command installs from the index; pyproject.toml gets the addresses of the project. The tag must be
the version of the package, of CITATION.cff and of the newest entry of CHANGELOG.md.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def versions(root: Path) -> dict[str, str]:
    """The version in each file that has one."""
    patterns = {
        "score_jax/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (\S+)$",
        "CHANGELOG.md": r"^## (\d\S+) - \d{4}-\d\d-\d\d$",
    }
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, (root / name).read_text(), re.MULTILINE)
        found[name] = match[1] if match else "none"
    return found


def absolute(text: str, repository: str, tag: str) -> str:
    """The text with links to GitHub instead of relative ones."""
    pages = f"https://github.com/{repository}/blob/{tag}/"
    pictures = f"https://raw.githubusercontent.com/{repository}/{tag}/"

    def link(match: re.Match) -> str:
        mark, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        return f"{mark}[{label}]({pictures if mark else pages}{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def addresses(repository: str) -> str:
    """The table of addresses in pyproject.toml."""
    home = f"https://github.com/{repository}"
    return (
        "\n[project.urls]\n"
        f'Source = "{home}"\n'
        f'Documentation = "{home}/tree/main/docs"\n'
        f'Changelog = "{home}/blob/main/CHANGELOG.md"\n'
        f'Issues = "{home}/issues"\n'
    )


def prepare(root: Path, repository: str, tag: str) -> None:
    """Rewrites README.md and pyproject.toml.

    Raises:
        SystemExit: If the tag is not the version of every file.
    """
    for name, version in versions(root).items():
        if tag != f"v{version}":
            raise SystemExit(f"the tag {tag} is not the version of {name}, which is {version}")
    readme, project = root / "README.md", root / "pyproject.toml"
    text = absolute(readme.read_text(), repository, tag)
    readme.write_text(text.replace("pip install -e . &&", "pip install score_jax &&"))
    project.write_text(project.read_text() + addresses(repository))


if __name__ == "__main__":
    prepare(ROOT, *sys.argv[1:])
