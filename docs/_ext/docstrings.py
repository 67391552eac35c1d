"""Docstrings as the package writes them, plain text in Google style, to reStructuredText.

- `name` in single backticks becomes code.
- An indented block outside of a section (Args, Returns, ...) is a formula: a literal block.
- The characters * | and a trailing _ stand for themselves.
"""

import re
from typing import Any

from sphinx.application import Sphinx

SECTIONS = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Examples):$")
CODE = re.compile(r"(`[^`]+`)")


def _escaped(line: str) -> str:
    parts = CODE.split(line)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"`{part}`"
        else:
            parts[i] = re.sub(r"([*|\\])|(?<=\w)_(?!\w)", lambda m: "\\" + m[0], part)
    return "".join(parts)


def convert(lines: list[str]) -> list[str]:
    """The lines in reStructuredText."""
    found: list[str] = []
    section, formula = "", False
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            section = line if SECTIONS.match(line) else ""
            if formula:
                found.append("")
            formula = False
        if section.startswith("Example") or line.lstrip().startswith(">>>"):
            found.append(line)
            continue
        if indented and not section and not formula:
            found += ["", ".. code-block:: text", ""]
            formula = True
        found.append(line if formula else _escaped(line))
    return found


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Converts the docstring of a public object in place, before napoleon reads it."""
    lines[:] = convert(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the conversion."""
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
