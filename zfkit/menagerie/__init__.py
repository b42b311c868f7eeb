"""Menagerie: a seeded picture set with exact ground truth for looking inside a small network."""

from .cache import cached
from .raster import PARTS
from .scene import LEVELS, NAMES, Scene, dataset, render

__all__ = ["LEVELS", "NAMES", "PARTS", "Scene", "cached", "dataset", "render"]
