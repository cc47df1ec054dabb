"""Sphinx settings. Warnings are errors in `python3 dev.py test`, so every reference to torchdfa resolves."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring

import torchdfa

project = "torchdfa"
author = "The torchdfa authors"
copyright = "2026, The torchdfa authors"  # noqa: A001  (Sphinx's name)
version = release = torchdfa.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
# The reports are part of the tracking page.
exclude_patterns = ["_build", "results/tracking/report.md", "results/tracking-forced/report.md"]
html_theme = "furo"
html_title = f"torchdfa {release}"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # torch's docstrings refer to torch's own docs

nitpicky = True
# The docs build without a network, so only names of torchdfa itself are looked up.
nitpick_ignore_regex = [
    ("py:.*", r"(?!torchdfa\.).*"),
    ("py:class", r"torchdfa\.(convert\.M|ops\.build\.T)"),  # type variables have no page
]


def read_google_sections(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon, but not for properties, where it takes the words before a colon for a type."""
    if what not in ("property", "attribute"):
        lines[:] = GoogleDocstring("\n".join(lines), what=what, name=name, obj=obj).lines()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", read_google_sections)
