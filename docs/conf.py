"""Configuration of the documentation site: python -m sphinx -W docs docs/_build."""

import sys
from pathlib import Path

import jaxrnn

sys.path.insert(0, str(Path(__file__).parent))
from reference_pages import to_rst, write_pages

project = "jaxrnn"
author = "the developers of jaxrnn"
release = version = jaxrnn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"jaxrnn {release}"
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "code"

nb_execution_mode = "force"  # every code cell runs whenever the site is built
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_show_tb = True
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give the shapes
autodoc_default_options = {"show-inheritance": False}
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):
    """Write the pages of the reference before they are read, and convert the docstrings."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "reference"))
    app.connect("autodoc-process-docstring", convert, priority=1)  # before napoleon


def convert(app, what, name, value, options, lines):
    """Convert a docstring in place."""
    lines[:] = to_rst(lines)
