"""Anti-aliased polygons on numpy layers: exact along x, four sub-scanlines a pixel along y.

Shapes are arrays [N, 2] in object units, y down, or lists of such rings painted at once. On
arrays only + - * / sqrt floor rint bincount cumsum are used and vertices are rounded to 1/256
px: equal bytes everywhere.
"""

import math
from functools import cache

import numpy as np

F = np.float32
SUB = 4
PARTS = tuple(
    "none body head eye nose mouth ear muzzle limb wing fin tail wheel window bumper light roof"
    " wall door dial hand bell key hull sail mast gore basket petal disc leaf stem crown trunk"
    " fruit frame handlebar saddle rope screen".split()
)
DECOYS = tuple(
    f"stray_{kind}" for kind in "oval blob box triangle squiggle ring rosette".split()
)
DECOYS += tuple(f"front_{kind}" for kind in "post ball leaf tuft card".split())
IDS = PARTS + DECOYS  # what part maps hold: an object's parts, then what is no part of it


class Path:
    """Rings of vertices in pixels with the index of each vertex's neighbours."""

    def __init__(self, rings, m):
        sizes = np.array([len(ring) for ring in rings])
        x, y = (rings[0] if len(rings) == 1 else np.concatenate(rings)).T
        a, b, tx, c, d, ty = m
        self.xy = np.rint(np.stack([a * x + b * y + tx, c * x + d * y + ty]) * 256.0) / 256
        ends = np.cumsum(sizes)
        self.starts, self.sizes = ends - sizes, sizes
        self.after, self.before = np.arange(1, ends[-1] + 1), np.arange(-1, ends[-1] - 1)
        self.after[ends - 1], self.before[self.starts] = self.starts, ends - 1

    def outset(self, d):
        """Vertices pushed outwards by d pixels, mitred to at most twice d."""
        (x, y), (xn, yn) = self.xy, self.xy[:, self.after]
        inside = np.where(np.add.reduceat(x * yn - y * xn, self.starts) > 0, 2 * d, -2 * d)
        ex, ey = xn - x, yn - y
        length = np.sqrt(ex * ex + ey * ey) + 1e-9
        n = np.stack([ey / length, -ex / length])
        n += n[:, self.before]
        k = np.repeat(inside, self.sizes) / np.maximum(n[0] * n[0] + n[1] * n[1], 1.0)
        return np.rint((self.xy + n * k) * 256.0) / 256


def coverage(xy, after, size):
    """Covered share of each pixel, (y0, x0, float32 [h, w]); None outside the picture."""
    x, y = xy
    x0, y0 = max(math.floor(x.min()), 0), max(math.floor(y.min()), 0)
    w, h = min(math.ceil(x.max()), size) - x0, min(math.ceil(y.max()), size) - y0
    if w <= 0 or h <= 0:
        return None
    x, y = x - x0, (y - y0) * SUB - 0.5  # sub-scanline k is crossed where y passes k
    first = np.minimum(np.maximum(np.ceil(y), 0), h * SUB).astype(np.int64)
    last = first[after]
    count = np.abs(last - first)
    total = np.cumsum(count)
    if total[-1] == 0:
        return None
    slope = (x[after] - x) / np.where(count > 0, y[after] - y, 1)
    edge = np.repeat(np.arange(len(x)), count)
    row = np.arange(total[-1]) + (np.minimum(first, last) - total + count)[edge]
    cross = np.minimum(np.maximum((x - y * slope)[edge] + row * slope[edge], 0), w)
    sign = np.where(last > first, 1 / SUB, -1 / SUB)[edge]
    column = cross.astype(np.int64)
    right = sign * (cross - column)
    k, n = (row // SUB) * (w + 2) + column, h * (w + 2)
    steps = np.bincount(k, sign - right, n) + np.bincount(k + 1, right, n)
    covered = np.abs(np.cumsum(steps.reshape(h, w + 2), 1)[:, :w])
    return y0, x0, np.minimum(covered, 1).astype(F)


class Layer:
    """Premultiplied red, green, blue and alpha planes [4, S, S] and a part map [S, S]."""

    def __init__(self, size):
        self.size, self.px = size, np.zeros((4, size, size), F)
        self.parts = np.zeros((size, size), np.uint8)

    def over(self, planes):
        """Lay this layer on planes [3, S, S], in place."""
        planes *= 1 - self.px[3]
        planes += self.px[:3]

    def paint(self, box, colour, part):
        """Blend colour ([3] or [3, h, w]) into a box of coverage."""
        y0, x0, m = box
        h, w = m.shape
        q = self.px[:, y0 : y0 + h, x0 : x0 + w]
        q[:3] += m * ((colour if colour.ndim == 3 else colour[:, None, None]) - q[:3])
        q[3] += m * (1 - q[3])
        self.parts[y0 : y0 + h, x0 : x0 + w][m > 0.5] = IDS.index(part)


class Brush:
    """Paints in a frame, pixel = (a x + b y + tx, c x + d y + ty), and notes keypoints."""

    def __init__(self, layer, m, keys=None, skip=(), line=0.03, root=None):
        self.layer, self.m, self.skip, self.line = layer, m, skip, line
        self.keys = {} if keys is None else keys
        self.unit = math.sqrt(abs(m[0] * m[4] - m[1] * m[3]))  # pixels per unit
        self.root = (
            root or self
        )  # patterns live in the object's frame, so they stick to the object

    def at(self, x=0.0, y=0.0, s=1.0, rot=0.0):
        """Child frame at (x, y), scaled by s, turned by rot degrees; outlines as wide."""
        a, b, tx, c, d, ty = self.m
        k, q = math.cos(math.radians(rot)) * s, math.sin(math.radians(rot)) * s
        x, y = a * x + b * y + tx, c * x + d * y + ty
        m = (a * k + b * q, b * k - a * q, x, c * k + d * q, d * k - c * q, y)
        return Brush(self.layer, m, self.keys, self.skip, self.line / s, self.root)

    def key(self, name, x, y):
        a, b, tx, c, d, ty = self.m
        self.keys[name] = (a * x + b * y + tx, c * x + d * y + ty)

    def fill(self, shape, colour, part="none", tex=None, shade=0.22, line=None, opacity=1.0):
        """Paint outline (line wide), shape, its pattern tex = (weight, colour), shading."""
        if part in self.skip:
            return
        path = Path(shape if isinstance(shape, list) else [shape], self.m)
        line = (self.line if line is None else line) * self.unit
        colour = np.array(colour, F)
        outline = coverage(path.outset(line), path.after, self.layer.size) if line > 0 else None
        if outline:
            self.layer.paint(outline, colour * F(0.33), part)
        box = coverage(path.xy, path.after, self.layer.size)
        if box:
            y0, x0, m = box
            if tex and tex[0]:
                weight = tex[0](*self.root.local(y0, x0, m.shape), 0.7 / self.root.unit)
                colour = (
                    colour[:, None, None]
                    + (np.array(tex[1], F) - colour)[:, None, None] * weight
                )
            if shade:
                colour = colour.reshape(3, *colour.shape[1:] or (1, 1)) * ball(
                    path.xy, box, shade
                )
            self.layer.paint((y0, x0, m * F(opacity) if opacity < 1 else m), colour, part)

    def local(self, y0, x0, shape):
        """Frame coordinates (u, v) of the pixel centres of a box."""
        a, b, tx, c, d, ty = self.m
        i = [F(round(q / (a * d - b * c) * 2**24) / 2**24) for q in (d, -b, -c, a)]
        y = np.arange(shape[0], dtype=F)[:, None] + F(round((y0 + 0.5 - ty) * 256) / 256)
        x = np.arange(shape[1], dtype=F) + F(round((x0 + 0.5 - tx) * 256) / 256)
        return i[0] * x + i[1] * y, i[2] * x + i[3] * y


def ball(xy, box, k):
    """Shading of a ball lit from the upper left, over the box of the vertices."""
    square = []
    for axis, (start, n, light) in enumerate(
        ((box[1], box[2].shape[1], 0.35), (box[0], box[2].shape[0], 0.5))
    ):
        low, high = xy[axis].min().item(), xy[axis].max().item()
        u = (np.arange(n, dtype=F) + (start + 0.5 - low)) * (2 / max(high - low, 0.01)) + (
            light - 1
        )
        square.append(u * u * (k * 0.5))
    return (1 + k * 0.45) - square[0] - square[1][:, None]


@cache
def circle(n, start=0.0, turn=360.0):
    """n points on the unit circle (or n on an arc, ends included), from start degrees on."""
    step = math.radians(turn / (n if turn == 360 else n - 1))
    t = [math.radians(start) + step * i for i in range(n)]
    return np.array([(math.cos(q), math.sin(q)) for q in t])


def ellipse(x, y, rx, ry=None, rot=0.0):
    ry = rx if ry is None else ry
    px, py = circle(8 + int(28 * min(1, max(rx, ry) * 2))).T
    c, s = math.cos(math.radians(rot)), math.sin(math.radians(rot))
    return np.stack([x + c * rx * px - s * ry * py, y + s * rx * px + c * ry * py], 1)


def rrect(x0, y0, x1, y1, r=0.05):
    """Rectangle with rounded corners of radius r."""
    q = [
        (x1 - r, y0 + r, -90.0),
        (x1 - r, y1 - r, 0.0),
        (x0 + r, y1 - r, 90.0),
        (x0 + r, y0 + r, 180.0),
    ]
    return np.concatenate([np.array([x, y]) + r * circle(4, a, 90.0) for x, y, a in q])


def poly(*xy):
    return np.array(xy, float).reshape(-1, 2)


def both(*xy):
    """Mirror-symmetric outline from its right half, top to bottom (flat x, y, x, y ...)."""
    half = poly(*xy)
    left = half[::-1] * np.array([-1.0, 1.0])
    return np.concatenate([half, left[left[:, 0] < 0]])


def blob(points, k=6):
    """Closed Catmull-Rom curve through points [N, 2], k vertices each."""
    p = np.concatenate([points[-1:], points, points[:2]])
    a, b, c, d = (p[i : i + len(points), None] for i in range(4))
    t = (np.arange(k) / k)[:, None]
    cubic = (
        2 * b
        + (c - a) * t
        + (2 * a - 5 * b + 4 * c - d) * t * t
        + (3 * b - a - 3 * c + d) * t * t * t
    )
    return (cubic * 0.5).reshape(-1, 2)


def curve(*xy, k=5):
    """Open Catmull-Rom curve, to be stroked."""
    p = poly(*xy)
    return np.concatenate(
        [blob(np.concatenate([p, p[-1:], p[:1]]), k)[: (len(p) - 1) * k], p[-1:]]
    )


def stroke(p, w0, w1=None):
    """Ribbon along the points p, of half-width w0 at its start and w1 at its end."""
    w1 = w0 if w1 is None else w1
    e = np.concatenate([p[1:2] - p[:1], p[2:] - p[:-2], p[-1:] - p[-2:-1]])
    e = e / (np.sqrt(e[:, :1] * e[:, :1] + e[:, 1:] * e[:, 1:]) + 1e-9)
    n = (
        np.stack([-e[:, 1], e[:, 0]], 1)
        * (w0 + (w1 - w0) * (np.arange(len(p)) / (len(p) - 1)))[:, None]
    )
    return np.concatenate(
        [p + n, p[-1:] + e[-1:] * (w1 * 0.8), (p - n)[::-1], p[:1] - e[:1] * (w0 * 0.8)]
    )
