"""Mathematics as MathML, which browsers render themselves: no script, no network, no fonts.

Sphinx hands every formula to `visit`, which converts its LaTeX. A formula that cannot be converted
stops the build.
"""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def visit(translator: HTML5Translator, node: nodes.Element) -> None:
    """Writes the formula and skips the node's own text."""
    block = isinstance(node, nodes.math_block)
    formula = convert(node.astext(), display="block" if block else "inline")
    if block:
        number = node.get("number")
        label = f'<span class="eqno">({number})</span>' if number else ""
        formula = f'<div class="math-block">{formula}{label}</div>\n'
    translator.body.append(formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the renderer under the name mathml."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit, None), block_renderers=(visit, None)
    )
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
