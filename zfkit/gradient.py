"""The deconvnet by the gradient route: autograd, each ReLU with the deconvnet's backward pass.

A plain gradient is the deconvnet's signal through whatever is linear in the maps or only picks
among them. So the calls of torch on the way up are watched, and one that is not known to be of
this kind is refused.
"""

import inspect
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .forward import Calls, module_at_work, place, run_to
from .normalization import _Normalized, contrast_normalization
from .switches import pool_with_switches, unpool

# torch's names of functions and methods, without the last "_" of those in place
SUMS = set(  # of any number of maps: sums, and places changed
    "add sub subtract rsub __rsub__ neg negative positive sum mean cumsum cat concat"
    " concatenate stack hstack vstack flatten unflatten view view_as reshape reshape_as permute"
    " transpose swapaxes swapdims movedim moveaxis t T mT contiguous clone to cpu cuda type"
    " type_as float double half bfloat16 squeeze unsqueeze expand expand_as repeat"
    " repeat_interleave tile broadcast_to narrow select unbind chunk split split_with_sizes"
    " tensor_split index_select __getitem__ __setitem__ flip roll rot90 diagonal tril triu"
    " unfold zero copy requires_grad retain_grad".split()
)
FILTERS = set(  # of one map, which comes first
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear batch_norm"
    " instance_norm avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"
    " adaptive_avg_pool3d interpolate upsample upsample_nearest upsample_bilinear grid_sample"
    " pad fold pixel_shuffle pixel_unshuffle channel_shuffle dropout dropout1d dropout2d"
    " dropout3d alpha_dropout feature_dropout feature_alpha_dropout div divide true_divide"
    " local_response_norm contrast_normalization".split()
)
PRODUCTS = set(  # of one map with numbers and weights, in any order
    "mul multiply matmul __rmatmul__ mm bmm addmm baddbmm einsum tensordot".split()
)
POOLS = {f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in "123"}
POOLS |= {f"{pool}_with_indices" for pool in POOLS}
UNPOOLS = {"max_unpool1d", "max_unpool2d", "max_unpool3d"}
SHAPES = set(  # of a map's shape alone
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty"
    " new_tensor".split()
)
VALUES = set(  # by which a map's values leave torch's sight
    "item tolist numpy __array__ __float__ __int__ __index__ data".split()
)
KNOWN = SUMS | FILTERS | PRODUCTS | POOLS | UNPOOLS


def gradient_route(net, images, name, seed, overlap, lrn, rule="deconvnet") -> Tensor:
    """The pictures of `project` for these images by autograd; seed(maps) gives the start.

    Raises ValueError for a function of the maps that is not known to be linear in them, to pick
    among them or to be an nn.ReLU, with its place; rule "gradient" takes any.
    """
    way = _WayUp({module: key for key, module in net.named_modules()}, rule, overlap, lrn)
    with torch.enable_grad():
        below = images.requires_grad_().clone()  # the first layer may work in place
        way.maps[below] = ""
        with ExitStack() as modes:
            if rule != "gradient":
                modes.enter_context(torch.jit.optimized_execution(False))  # nothing fused
                modes.enter_context(_Unseen(way))
            modes.enter_context(Calls(way))
            maps = run_to(net, below, {name})[name]
        way.check_end(maps)
        try:
            return torch.autograd.grad(maps, images, seed(maps))[0]
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"no way back from layer {name!r}: {reason}") from error


class _WayUp:
    """Stands in for torch's calls on the way up: our own backward pass, torch's, or a refusal.

    What only looks at the maps, as a hook or an assertion does, may be anything: a function
    that is not known leaves its name with its result, and the network is refused once that
    comes to alter maps, or is the layer.
    """

    def __init__(self, names, rule, overlap, lrn):
        self.names, self.rule, self.overlap, self.lrn = names, rule, overlap, lrn
        self.maps = WeakTensorKeyDictionary()  # map -> why it has no rule, "" if it has one
        self.inside = False  # a call that is seen
        self.unseen = ""  # why to refuse, found where no exception gets through

    def __call__(self, function, arguments, named):
        if self.inside:
            return function(*arguments, **named)
        self.inside = True
        try:
            result = self.run(function, arguments, named)
            if self.rule != "gradient":
                self.check(function.__name__, _title(function), arguments, named, result)
            return result
        finally:
            self.inside = False

    def run(self, function, arguments, named):
        """Call a torch function, with our own backward pass where the deconvnet has one."""
        title = _title(function)
        if title in POOLS and "input" in named:
            arguments = (named["input"], *arguments)
            named = {key: named[key] for key in named if key != "input"}
        layer = self.own(function, title, arguments)
        if layer is None:
            return function(*arguments, **named)
        maps, *rest = arguments
        return _OwnBackward.apply(maps, lambda below: layer(below, *rest, **named))

    def own(self, function, title, arguments):
        """The layer that stands in for a function, or None."""
        if function is F.relu and isinstance(module_at_work(), nn.ReLU):
            return partial(_relu, self.rule)
        if function in (F.local_response_norm, contrast_normalization) and self.lrn == "skip":
            return partial(_skipped, function)
        if title in POOLS and "pool2d" in title and arguments[0].dim() == 4:
            if self.overlap == "max" or title.startswith("max"):
                return partial(_pool, title, self.overlap)
        elif title in POOLS and self.overlap == "max":
            where = f"{title}() {place(self.names)}"
            raise ValueError(f"no overlap='max' for {where} of these maps; valid: 'sum'")
        return None

    def check(self, called, title, arguments, named, result):
        """Mark what a call gave by what it took; refuse what alters maps in place or unseen."""
        took = [tensor for tensor in _tensors([arguments, named]) if tensor in self.maps]
        if not took or title in SHAPES:
            return
        gave = _tensors(arguments[0] if title == "__setitem__" else result)
        reason = next(filter(None, map(self.maps.get, took)), "")
        if not reason and self.unknown(title, arguments, named, took):
            reason = self.refusal(title)
        itself = called != title and any(above is took[0] for above in gave)
        altered = title == "__setitem__" or itself
        unnoticed = not (torch.is_grad_enabled() and all(above.requires_grad for above in gave))
        if title in VALUES or (altered and (reason or unnoticed)):
            raise ValueError(reason or self.refusal(called))
        for tensor in gave:
            self.maps[tensor] = reason

    def unknown(self, title, arguments, named, took) -> bool:
        """Is it neither linear in one map, nor a sum or choice of places, nor an nn.ReLU's?"""
        live = [tensor for tensor in took if tensor.requires_grad]
        if title == "relu":
            return not isinstance(module_at_work(), nn.ReLU)
        if title not in KNOWN or named.get("rounding_mode") or _draws(title, arguments, named):
            return True
        if title in SUMS:
            return len(live) < len(took)  # places or a summand of which autograd knows nothing
        if title in UNPOOLS:
            return len(live) > 1
        first = next(iter(arguments), took[0])
        return len(took) > 1 or (title not in PRODUCTS and took[0] is not first)

    def refusal(self, title) -> str:
        known = "known: nn.ReLU, and what is linear in the maps or picks among them"
        return f"no deconvnet rule for {title}() {place(self.names)}; {known}"

    def check_end(self, maps):
        """Refuse the layer if its maps came by what has no rule."""
        reason = "" if maps.requires_grad else "no gradient leads from the layer to the images"
        if self.rule != "gradient":
            foreign = next(map(_named, _foreign(maps.grad_fn)), reason)
            reason = self.unseen or self.maps.get(maps) or foreign
        if reason:
            raise ValueError(reason)


class _Unseen(TorchDispatchMode):
    """Notes what works on maps without a call of torch: scripted functions, extensions."""

    def __init__(self, way: _WayUp):
        super().__init__()
        self.way = way

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        way, seen = self.way, self.way.inside
        took = [] if seen or way.unseen else _tensors([arguments, named])
        if any(tensor in way.maps for tensor in took):
            title = function.overloadpacket.__name__
            way.unseen = way.refusal(f"a scripted function or extension with {title}")
        way.inside = True
        try:
            return function(*arguments, **(named or {}))
        finally:
            way.inside = seen


def _title(function) -> str:
    """The name of a torch function, of a property's getter that of the property."""
    title = function.__name__
    if title == "__get__":
        return function.__self__.__name__
    return title if title.startswith("__") else title.strip("_")


def _tensors(values) -> list[Tensor]:
    """All tensors among arguments or results, in their order."""
    if isinstance(values, Tensor):
        return [values]
    values = values.values() if isinstance(values, dict) else values
    if not isinstance(values, (list, tuple, type({}.values()))):
        return []
    return [tensor for value in values for tensor in _tensors(value)]


def _draws(title, arguments, named) -> bool:
    """Does it take statistics or random numbers of its own, as layers do in training mode?"""
    training = named.get("training", named.get("train", named.get("use_input_stats", False)))
    if "dropout" in title:
        training = training or arguments[2:3] == (True,)
        return training and (arguments[1:2] or (named.get("p", 0.5),))[0] > 0
    return bool(training)


def _foreign(node) -> list:
    """The torch.autograd.Functions below a node that are neither torch's nor ours."""
    ours, waiting, seen, found = (_OwnBackward, _Normalized), [node], {None}, []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting += [below for below, _ in node.next_functions]
        function = getattr(node, "_forward_cls", None)
        if function is not None and function not in ours:
            found.append(function)
    return found


def _named(function) -> str:
    code = inspect.unwrap(function.forward).__code__
    where = f"{Path(code.co_filename).name} line {code.co_firstlineno}"
    return f"no deconvnet rule for {function.__name__}, {where}: a backward pass of its own"


class _OwnBackward(torch.autograd.Function):
    """A layer's own forward pass with a backward pass of our choice for its first result."""

    @staticmethod
    def forward(ctx, maps, layer):
        above, ctx.down = layer(maps)
        if above is maps:
            ctx.mark_dirty(maps)
        if isinstance(above, tuple):
            ctx.mark_non_differentiable(*above[1:])
        return above

    @staticmethod
    def backward(ctx, signal, *_):
        return ctx.down(signal), None


def _relu(rule, maps, inplace=False):
    above = F.relu(maps, inplace)
    active = above > 0
    masks = {
        "deconvnet": lambda signal: signal.clamp(min=0),
        "guided": lambda signal: signal.clamp(min=0) * active,
        "gradient": lambda signal: signal * active,
    }
    return above, masks[rule]


def _skipped(function, maps, *arguments, **named):
    return function(maps, *arguments, **named), lambda signal: signal


def _pool(title, overlap, maps, *arguments, **named):
    adaptive = title.startswith("adaptive")
    pool, named = F.adaptive_max_pool2d if adaptive else F.max_pool2d, dict(named)
    pooled, places = pool(maps, *arguments, **named | {"return_indices": True})
    switches = places
    if not adaptive:  # a network that asks for the places gets torch's
        asked = {key.removesuffix("_size"): value for key, value in named.items()}
        asked.pop("return_indices", None)
        switches = pool_with_switches(maps, *arguments[:5], **asked)[1]
    above = (pooled, places) if title.endswith("indices") else pooled
    return above, lambda signal: unpool(signal, switches, maps.shape[2:], overlap)
