"""The documentation as a site: `make docs` builds it, with warnings as errors."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "X-CLR Graph"
copyright = "the X-CLR Graph authors"
release = metadata.version("xclr-graph")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "messages", "outside", "backticks"]
exclude_patterns = ["_build", "study/**"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# A page may begin below level one, and code of a block need not be what its language says.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
# What the site needs not load to describe a signature.
nitpicky = False

html_theme = "furo"
html_title = "X-CLR Graph"

# `make links` asks every address outside once; sites that know no robots answer with these.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_allowed_redirects = {r".*": r".*"}
linkcheck_anchors = False
