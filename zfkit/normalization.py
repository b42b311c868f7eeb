"""Contrast normalisation across maps: torch's LocalResponseNorm as one product of matrices."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary


class ContrastNormalization(nn.LocalResponseNorm):
    """nn.LocalResponseNorm several times as fast, by default with Krizhevsky's constants.

    Raises ValueError for a size below 1. Source: ZF 2013, Fig. 3 (without constants);
    Krizhevsky 2012, sec. 3.3.

    >>> import torch
    >>> maps = torch.full((1, 8, 1, 1), 4.0)
    >>> ContrastNormalization(beta=1.0)(maps)[0, 3].item()  # 4 / (2 + 1e-4 * 16)
    1.9984012842178345
    """

    def __init__(self, size=5, alpha=1e-4, beta=0.75, k=2.0):
        if size < 1:
            raise ValueError(
                f"size is {size!r}; valid: from 1, the number of neighbouring maps"
            )
        super().__init__(size, alpha, beta, k)

    def forward(self, maps: Tensor) -> Tensor:
        return contrast_normalization(maps, self.size, self.alpha, self.beta, self.k)


def contrast_normalization(maps: Tensor, size: int, alpha=1e-4, beta=0.75, k=1.0) -> Tensor:
    """x / (k + alpha/size * s)^beta, s the sum of x^2 over `size` neighbouring maps; as `maps`.

    maps: float (N, C, ...), in any layout, which is kept. Arguments, defaults and result as
    F.local_response_norm; under autocast bfloat16 stays bfloat16, and the power is taken in
    float32.
    Raises ValueError for maps of fewer than three dimensions and for a size below 1. ZF 2013,
    sec. 2.1 and Fig. 3.
    """
    if has_torch_function_unary(
        maps
    ):  # so that a TorchFunctionMode sees one call, as of torch's own functions
        return handle_torch_function(
            contrast_normalization, (maps,), maps, size, alpha, beta, k
        )
    if maps.dim() < 3 or size < 1:
        raise ValueError(
            f"maps must be (N, C, ...), not {tuple(maps.shape)}; size from 1, not {size!r}"
        )
    with torch.no_grad():
        density = _density(maps, size, alpha, k)
    return _Normalized.apply(maps, density, size, alpha, beta, k)


class _Normalized(torch.autograd.Function):
    """The density comes along because it is dear to make again; the power of it is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps, density, size, alpha, beta, k):
        return (maps / _power(density, beta)).to(maps.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        maps, density, *ctx.constants = inputs
        ctx.save_for_backward(maps, density)

    @staticmethod
    def backward(ctx, signal):
        (maps, density), (size, alpha, beta, k) = ctx.saved_tensors, ctx.constants
        if (
            torch.is_grad_enabled()
        ):  # a second derivative is wanted, which passes through the density too
            density = _density(maps, size, alpha, k)
        own = signal / _power(density, beta)
        others = _neighbours((own * maps / density).to(maps.dtype), size, above=False)
        below = torch.addcmul(own, maps, others, value=-2 * beta * alpha / size)
        return below.to(maps.dtype), None, None, None, None, None


def _density(maps, size, alpha, k) -> Tensor:
    sums = _neighbours(maps * maps, size)
    return sums.to(torch.promote_types(maps.dtype, torch.float32)).mul_(alpha / size).add_(k)


def _power(density, beta) -> Tensor:
    if beta != 0.75:
        return density**beta
    root = density.sqrt()
    return root * root.sqrt()


def _neighbours(maps: Tensor, size: int, above=True) -> Tensor:
    """Sum over maps c - size//2 to c + (size-1)//2 for every c; transposed if not `above`."""
    number = torch.arange(maps.shape[1], device=maps.device)
    apart = number - number[:, None]  # column (input) minus row (output)
    band = ((apart >= -(size // 2)) & (apart <= (size - 1) // 2)).to(maps.dtype)
    band = band if above else band.T
    with _no_autocast(maps.device.type):
        if maps.stride(1) == 1:  # channels_last: a map's neighbours lie side by side
            rows = maps.movedim(1, -1)
            return (rows.reshape(-1, len(band)) @ band.T).view(rows.shape).movedim(-1, 1)
        return (band @ maps.flatten(2)).view(maps.shape)


def _no_autocast(device: str):
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()
