"""Sphinx configuration: `python -m sphinx -W docs build/site` builds the site, offline."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from score_jax import __version__  # noqa: E402

project = "score_jax"
author = "The score_jax authors"
copyright = "2026, the score_jax authors"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "mathml",
]
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # Outputs are stored; tests/test_notebooks.py runs the cells.
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # The signature shows them already.
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False  # Shapes such as "batch *shape" are no reStructuredText.
nitpicky = False

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "score_jax"
html_static_path = ["_static"]
html_css_files = ["score_jax.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "tango"
pygments_dark_style = "native"
