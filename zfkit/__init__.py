"""zfkit: the helper module of the Zeiler & Fergus notebooks. The names below are kept; the rest may move."""

import sys
from importlib import import_module
from types import ModuleType

_HOMES = {
    "load_network": "weights",
    "load_or_train": "weights",
    "load_images": "datasets",
    "zfnet": "networks",
    "alexnet": "networks",
    "receptive_field": "geometry",
    "feature_maps": "deconvnet",
    "project": "deconvnet",
    "strongest": "strongest",
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


class _Package(ModuleType):
    def __setattr__(self, name, value):
        """Importing a module named like its function does not hide the function."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
