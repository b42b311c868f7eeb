"""One forward pass, watched: in eval mode, as far as it is needed, leaving nothing behind."""

import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .geometry import resolve

CHUNK = 32  # images at once, which bounds the memory


@contextmanager
def evaluating(net: nn.Module):
    """Eval mode while it lasts, then each module's own mode again; ValueError for a compiled network."""
    modes = {module: module.training for module in net.modules()}
    for module in modes:
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError(f"a compiled {type(module).__name__} hides its layers: give the plain network")
    _check_statistics(net)
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def hooked(modules, hook):
    """`hook(module, inputs, output)` is called after each of the modules while this lasts."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Reached(Exception):
    """The forward pass has come as far as it is needed."""


def run_to(net: nn.Module, images: Tensor, names: set[str], use=None) -> dict[str, Tensor]:
    """The outputs of the named modules at their first use; what lies behind the last of them is not run.

    use: called with name and output before any later layer runs; what it returns is kept instead of the output.
    Raises ValueError for images that the network cannot take and for a module that it does not run.
    """
    found = {}

    def keep(name, module, inputs, output):
        # of several, all but the last could still be changed by a layer that works in place
        if name not in found:
            found[name] = use(name, output) if use else output.clone() if len(names) > 1 else output
        if len(found) == len(names):
            raise Reached

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(hooked([net.get_submodule(name)], partial(keep, name)))
        try:
            net(images)
        except Reached:
            return found
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"no forward pass with {images.dtype} {tuple(images.shape)}: {reason}") from error
    raise ValueError(f"a forward pass does not run layer {min(names - set(found))!r}")


class Calls(TorchFunctionMode):
    """While it lasts, `call(function, arguments, named)` stands in for every call of a torch function."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def __torch_function__(self, function, types, arguments=(), named=None):
        return self.call(function, arguments, dict(named or {}))


def module_at_work() -> nn.Module | None:
    """The innermost module whose forward pass is running."""
    selves = (frame.f_locals.get("self") for frame in _frames())
    return next((module for module in selves if isinstance(module, nn.Module)), None)


def place(names: dict[nn.Module, str]) -> str:
    """Where the present torch function was called: one of torch's own modules, or function, file and line."""
    module = module_at_work()
    if module in names and type(module).__module__.startswith("torch.nn.modules.activation"):
        return f"of module {names[module]!r} ({type(module).__name__})"
    ours = (
        str(Path(torch.__file__).parent),
        *(str(Path(__file__).with_name(f"{n}.py")) for n in ("chain", "deconvnet", "gradient")),
        __file__,
    )
    frame = next(frame for frame in _frames() if not frame.f_code.co_filename.startswith(ours))
    return f"in {frame.f_code.co_qualname}, {Path(frame.f_code.co_filename).name} line {frame.f_lineno}"


def _frames():
    frame = sys._getframe(1)
    while frame := frame.f_back:
        yield frame


def feature_maps(net: nn.Module, normalized: Tensor, layers) -> dict[str, Tensor]:
    """The maps of each layer, {layer: (N, C, h, w)}, or (N, units) behind the Flatten; in eval mode.

    Of a module used more than once the first use. Raises ValueError for a layer that the network lacks.

    >>> import torch, zfkit
    >>> net = zfkit.zfnet(10, size=80, fc=(16, 16))
    >>> maps = zfkit.feature_maps(net, torch.zeros(2, 3, 80, 80), ["conv1", "fc7"])
    >>> {layer: tuple(maps[layer].shape) for layer in maps}
    {'conv1': (2, 96, 38, 38), 'fc7': (2, 16)}
    """
    check_images(normalized)
    names = {layer: resolve(net, layer) for layer in layers}
    with evaluating(net), torch.no_grad():
        chunks = [run_to(net, images, set(names.values())) for images in normalized.split(CHUNK)]
    return {layer: torch.cat([found[name] for found in chunks]) for layer, name in names.items()}


def _check_statistics(net: nn.Module):
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            reason = "it keeps no running statistics, so the images would change each other"
            raise ValueError(f"module {name!r} normalises over its batch: {reason}")


def check_images(normalized):
    """Nothing; ValueError for what is no float tensor (N, 3, H, W), N > 0."""
    tensor = isinstance(normalized, Tensor)
    kind, size = (normalized.dtype, tuple(normalized.shape)) if tensor else (type(normalized).__name__, ())
    if not tensor or not kind.is_floating_point or len(size) != 4 or not size[0]:
        raise ValueError(f"normalized must be a float tensor (N, 3, H, W), N > 0, not {kind} {size or ''}")
