"""Explorers for Jupyter: pure functions that draw (`render_*`), and thin ipywidgets shells over them.

What the modules here list in their ``__all__`` is the public face; `checks` and `course` stand beside it.

Example:
    >>> from wsss_nb.teach import SimilarityExplorer
    >>> SimilarityExplorer("coffee")
"""
# ruff: noqa: F403 -- each name is listed once, in its module

from wsss_nb.teach.cam import *
from wsss_nb.teach.explorer import *
from wsss_nb.teach.lessons import *
from wsss_nb.teach.photos import *
from wsss_nb.teach.pictures import *
from wsss_nb.teach.sampling import *
from wsss_nb.teach.similarity import *
from wsss_nb.teach.walk import *
