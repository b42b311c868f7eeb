"""Nine families of backdrops, and things that stand in front; the picture is [0, 1]^2."""

import math

import numpy as np

from . import textures as T
from .animals import WHITE
from .raster import DECOYS, Brush, F, Layer, blob, circle, curve, ellipse, poly, rrect, stroke

HEX = (
    "e25c4a ee923e f4c44c 9ebe54 52a068 3a9c9e 62aada 4a6eba 8e70be cc6296 f0a4b0 966a48"
    " dabc94 969ca6 ece6da 5c5e6c"
)
PALETTE = [tuple(v / 255 for v in bytes.fromhex(code)) for code in HEX.split()]


def mix(a, b, t):
    return tuple(x + (y - x) * t for x, y in zip(a, b, strict=True))


def tone(r, *avoid, gap=0.3):
    """A jittered palette colour, in RGB gap away from those to avoid if 20 draws find one."""
    for _ in range(20):
        c = tuple(min(1.0, max(0.0, v + r.uniform(-0.05, 0.05))) for v in r.choice(PALETTE))
        if all(
            sum((x - y) * (x - y) for x, y in zip(c, a, strict=True)) > gap * gap for a in avoid
        ):
            break
    return c


def col(c):
    return np.array(c, F)[:, None, None]


def octaves(r, size, cells, ratio=1.0):
    """Noise of three octaves over the picture, [S, S] in 0..1."""
    layers = [(1.0, 0.55), (2.3, 0.28), (5.1, 0.17)]
    return sum(T.field(T.table(r), size, cells * k, ratio) * F(weight) for k, weight in layers)


def sky(p, g, r, a, b, y):
    p[:] = col(mix(a, (0.45, 0.7, 0.95), 0.5)) * (1 - y * F(0.4)) + y * F(0.4) * col(WHITE)
    n = octaves(r, p.shape[1], r.uniform(3, 5), 2.0)
    p += (col(WHITE) - p) * T.step(n, 0.48, 0.7) * F(0.85)


def night(p, g, r, a, b, y):
    dusk = mix(b, (0.35, 0.22, 0.42), 0.6)
    p[:] = col(mix(a, (0.08, 0.1, 0.25), 0.75)) * (1 - y * F(0.5)) + col(dusk) * y * F(0.5)
    stars = [ellipse(r.random(), r.random(), r.uniform(0.004, 0.012)) for _ in range(24)]
    g.fill(stars, (1, 0.97, 0.8), shade=0)
    x, h, q = r.uniform(0.1, 0.9), r.uniform(0.08, 0.3), r.uniform(0.06, 0.1)
    g.fill(ellipse(x, h, q * 1.5), (0.97, 0.93, 0.75), shade=0, opacity=0.08)
    g.fill(ellipse(x, h, q), (0.97, 0.93, 0.75))


def hills(p, g, r, a, b, y):
    p[:] = col(mix(a, WHITE, 0.55)) * (1 - y * F(0.15))
    for k in range(3):
        h = [
            v for i in range(8) for v in (0.2 * i - 0.2, 0.35 + 0.2 * k + r.uniform(-0.1, 0.1))
        ]
        p = np.concatenate([curve(*h), poly(1.3, 1.2, -0.3, 1.2)])
        g.fill(p, mix(b, (0.3, 0.62, 0.3), r.uniform(0.1, 0.6)), shade=0.25)


def grass(p, g, r, a, b, y):
    p[:] = col(mix(a, (0.35, 0.66, 0.3), 0.6)) * (F(1.15) - y * F(0.4))
    p *= F(0.76) + T.field(T.table(r, 64), p.shape[1], 30, 0.2) * F(0.4)
    for k in range(3):
        blades = []
        for _ in range(12):
            x, h, q = r.random(), r.random(), r.uniform(0.06, 0.14)
            blades.append(stroke(poly(x, h + q, x + r.uniform(-0.03, 0.03), h), 0.009, 0.002))
        g.fill(blades, mix(a, (0.5, 0.85, 0.4), 0.3 + 0.22 * k), shade=0)


def water(p, g, r, a, b, y):
    p[:] = col(mix(a, (0.25, 0.55, 0.8), 0.6)) * (F(1.2) - y * F(0.45))
    n = T.field(T.table(r), p.shape[1], 4)
    q = T.frac(y[0] * F(r.uniform(8, 12)) + n * F(0.9))
    p += (col(mix(a, WHITE, 0.7)) - p) * T.step(np.abs(q - F(0.5)), 0.36, 0.48) * F(0.7)


def centred(y):
    """Coordinates (u, v) in -1..1 over the picture, [S, S]."""
    return np.broadcast_arrays(y[0].T * 2 - 1, y[0] * 2 - 1)


def brick(p, g, r, a, b, y):
    p[:] = col(a) + (col(mix(b, WHITE, 0.4)) - col(a)) * T.bricks(r)(
        *centred(y), 2 / p.shape[1]
    )


def paper(p, g, r, a, b, y):
    (u, v), k = centred(y), F(r.uniform(-0.5, 0.5))
    p[:] = col(mix(a, WHITE, 0.3))
    pattern = r.choice([T.stripes, T.spots, T.scales])(r)
    p += (col(b) - p) * pattern(u + v * k, v - u * k, 2 / p.shape[1]) * F(0.8)


def plasma(p, g, r, a, b, y):
    n = octaves(r, p.shape[1], r.uniform(2.5, 5.5))
    p[:] = col(a) + (col(b) - col(a)) * T.step(n, 0.3, 0.7)


def clutter(p, g, r, a, b, y):
    top = col(mix(a, WHITE, 0.45))
    p[:] = top + (col(mix(b, a, 0.6)) - top) * y


STRAY = [name.removeprefix("stray_") for name in DECOYS if name.startswith("stray_")]
BACKDROPS = {
    f.__name__: f for f in (sky, night, hills, grass, water, brick, paper, plasma, clutter)
}


def stray(g, r, ground, gap):
    """One decoy of random colours and contrast, as salient as an object's parts at most."""
    kind = r.choice(STRAY)
    e, part = (
        g.at(r.random(), r.random(), r.uniform(0.04, 0.15), r.uniform(0, 360)),
        f"stray_{kind}",
    )
    contrast = r.uniform(0.35, 1)
    colour, other = (mix(ground, tone(r, ground, gap=gap), contrast) for _ in range(2))
    e.line = r.choice([0, 0, 0.06])
    if kind == "ring":
        for radius, c in ((1, colour), (0.6, other), (0.25, colour)):
            e.fill(ellipse(0, 0, radius), c, part, line=None if radius == 1 else 0)
    elif kind == "rosette":
        for k in range(6):
            e.at(rot=60 * k).fill(ellipse(0.6, 0, 0.45, 0.3), colour, part)
    elif kind == "oval":
        e.fill(ellipse(0, 0, 1, r.uniform(0.5, 1)), colour, part)
    elif kind == "blob":
        e.fill(
            blob(circle(6) * np.array([[r.uniform(0.5, 1)] for _ in range(6)])), colour, part
        )
    elif kind == "squiggle":
        e.fill(stroke(curve(-1, 0.3, -0.3, -0.3, 0.3, 0.3, 1, -0.3), 0.15), colour, part)
    else:
        shape = (
            rrect(-1, -0.6, 1, 0.6, 0.1) if kind == "box" else poly(0, -1, 0.9, 0.7, -0.9, 0.7)
        )
        e.fill(shape, colour, part)


def backdrop(kind, r, size, base, level):
    """Layer of a family's backdrop, its colours away from base; decoys' ids in its part map."""
    a, b = tone(r, base, gap=level["gap"]), tone(r, base, gap=level["gap"])
    layer = Layer(size)
    g = Brush(layer, (size, 0, 0, 0, size, 0), line=0)
    y = ((np.arange(size, dtype=F) + F(0.5)) / F(size))[None, :, None]
    BACKDROPS[kind](layer.px[:3], g, r, a, b, y)
    for _ in range(16 if kind == "clutter" else r.randint(0, level["stray"])):
        stray(g, r, mix(a, b, r.random()), level["gap"])
    return layer


def foreground(r, size, level):
    """Layer of the things that stand in front."""
    layer = Layer(size)
    g = Brush(layer, (size, 0, 0, 0, size, 0), line=0.008)
    for _ in range(r.choice(level["front"])):
        kind, a, x = (
            r.choice(["post", "ball", "leaf", "tuft", "card"]),
            tone(r),
            r.uniform(0.1, 0.9),
        )
        part = f"front_{kind}"
        if kind == "post":
            w = r.uniform(0.02, 0.045)
            g.fill(
                rrect(x - w, -0.1, x + w, 1.1, 0.01),
                mix(a, (0.5, 0.36, 0.25), 0.5),
                part,
                shade=0.3,
            )
        elif kind == "tuft":
            blades = []
            for k in range(-4, 5):
                tip = (x + k * 0.035 + r.uniform(-0.06, 0.06), r.uniform(0.68, 0.85))
                blades.append(stroke(poly(x + k * 0.035, 1.05, *tip), 0.022, 0.002))
            g.fill(blades, mix(a, (0.3, 0.6, 0.3), 0.7), part, shade=0, line=0.005)
        else:
            e = g.at(
                x, r.uniform(0.15, 0.9), r.uniform(0.08, level["reach"]), r.uniform(0, 360)
            )
            shape = {"ball": ellipse(0, 0, 0.8), "card": rrect(-0.8, -0.6, 0.8, 0.6, 0.08)}.get(
                kind
            )
            e.fill(
                blob(poly(-1, 0, 0, -0.45, 1, 0, 0, 0.45)) if kind == "leaf" else shape, a, part
            )
    return layer


def darken(planes, angle, amount, gains):
    """Light on planes [3, S, S], in place: a linear gradient and a gain per colour."""
    n = planes.shape[1]
    ramp = (np.arange(n, dtype=F) + F(0.5)) / F(n) - F(0.5)
    x, y = (F(round(amount * f(angle), 6)) for f in (math.cos, math.sin))
    planes *= (1 + ramp * x)[None, :] + (ramp * y)[:, None]
    planes *= col([round(v, 6) for v in gains])
