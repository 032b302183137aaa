"""Sphinx's configuration: ``make docs`` builds the pages, warnings are errors."""

from sb3_bn_ddpg import __version__

project = "sb3-bn-ddpg"
author = "the sb3-bn-ddpg developers"
copyright = "2026, the sb3-bn-ddpg developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "examples"]

html_theme = "furo"
html_title = f"sb3-bn-ddpg {release}"

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page made of the repository's own README starts below the first level

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
copybutton_exclude = ".linenos, .gp, .go"
