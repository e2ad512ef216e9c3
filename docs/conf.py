"""Settings of the documentation's site (Sphinx)."""

import iresflow

project = "iresflow"
author = "the authors of iresflow"
copyright = "the authors of iresflow, MIT licence"
version = release = iresflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Pages are Markdown; any heading down to the third level can be linked to.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings: sections of napoleon; single backticks mean code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 70
add_module_names = False

exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"iresflow {version}"
html_copy_source = False
html_show_sourcelink = False
