"""The deconvnet by the gradient route: autograd in which each ReLU has the deconvnet's backward pass."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .forward import Calls, module_at_work, place, run_to
from .normalization import contrast_normalization
from .switches import pool_with_switches, unpool

ACTIVATIONS = set(
    "relu relu_ relu6 rrelu leaky_relu prelu elu elu_ selu celu gelu silu mish softplus softsign softmax tanh"
    " log_softmax hardtanh hardtanh_ hardsigmoid hardswish hardshrink softshrink tanhshrink threshold threshold_"
    " sigmoid sigmoid_ tanh_ logsigmoid glu clamp clamp_ clamp_min clamp_min_ clip clip_ maximum minimum where"
    " exp scaled_dot_product_attention multi_head_attention_forward".split()
)


def gradient_route(net, images, name, seed, overlap, lrn, rule="deconvnet") -> Tensor:
    """The pictures of `project` for these images by autograd; seed(maps) gives the signal to start from."""
    names = {module: key for key, module in net.named_modules()}

    def ruled(function, arguments, named):
        """Call a torch function, with our own backward pass where the deconvnet has one."""
        title, layer = function.__name__, None
        if function is F.relu and isinstance(module_at_work(), nn.ReLU):
            layer = partial(_relu, rule)
        elif title in ACTIVATIONS and rule != "gradient":
            raise ValueError(f"no deconvnet rule for {title}() {place(names)}; known: modules nn.ReLU")
        elif function in (F.local_response_norm, contrast_normalization) and lrn == "skip":
            layer = partial(_skipped, function)
        elif title == "max_pool2d" and overlap == "max":
            layer = _pool_for_the_largest
        if layer is None:
            return function(*arguments, **named)
        return _OwnBackward.apply(arguments[0], lambda maps: layer(maps, *arguments[1:], **named))

    with torch.enable_grad():
        images.requires_grad_()
        with Calls(ruled):
            maps = run_to(net, images.clone(), {name})[name]  # a clone: the first layer may work in place
        return torch.autograd.grad(maps, images, seed(maps))[0]


class _OwnBackward(torch.autograd.Function):
    """A layer's own forward pass with a backward pass of our choice."""

    @staticmethod
    def forward(ctx, maps, layer):
        above, ctx.down = layer(maps)
        if above is maps:
            ctx.mark_dirty(maps)
        return above

    @staticmethod
    def backward(ctx, signal):
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


def _pool_for_the_largest(maps, *arguments, return_indices=False, **named):
    pooled, switches = pool_with_switches(maps, *arguments, **named)
    return pooled, lambda signal: unpool(signal, switches, maps.shape[2:], "max")
