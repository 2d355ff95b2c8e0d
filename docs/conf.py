"""Settings of the documentation site; `make docs` builds it, without a network."""

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

project = "Guarded Distillation"
author = copyright = "The Guarded Distillation Authors"
release = importlib.metadata.version("guarded-distillation")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "docstrings",
    "binaries",
]
exclude_patterns = ["_build", "_ext", "results", "**.ipynb_checkpoints"]

# Markdown and notebooks. Links to a heading are GitHub's, so that the pages work there, too.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the tests run the notebooks; the site shows their stored output

# Docstrings are Google style, with Markdown's code spans.
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # what Flax says of its modules
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "code"
add_module_names = False

# Types in signatures are not linked: most are other projects', whose pages are not here.
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "navbar_persistent": [],  # the side bar has the search
}
mathjax_path = "mathjax/tex-mml-chtml.js"


def _copy_mathjax(app):
    """Puts MathJax, as an installed package has it, among the site's own files."""
    found = importlib.util.find_spec("mathjax")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("MathJax is missing: pip install django-static-mathjax, or `make docs`")
    source = Path(found.submodule_search_locations[0]) / "static" / "mathjax" / "es5"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in (mathjax_path.rpartition("/")[2], "output/chtml/fonts", "input/tex/extensions"):
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy2(source / part, target / part)


def setup(app):
    app.connect("builder-inited", _copy_mathjax)
