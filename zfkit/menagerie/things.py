"""Vehicles, furniture, plants in [-1, 1]^2; brush g, random stream r, colours c."""

import math

import numpy as np

from .animals import INK
from .raster import blob, both, circle, curve, ellipse, poly, rrect, stroke

STEEL, TYRE = (0.33, 0.33, 0.36), (0.17, 0.17, 0.2)


def rays(x, y, n, near, far, width, turn=0.0):
    """n strokes from radius near to far around (x, y)."""
    p = circle(n, turn)
    return [stroke(np.array([[x, y]]) + np.stack([q * near, q * far]), width) for q in p]


def wheel(g, x, y, s, c, name, spokes=0):
    g.fill(ellipse(x, y, s), TYRE, "wheel", shade=0.3, line=0)
    if spokes:  # spokes on a pale disc
        g.fill(ellipse(x, y, s * 0.84), c.light, "wheel", shade=0.1, line=0)
        g.fill(
            rays(x, y, spokes, s * 0.1, s * 0.86, 0.013, c.turn * 360),
            STEEL,
            "wheel",
            shade=0,
            line=0,
        )
        g.fill(ellipse(x, y, s * 0.14), STEEL, "wheel", shade=0, line=0)
    else:
        g.fill(ellipse(x, y, s * 0.6), c.metal, "wheel", shade=0.3, line=0)
        hub = np.array([[x, y]]) + circle(5, c.turn * 360) * (s * 0.36)
        dots = [ellipse(*q, s * 0.12) for q in hub.tolist()] + [ellipse(x, y, s * 0.16)]
        g.fill(dots, STEEL, "wheel", shade=0, line=0)
    g.key(name, x, y)


def vehicle(g, r, c, x0, x1):
    """Car and pickup share every part; only the place x0..x1 of the cabin differs."""
    top, s, m = r.uniform(-0.58, -0.46), r.uniform(0.23, 0.27), (x0 + x1) / 2
    roof = (x0 - 0.04, 0.1, x0, -0.05, x0 + 0.13, top + 0.03, x0 + 0.22, top - 0.03)
    roof += (x1 - 0.22, top - 0.03, x1 - 0.13, top + 0.03, x1, -0.05, x1 + 0.04, 0.1)
    g.fill(blob(poly(*roof), 4), c.base, "roof")
    front = poly(x0 + 0.09, -0.05, x0 + 0.19, top + 0.09, m - 0.04, top + 0.09, m - 0.04, -0.05)
    rear = poly(m + 0.04, -0.05, m + 0.04, top + 0.09, x1 - 0.19, top + 0.09, x1 - 0.09, -0.05)
    g.fill([front, rear], c.glass, "window", line=0.02)
    g.fill(rrect(-0.96, -0.05, 0.96, 0.4, 0.13), c.base, "body", (c.tex, c.second))
    g.fill(rrect(-0.9, 0.2, 0.9, 0.27, 0.02), c.second, "body", shade=0, line=0)
    for x in (-1.0, 0.76):
        g.fill(rrect(x, 0.28, x + 0.24, 0.42, 0.05), c.metal, "bumper", line=0.016)
    g.fill(ellipse(-0.87, 0.08, 0.08, 0.1), (1.0, 0.9, 0.5), "light", line=0.016)
    g.fill(ellipse(0.9, 0.08, 0.05, 0.09), (0.9, 0.25, 0.2), "light", line=0.016)
    g.fill(rrect(m + 0.06, 0.05, m + 0.2, 0.09, 0.02), c.dark, "body", shade=0, line=0)
    g.fill([ellipse(x, 0.42, s + 0.06) for x in (-0.52, 0.52)], c.dark, "body", shade=0, line=0)
    wheel(g, -0.52, 0.44, s, c, "front_wheel")
    wheel(g, 0.52, 0.44, s, c, "rear_wheel")
    g.key("window", m - 0.15, -0.2)


def car(g, r, c):
    vehicle(g, r, c, -0.54, 0.54)


def pickup(g, r, c):
    vehicle(g, r, c, -0.58, 0.14)


def bicycle(g, r, c):
    s, up = r.uniform(0.38, 0.43), r.uniform(-0.62, -0.5)
    front, rear, seat, head, crank = (
        (-0.55, 0.42),
        (0.55, 0.42),
        (0.22, -0.3),
        (-0.36, -0.32),
        (0.08, 0.42),
    )
    wheel(g, *rear, s, c, "rear_wheel", 10)
    wheel(g, *front, s, c, "front_wheel", 10)
    for p, q in (
        (head, front),
        (head, seat),
        (head, crank),
        (seat, crank),
        (crank, rear),
        (seat, rear),
    ):
        g.fill(stroke(poly(*p, *q), 0.042), c.base, "frame", shade=0.1, line=0.014)
    bar = curve(*head, -0.32, up, -0.5, up - 0.03, -0.62, up + 0.1)
    g.fill(stroke(bar, 0.045), c.dark, "handlebar", shade=0, line=0)
    g.fill(stroke(poly(*seat, 0.26, -0.44), 0.03), c.dark, "frame", shade=0, line=0)
    g.fill(
        blob(poly(0.04, -0.5, 0.4, -0.54, 0.46, -0.43, 0.2, -0.4)),
        c.second,
        "saddle",
        line=0.02,
    )
    g.fill(ellipse(*crank, 0.1), c.metal, "frame", line=0.014)
    g.key("saddle", 0.26, -0.46)
    g.key("handlebar", -0.45, up)


def clock(g, r, c):
    n, hands = (
        r.choice([4, 12, 12]),
        [(r.uniform(0, 360), 0.28, 0.05), (r.uniform(0, 360), 0.43, 0.036)],
    )
    g.fill(
        [stroke(poly(s * 0.4, 0.6, s * 0.56, 0.92), 0.08, 0.06) for s in (-1, 1)],
        c.dark,
        "limb",
        line=0,
    )
    for s, name in ((-1, "left_bell"), (1, "right_bell")):
        g.at(s * 0.42, -0.66, rot=s * 33).fill(ellipse(0, 0, 0.27, 0.2), c.second, "bell")
        g.key(name, s * 0.45, -0.72)
    g.fill(rrect(-0.06, -0.95, 0.06, -0.6, 0.05), c.dark, "bell", line=0)
    g.fill(ellipse(0, 0.08, 0.74), c.base, "body", (c.tex, c.second))
    g.fill(ellipse(0, 0.08, 0.58), c.white, "dial", shade=0.1, line=0.02)
    g.fill(rays(0, 0.08, n, 0.44, 0.52, 0.028), INK, "dial", shade=0, line=0)
    for angle, length, w in hands:
        a = math.radians(angle)
        p = poly(0, 0.08, length * math.sin(a), 0.08 - length * math.cos(a))
        g.fill(stroke(p, w, w * 0.6), INK, "hand", shade=0, line=0)
    g.fill(ellipse(0, 0.08, 0.065), c.accent, "hand", line=0)
    g.key("dial", 0, 0.08)


def house(g, r, c):
    w, top, peak = r.uniform(0.62, 0.74), r.uniform(-0.2, -0.08), r.uniform(-0.9, -0.72)
    x, d, s = r.choice([-0.4, 0.4]), r.choice([-0.28, 0.28]), r.uniform(0.15, 0.18)
    g.fill(
        rrect(x - 0.1, peak + 0.05, x + 0.1, top, 0.02), c.second, "wall", (c.bricks, c.dark)
    )
    g.fill(rrect(-w, top - 0.05, w, 0.85, 0.02), c.base, "wall", (c.bricks, c.light))
    p = poly(-w - 0.17, top, -w * 0.15, peak, w * 0.15, peak, w + 0.17, top)
    g.fill(p, c.second, "roof", (c.scales, c.dark))
    g.fill(rrect(-d - 0.15, 0.28, 0.15 - d, 0.85, 0.03), c.accent, "door", line=0.025)
    g.fill(ellipse(0.09 - d, 0.58, 0.03), INK, "door", shade=0, line=0)
    for i, (x, y) in enumerate(((d, 0.42), (d, 0.02), (-d, 0.02))):
        g.fill(rrect(x - s, y - 0.13, x + s, y + 0.15, 0.02), c.lamp, "window", line=0.03)
        upright, across = (
            rrect(x - 0.014, y - 0.13, x + 0.014, y + 0.15, 0.005),
            rrect(x - s, y, x + s, y + 0.028, 0.005),
        )
        g.fill([upright, across], c.white, "window", shade=0, line=0)
        g.key(f"window{i}", x, y)
    g.key("door", -d, 0.6)
    g.key("roof", 0, (top + peak) / 2)


def keyboard(g, r, c):
    rows, cols, h = r.choice([3, 4, 4]), r.choice([6, 7, 8]), r.uniform(0.42, 0.56)
    g.fill(rrect(-0.98, -h, 0.98, h, 0.1), c.base, "body", (c.tex, c.second))
    w, q, keys = 1.8 / cols, (2 * h - 0.18) / rows, []
    for j in range(rows):
        y, i = -h + 0.09 + j * q, 0
        while i < cols:
            n = 3 if j == rows - 1 and i == cols // 2 - 1 else 1  # the space bar
            keys.append(rrect(i * w - 0.88, y + 0.02, (i + n) * w - 0.92, y + q - 0.02, 0.04))
            i += n
    g.fill(keys[1:-1], c.key, "key", shade=0.12, line=0.012)
    g.fill([keys[0], keys[-1]], c.accent, "key", shade=0.12, line=0.012)
    g.key("keys", 0, 0)


def boat(g, r, c):
    lean, up = r.uniform(-0.05, 0.05), r.uniform(-0.98, -0.86)
    g.fill(stroke(poly(0, 0.45, lean, up), 0.035), c.wood, "mast", line=0.012)
    p = poly(0.07, 0.34, 0.06 + lean, up + 0.1, 0.3, up * 0.45, 0.68, 0.3, 0.4, 0.36)
    g.fill(blob(p, 5), c.light, "sail", (c.tex, c.second))
    p = poly(-0.07, 0.34, lean - 0.06, up + 0.3, -0.22, -0.2, -0.56, 0.32, -0.3, 0.37)
    g.fill(blob(p, 5), c.second, "sail")
    p = poly(-0.92, 0.42, 0, 0.45, 0.94, 0.4, 0.66, 0.8, 0.3, 0.86, -0.3, 0.86, -0.62, 0.8)
    g.fill(blob(p, 4), c.base, "hull")
    g.fill(
        poly(-0.84, 0.54, 0.86, 0.54, 0.81, 0.62, -0.78, 0.62), c.white, "hull", shade=0, line=0
    )
    g.fill(
        poly(lean, up, lean + 0.28, up + 0.08, lean, up + 0.16), c.accent, "sail", line=0.015
    )
    g.key("sail", 0.25, 0.1)
    g.key("hull", 0, 0.65)


def balloon(g, r, c):
    w, n = r.uniform(0.62, 0.72), r.choice([2, 3])
    g.fill(rrect(-0.17, 0.66, 0.17, 0.94, 0.05), c.wood, "basket", (c.bricks, c.dark))
    ropes = [stroke(poly(s * 0.24, 0.36, s * 0.15, 0.68), 0.018) for s in (-1, 1)]
    g.fill(ropes, c.dark, "rope", shade=0, line=0)
    for i, k in enumerate((1.0, 0.72, 0.42, 0.14) if n == 3 else (1.0, 0.6, 0.22)):
        v = k * w
        gore = both(0, -0.96, v * 0.72, -0.8, v, -0.36, v * 0.78, 0.08, k * 0.24, 0.42, 0, 0.44)
        g.fill(
            blob(gore), c.second if i % 2 else c.base, "gore", shade=0.25, line=0 if i else None
        )
    g.key("envelope", 0, -0.3)
    g.key("basket", 0, 0.8)


def flower(g, r, c):
    n, tip, a0 = r.choice([6, 7, 8, 9]), r.uniform(0.26, 0.32), r.uniform(0, 360)
    bend = r.uniform(-0.15, 0.15)
    g.fill(stroke(curve(0, -0.2, bend, 0.4, 0, 0.98), 0.05), c.green, "stem", line=0.02)
    for s, y in ((-1, 0.72), (1, 0.58)):
        p = poly(
            bend * 0.6, y + 0.08, s * 0.2, y - 0.16, s * 0.55, y - 0.22, s * 0.34, y + 0.06
        )
        g.fill(blob(p), c.green, "leaf", line=0.02)
    p = 1.75 / n
    petal = blob(both(p * 0.5, 0.36 + tip, p, 0.42, 0.05, 0.1), 4)
    for k in range(n):
        g.at(0, -0.32, 1.0, a0 + 360 * k / n).fill(petal, c.base, "petal", shade=0.3)
    g.fill(ellipse(0, -0.32, 0.25), c.second, "disc", (c.spots, c.dark))
    g.key("disc", 0, -0.32)


def tree(g, r, c):
    w, n, fruits = r.uniform(0.1, 0.14), r.choice([9, 10, 11]), r.choice([0, 4, 6])
    g.fill(blob(both(w, 0.0, w, 0.6, w * 2.2, 0.95)), c.wood, "trunk")
    crown, a0 = [], r.uniform(0, 360)
    for k in range(n):  # a notch, then two points of a lobe
        q = r.uniform(0.95, 1.04)
        for d, m in ((0.0, 0.665), (0.3, 0.735 * q), (0.7, 0.735 * q)):
            a = math.radians(a0 + 360 * (k + d) / n)
            crown += [m * math.cos(a), -0.3 + 0.9 * m * math.sin(a)]
    g.fill(blob(poly(*crown), 4), c.base, "crown", (c.leaves, c.light), shade=0.3)
    for _ in range(fruits):
        a, d = r.uniform(0, 6.283), r.uniform(0.1, 0.5)
        g.fill(
            ellipse(d * math.cos(a), -0.3 + d * math.sin(a), 0.075),
            c.second,
            "fruit",
            line=0.018,
        )
    g.key("crown", 0, -0.3)
    g.key("trunk", 0, 0.6)
