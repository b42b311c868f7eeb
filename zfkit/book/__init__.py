"""Runs chapters, cleans notebooks, renders the site: knows notebooks, never their science."""

from .pages import THUMBNAILS, VIEW, chapters, clean, faults, read, site, thumbnail, write
from .run import ROOT, Run, parameters, results, run_all, run_chapter, settings

__all__ = [
    "ROOT",
    "THUMBNAILS",
    "VIEW",
    "Run",
    "chapters",
    "clean",
    "faults",
    "parameters",
    "read",
    "results",
    "run_all",
    "run_chapter",
    "settings",
    "site",
    "thumbnail",
    "write",
]
