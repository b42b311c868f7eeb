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
LIBRARIES = Path(torch.__file__).parent, Path(__file__).parent  # no user's code
SAME_VALUES = set(  # calls that leave them as they are
    "view reshape flatten squeeze unsqueeze contiguous clone to float double __get__".split()
)


@contextmanager
def evaluating(net: nn.Module):
    """Eval mode while it lasts, then each module's own mode again.

    Raises ValueError for a compiled or traced network, and for statistics of the batch.
    """
    modes = {module: module.training for module in net.modules()}
    for module in modes:
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            title = type(module).__name__
            raise ValueError(f"a compiled {title} hides its layers: give the plain network")
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
    """`hook(module, inputs, output)` is called after each of the modules while this lasts.

    inputs: a tuple, what the module was called with; by keyword too, behind the others.
    """

    def positional(module, inputs, named, output):
        return hook(module, (*inputs, *named.values()), output)

    handles = [module.register_forward_hook(positional, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Reached(Exception):
    """The forward pass has come as far as it is needed."""


def run_to(net: nn.Module, images: Tensor, names: set[str], use=None) -> dict[str, Tensor]:
    """The outputs of the named modules at their first use; what lies behind them is not run.

    names: "" is the network itself.    use: called with name and output before any later layer
    runs; what it returns is kept instead of the output.
    Raises ValueError for images that the network cannot take, for a module that it does not
    run, and for one whose output is no tensor, has not a row for each image, or differs from
    call to call.
    """
    before = _random_state(images.device)
    outputs = _run_to(net, images, names, use)
    if not torch.equal(before, _random_state(images.device)):  # or another thread drew from it
        once, again = (_run_to(net, images, names) for _ in range(2))
        for name in names:
            if not torch.equal(once[name], again[name]):
                why = "it draws random numbers in eval mode, as F.dropout(x) does"
                why += " without training=self.training"
                raise ValueError(f"{_what(name)} gives two results for the same images: {why}")
    return outputs


def _run_to(net, images, names, use=None) -> dict[str, Tensor]:
    outputs = {}

    def keep(name, module, inputs, output):
        # of several, all but the last could still be changed by a layer that works in place
        if name not in outputs:
            _check_rows(name, output, images)
            output = output.clone() if len(names) > 1 and not use else output
            outputs[name] = use(name, output) if use else output
        if len(outputs) == len(names):
            raise Reached

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(hooked([net.get_submodule(name)], partial(keep, name)))
        try:
            net(images)
        except Reached:
            return outputs
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(_no_pass(images, error)) from error
    raise ValueError(f"a forward pass does not run layer {min(names - set(outputs))!r}")


def _no_pass(images: Tensor, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"no forward pass with {images.dtype} {tuple(images.shape)}: {reason}"


def _check_rows(name: str, output, images: Tensor):
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise ValueError(f"{_what(name)} gives a {kind}, not one tensor of maps")
    if output.is_quantized:
        ask = "give the network as it was before it was quantised"
        raise ValueError(f"{_what(name)} gives {output.dtype}: {ask}")
    if output.shape[:1] != images.shape[:1]:
        rows = f"{tuple(output.shape)} for {len(images)} image{'s' * (len(images) != 1)}"
        ask = "look at its view, reshape and squeeze"
        raise ValueError(f"{_what(name)} gives {rows}, not a row for each: {ask}")


def _what(name: str) -> str:
    return f"layer {name!r}" if name else "the network"


def _random_state(device: torch.device) -> Tensor:
    """The state of the generator from which layers on this device draw."""
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def probabilities(scores: Tensor, last="") -> Tensor:
    """The probability of each class (N, classes) by what a network gives, of the same shape.

    last: the network's `last_call`; a sigmoid's values are the probabilities, class by class.
    Scores that are probabilities already (none negative, each row's sum 1 to rounding, as
    behind nn.Softmax) stay; a single score is the logit of its class, whose probability is its
    sigmoid; all others are logits of a softmax.
    """
    rounding = min(64 * torch.finfo(scores.dtype).eps, 0.01)
    many = scores.shape[1] > 1
    given = (scores >= 0).all() and ((scores.sum(1) - 1).abs() <= rounding).all()
    if last == "sigmoid" or (many and given):
        return scores
    return scores.softmax(1) if many else scores.sigmoid()


class Calls(TorchFunctionMode):
    """While it lasts, `call(function, arguments, named)` stands in for torch's functions."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def __torch_function__(self, function, types, arguments=(), named=None):
        return self.call(function, arguments, dict(named or {}))


def last_call(net: nn.Module, images: Tensor) -> str:
    """The name of the torch function that computes what the network gives, as "linear"."""
    last = ""

    def note(function, arguments, named):
        nonlocal last
        result = function(*arguments, **named)
        if isinstance(result, Tensor) and function.__name__ not in SAME_VALUES:
            last = function.__name__.strip("_")
        return result

    with Calls(note):
        run_to(net, images, {""})
    return last


def module_at_work() -> nn.Module | None:
    """The innermost module whose forward pass is running."""
    selves = (frame.f_locals.get("self") for frame in _frames())
    return next((module for module in selves if isinstance(module, nn.Module)), None)


def place(names: dict[nn.Module, str]) -> str:
    """Where the present torch function was called: a module of torch's, or the line."""
    for frame in _frames():
        code, module = frame.f_code, frame.f_locals.get("self")
        if code is _run_to.__code__:
            break
        torchs_own = type(module).__module__.startswith("torch.") and code.co_name == "forward"
        if torchs_own and isinstance(module, nn.Module) and module in names:
            return f"of module {names[module]!r} ({type(module).__name__})"
        if not any(Path(code.co_filename).is_relative_to(library) for library in LIBRARIES):
            return f"in {code.co_qualname}, {Path(code.co_filename).name} line {frame.f_lineno}"
    return "of the network"


def _frames():
    frame = sys._getframe(1)
    while frame := frame.f_back:
        yield frame


def feature_maps(net: nn.Module, normalized: Tensor, layers) -> dict[str, Tensor]:
    """The maps of each layer, {layer: (N, C, h, w)}, or (N, units) behind the Flatten.

    In eval mode; of a module used more than once the first use. Raises ValueError for a layer
    that the network lacks.

    >>> import torch, zfkit
    >>> net = zfkit.zfnet(10, size=80, fc=(16, 16))
    >>> maps = zfkit.feature_maps(net, torch.zeros(2, 3, 80, 80), ["conv1", "fc7"])
    >>> {layer: tuple(maps[layer].shape) for layer in maps}
    {'conv1': (2, 96, 38, 38), 'fc7': (2, 16)}
    """
    check_images(normalized)
    names = {layer: resolve(net, layer) for layer in layers}
    with evaluating(net), torch.no_grad():
        chunks = [
            run_to(net, images, set(names.values())) for images in normalized.split(CHUNK)
        ]
    return {
        layer: torch.cat([found[name] for found in chunks]) for layer, name in names.items()
    }


def _check_statistics(net: nn.Module):
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            reason = "it keeps no running statistics, so the images would change each other"
            raise ValueError(f"module {name!r} normalises over its batch: {reason}")


def check_images(normalized):
    """Nothing; ValueError for what is no float tensor (N, 3, H, W), N > 0."""
    tensor = isinstance(normalized, Tensor)
    kind, size = (
        (normalized.dtype, tuple(normalized.shape))
        if tensor
        else (type(normalized).__name__, ())
    )
    if not tensor or not kind.is_floating_point or len(size) != 4 or not size[0]:
        raise ValueError(
            f"normalized must be a float tensor (N, 3, H, W), N > 0, not {kind} {size or ''}"
        )
