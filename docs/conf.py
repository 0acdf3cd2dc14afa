"""The site, for Sphinx: `make docs`. What is particular to it lies in `_ext/`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import functional_optim as fo  # noqa: E402

project = "functional-optim"
author = "The functional-optim developers"
copyright = "the functional-optim developers, MIT licence"
release = version = fo.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "site_pages",
]
exclude_patterns = ["_build", "README.md"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "functional-optim"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "siblings.html",
        "sidebar/scroll-end.html",
    ]
}
html_css_files = ["site.css"]
html_js_files = ["ranking.js"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "default"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Types of other packages have no page here; no list of theirs is fetched. Names of this package must have one.
smartquotes_action = "D"  # Dashes alone: quotation marks are those of programs.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!functional_optim\.).*"), ("py:.*", r"functional_optim\.\w+\.(\w+\.)*\w+")]
