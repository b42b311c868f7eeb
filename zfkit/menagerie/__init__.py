"""Menagerie: seeded pictures with exact ground truth for looking inside a small network."""

from .cache import cached, cached_scenes
from .raster import DECOYS, IDS, PARTS
from .scene import LEVELS, NAMES, Scene, dataset, render

__all__ = [
    "DECOYS",
    "IDS",
    "LEVELS",
    "NAMES",
    "PARTS",
    "Scene",
    "cached",
    "cached_scenes",
    "dataset",
    "render",
]
