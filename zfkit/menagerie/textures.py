"""Noise and patterns.

A pattern is a function (u, v, px) -> weight in 0..1 of a second colour at the object
coordinates u, v, where px is the size of a pixel; it is made from a random stream.
"""

import numpy as np

F = np.float32


def noise_bytes(key, n):
    """n random bytes (uint8) of the stream key."""
    return np.random.Philox(key=key).random_raw(n // 8 + 1).astype("<u8").view(np.uint8)[:n]


def table(r, n=32):
    """Lattice of values in 0..1 for noise, [n, n] float32."""
    return (noise_bytes(r.getrandbits(63), n * n).astype(F) / F(255)).reshape(n, n)


def step(x, low, high):
    """0 below low, 1 above high, smooth between."""
    t = np.minimum(np.maximum((x - F(low)) / F(high - low), 0), 1)
    return t * t * (3 - 2 * t)


def frac(x):
    return x - np.floor(x)


def pick(t, i, j):
    """Lattice values at integer-valued rows i and columns j, wrapped around."""
    n = len(t)
    return t.ravel()[(i.astype(np.int32) % n) * n + j.astype(np.int32) % n]


def noise(t, u, v):
    """Value noise of table t at scattered points."""
    j, i = np.floor(u), np.floor(v)
    fu, fv = u - j, v - i
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    a, b = pick(t, i, j), pick(t, i + 1, j)
    return (a + (pick(t, i, j + 1) - a) * fu) * (1 - fv) + (
        b + (pick(t, i + 1, j + 1) - b) * fu
    ) * fv


def field(t, size, cells, ratio=1.0):
    """Value noise over a picture, cells across and ratio times as many down; separable."""
    x = (np.arange(size, dtype=F) + F(0.5)) * F(cells / size)
    y = x * F(ratio)
    j, i = np.floor(x), np.floor(y)
    fx, fy, n = x - j, (y - i)[:, None], len(t)
    fx, fy, j, i = (
        fx * fx * (3 - 2 * fx),
        fy * fy * (3 - 2 * fy),
        j.astype(int) % n,
        i.astype(int) % n,
    )
    rows = t[i] * (1 - fy) + t[(i + 1) % n] * fy
    return rows[:, j] * (1 - fx) + rows[:, (j + 1) % n] * fx


def plain(r):
    return None


def stripes(r):
    f, a, w, t = r.uniform(2.2, 4.2), r.choice([0.0, 0.2, 1.0]), r.uniform(0.1, 0.5), table(r)

    def weight(u, v, px):
        q = frac(F(f) * (u * F(1 - a) + v * F(a)) + F(w) * noise(t, u * 3 + 8, v * 3 + 8))
        return step(np.abs(q - F(0.5)) * 2, 0.44 - 1.2 * f * px, 0.56 + 1.2 * f * px)

    return weight


def spots(r):
    f, t, s = r.uniform(3.0, 5.0), table(r, 16), table(r, 16)

    def weight(u, v, px):
        u, v = u * F(f) + 16, v * F(f) + 16
        j, i = np.floor(u), np.floor(v)
        a, b = pick(t, i, j), pick(s, i, j)
        x, y = u - j - F(0.35) - a * F(0.3), v - i - F(0.35) - b * F(0.3)
        edge = np.sqrt(x * x + y * y) - F(0.12) - frac(a * 7 + b * 3) * F(0.2)
        return 1 - step(edge, -0.7 * f * px - 0.03, 0.7 * f * px + 0.03)

    return weight


def scales(r):
    f = r.uniform(5.0, 7.0)

    def weight(u, v, px):
        y = v * F(f) + 32
        i = np.floor(y)
        x, y = frac(u * F(f * 0.8) + 32 + i * F(0.5)) - F(0.5), y - i
        d = np.sqrt(x * x + y * y * F(0.7))
        return np.where(d < F(0.6), step(d, 0.3, 0.58) * F(0.75), F(0.35))

    return weight


def fur(r):
    t, f = table(r), r.uniform(4.5, 6.5)  # strands at least 3 px wide at 64 px

    def weight(u, v, px):
        bend = u + v * v * F(0.15)
        coarse = noise(t, bend * F(f) + 16, v * F(f * 0.42) + 16)
        fine = noise(t, bend * F(f * 2.1) + 16, v * F(f * 0.9) + 16)
        return step(coarse * F(0.65) + fine * F(0.35), 0.4, 0.6) * F(0.8)

    return weight


def bricks(r):
    f, t = r.uniform(5.5, 7.5), table(r, 16)

    def weight(u, v, px):
        y = v * F(f) + 32
        i = np.floor(y)
        x = u * F(f * 0.5) + 32 + i * F(0.5)
        j = np.floor(x)
        edge = np.minimum(np.minimum(x - j, 1 - x + j) * 2, np.minimum(y - i, 1 - y + i))
        joint = 1 - step(edge, 0.1 - 0.5 * f * px, 0.1 + 0.5 * f * px)
        tone = pick(t, i, j) * F(0.35)
        return tone + (1 - tone) * joint

    return weight


def leaves(r):
    t, f = table(r), r.uniform(6, 9)
    return lambda u, v, px: step(noise(t, u * F(f) + 16, v * F(f) + 16), 0.35, 0.75) * F(0.7)
