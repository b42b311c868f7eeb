"""zfkit: the helper module of the Zeiler & Fergus notebooks.

The names below are kept; the rest may move.
"""

from importlib import import_module

_HOMES = {
    "load_network": "weights",
    "load_or_train": "weights",
    "load_images": "datasets",
    "zfnet": "networks",
    "alexnet": "networks",
    "receptive_field": "fields",
    "feature_maps": "forward",
    "project": "deconvnet",
    "strongest": "search",
    "occlusion_maps": "occlusion",
    "record": "verdicts",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """The public names, imported when first used: `import zfkit` itself stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"zfkit has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"zfkit.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
