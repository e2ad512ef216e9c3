"""Settings of the documentation's site (Sphinx)."""

import contextlib
import io
import os
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import iresflow
from iresflow.cli import main

project = "iresflow"
author = "the iresflow maintainers"
copyright = "the iresflow maintainers, MIT licence"
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
highlight_language = "none"

html_theme = "furo"
html_title = f"iresflow {version}"
html_copy_source = False
html_show_sourcelink = False


class CommandHelp(SphinxDirective):
    """What ``iresflow VERB --help`` prints, without its list of all options in one sentence."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A literal block, written anew in each build."""
        self.env.note_reread()
        os.environ["COLUMNS"] = "88"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([self.arguments[0], "--help"])
        _, _, text = printed.getvalue().partition("\n\n")
        return [nodes.literal_block(text, text, language="none")]


def keep_colons(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keeps napoleon from taking a field's text before a colon for its type.

    It looks at the first line only, here one that prints nothing.
    """
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\ ")


def keep_letters(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keeps docutils from taking a single letter with a full stop for the start of a list."""
    for index, line in enumerate(lines):
        lines[index] = re.sub(r"^(\s*(?::\w+ \w+: )?)(\w\.)$", r"\1\\\2", line)


def setup(app: Sphinx) -> None:
    """Registers the directive, and what stands before and after napoleon (at 500)."""
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("autodoc-process-docstring", keep_letters, priority=600)
