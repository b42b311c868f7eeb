"""Dog, cat, rabbit, bear, owl, fish: each draws on brush g by random stream r and colours c.

A frontal face is turned a little by yaw in -1..1: its features move towards that side, the far
eye and ear narrow, the ears (behind the axis of the head) move the other way.
"""

from .raster import blob, both, curve, ellipse, poly, rrect, stroke

WHITE, INK, PINK = (0.98, 0.97, 0.94), (0.11, 0.10, 0.13), (0.94, 0.57, 0.60)
SIDES = ((-1, "left_"), (1, "right_"))


def eye(g, x, y, s, c, name, look=(0, 0), narrow=1.0, slit=False):
    ix, iy = x + look[0] * s * 0.2, y + look[1] * s * 0.2
    g.fill(ellipse(x, y, s * narrow, s * 1.08), c.white, "eye", shade=0.1)
    g.fill(ellipse(ix, iy, s * 0.68 * narrow, s * 0.7), c.iris, "eye", shade=0.3, line=0)
    g.fill(
        ellipse(ix, iy, s * (0.22 if slit else 0.43) * narrow, s * 0.54),
        INK,
        "eye",
        shade=0,
        line=0,
    )
    glints = [
        ellipse(ix - s * 0.23, iy - s * 0.27, s * 0.21),
        ellipse(ix + s * 0.24, iy + s * 0.3, s * 0.11),
    ]
    g.fill(glints, (1, 1, 1), "eye", shade=0, line=0)
    g.key(name, x, y)


def torso(g, c, tex):
    g.fill(blob(both(0.34, 0.25, 0.52, 0.7, 0.4, 0.98)), c.base, "body", tex)
    g.fill(ellipse(0, 0.74, 0.27, 0.25), c.light, "body", shade=0.1, line=0)
    g.fill([ellipse(s * 0.27, 0.95, 0.19, 0.11) for s in (-1, 1)], c.base, "limb")
    for s in (-1, 1):
        g.fill(ellipse(s * 0.47, 0.6, 0.12, 0.25, s * 14), c.base, "limb", tex)


def smile(g, x, y, c, tongue, teeth):
    if tongue:
        p = poly(
            x - 0.08,
            y + 0.18,
            x + 0.08,
            y + 0.18,
            x + 0.09,
            y + 0.33,
            x,
            y + 0.39,
            x - 0.09,
            y + 0.33,
        )
        g.fill(blob(p), c.pink, "mouth", line=0.015)
    if teeth:
        g.fill(
            rrect(x - 0.075, y + 0.17, x + 0.075, y + 0.31, 0.02),
            c.white,
            "mouth",
            shade=0,
            line=0.014,
        )
    for s in (-1, 1):
        lip = curve(
            x, y + 0.09, x + s * 0.04, y + 0.19, x + s * 0.12, y + 0.2, x + s * 0.19, y + 0.13
        )
        g.fill(stroke(lip, 0.024, 0.018), INK, "mouth", shade=0, line=0)


def snout(g, x, y, c, oval):
    if oval:
        g.fill(ellipse(x, y + 0.01, 0.165, 0.12), INK, "nose", shade=0.3, line=0)
        g.fill(
            ellipse(x - 0.045, y - 0.03, 0.05, 0.028),
            (0.75, 0.75, 0.8),
            "nose",
            shade=0,
            line=0,
        )
    else:
        p = both(0, -0.08, 0.13, -0.06, 0.06, 0.05, 0, 0.095) + poly(x, y)
        g.fill(blob(p, 3), c.nose, "nose", line=0.016)
    g.key("nose", x, y + 0.01)


def face(g, r, c, ears, behind=True, muzzle=0.27, oval=False, eyes=0.155, slit=False, **extra):
    """Sitting animal, seen from the front; ears(g, c, w, h, yaw) draws behind or before it.

    extra: patch (side of one round an eye), tongue and teeth (their probabilities).
    """
    tex, yaw, tilt = (c.tex, c.second), r.uniform(-1, 1), r.uniform(-9, 9)
    look = (r.uniform(-1, 1), r.uniform(-0.6, 0.8))
    w, h, apart = r.uniform(0.65, 0.73), r.uniform(0.53, 0.59), r.uniform(0.26, 0.30)
    tongue, teeth = (r.random() < extra.get(name, 0) for name in ("tongue", "teeth"))
    torso(g, c, tex)
    g, x, y = g.at(0, -0.1, rot=tilt), yaw * 0.1, 0.12
    if behind:
        ears(g, c, w, h, yaw)
    g.fill(
        blob(both(0, -h, w * 0.72, -h * 0.74, w, 0.05, w * 0.7, h * 0.82, 0, h)),
        c.base,
        "head",
        tex,
    )
    if not behind:
        ears(g, c, w, h, yaw)
    if patch := extra.get("patch"):
        g.fill(
            ellipse(x + patch * 0.28, -0.13, 0.24, 0.29), c.second, "head", shade=0.1, line=0
        )
    cheeks = [ellipse(x + s * 0.42, 0.16, 0.11, 0.075) for s in (-1, 1)]
    g.fill(cheeks, c.pink, "head", shade=0, line=0, opacity=0.6)
    g.fill(
        ellipse(x * 1.25, y + 0.14, muzzle, muzzle * 0.8),
        c.light,
        "muzzle",
        shade=0.15,
        line=0.012,
    )
    smile(g, x * 1.45, y, c, tongue, teeth)
    if slit:  # a cat: three whiskers a side
        ends = [
            (x + s * 0.17, y + 0.12 + k * 0.03, x + s * 0.6, y + 0.1 + k * 0.11)
            for s in (-1, 1)
            for k in (-1, 0, 1)
        ]
        g.fill(
            [stroke(poly(*p), 0.016, 0.009) for p in ends], c.dark, "muzzle", shade=0, line=0
        )
    for s, side in SIDES:
        far = max(0, s * yaw)
        eye(
            g,
            x + s * apart * (1 - 0.1 * far),
            -0.12,
            eyes,
            c,
            side + "eye",
            look,
            1 - 0.16 * far,
            slit,
        )
    snout(g, x * 1.45, y, c, oval)


def dog(g, r, c):
    drop, out, patch = r.uniform(0.3, 0.5), r.uniform(0.0, 0.14), r.choice([0, 0, -1, 1])

    def ears(g, c, w, h, yaw):
        for s, side in SIDES:
            e = g.at(-0.03 * yaw)
            k = out - 0.1 * max(0, s * yaw)
            p = (s * w * 0.5, -h * 0.88, s * (w + 0.02), -h * 0.75, s * (w + 0.15 + k), -0.02)
            p += (s * (w + 0.1 + k), drop, s * (w - 0.1 + k), drop - 0.05, s * (w - 0.12), -0.1)
            e.fill(blob(poly(*p)), c.second, "ear")
            e.key(side + "ear", s * (w + 0.04 + k / 2), 0.0)

    face(g, r, c, ears, False, 0.33, True, 0.15, tongue=0.6, patch=patch)


def cat(g, r, c):
    up, lean = r.uniform(0.3, 0.42), r.uniform(0.0, 0.1)

    def ears(g, c, w, h, yaw):
        for s, side in SIDES:
            e = g.at(-0.06 * yaw)
            x, y = s * (w * 0.72 + lean), -h - up
            e.fill(poly(s * w * 0.2, -h * 0.8, x, y, s * w * 0.99, -h * 0.35), c.base, "ear")
            p = poly(s * w * 0.38, -h * 0.85, x * 0.99, y + up * 0.3, s * w * 0.86, -h * 0.5)
            e.fill(p, c.pink, "ear", line=0)
            e.key(side + "ear", x * 0.95, y + up * 0.7)

    face(g, r, c, ears, True, 0.23, False, 0.175, True)


def rabbit(g, r, c):
    tall, fold, lean = r.uniform(0.52, 0.64), r.choice([0, 0, 1]), r.uniform(6, 20)

    def ears(g, c, w, h, yaw):
        for s, side in SIDES:
            e = g.at(
                s * 0.26 - 0.06 * yaw,
                -h * 0.72,
                1.0,
                s * (lean + (26 if fold and s > 0 else 0)),
            )
            e.fill(blob(both(0.09, -tall, 0.16, -tall * 0.5, 0.1, 0.1)), c.base, "ear")
            e.fill(
                blob(both(0, -tall * 0.9, 0.08, -tall * 0.5, 0.05, 0)), c.pink, "ear", line=0
            )
            e.key(side + "ear", 0, -tall * 0.55)

    face(g, r, c, ears, teeth=0.5)


def bear(g, r, c):
    size = r.uniform(0.17, 0.22)

    def ears(g, c, w, h, yaw):
        for s, side in SIDES:
            x = s * w * 0.74 - 0.06 * yaw
            g.fill(ellipse(x, -h * 0.85, size), c.base, "ear")
            g.fill(ellipse(x, -h * 0.85, size * 0.58), c.pink, "ear", line=0)
            g.key(side + "ear", x + s * w * 0.06, -h - size * 0.4)

    face(g, r, c, ears, teeth=0.5)


def owl(g, r, c):
    w, look, yaw = r.uniform(0.56, 0.66), (r.uniform(-1, 1), r.uniform(-1, 1)), r.uniform(-1, 1)
    tuft, apart, lift = r.uniform(0.16, 0.28), r.uniform(0.25, 0.28), r.uniform(0, 14)
    g.fill([ellipse(s * 0.2, 0.93, 0.16, 0.08) for s in (-1, 1)], c.horn, "limb")
    body = both(0, -0.78, w * 0.8, -0.72, w, -0.2, w * 1.02, 0.4, w * 0.6, 0.88, 0, 0.95)
    g.fill(blob(body), c.base, "body", (c.tex, c.second))
    belly = both(0, 0.02, w * 0.62, 0.15, w * 0.55, 0.65, 0, 0.85)
    g.fill(blob(belly), c.light, "body", (c.scales, c.second), 0.1, 0.01)
    for s, side in SIDES:
        e = g.at(s * (w + 0.02), 0.02, rot=-s * lift)
        p = poly(
            -s * 0.06, -0.15, s * 0.1, -0.02, s * 0.12, 0.4, -s * 0.04, 0.75, -s * 0.16, 0.3
        )
        e.fill(blob(p), c.second, "wing")
        x = -0.04 * yaw
        p = poly(
            x + s * w * 0.35, -0.68, x + s * w * 0.95, -0.78 - tuft, x + s * w * 0.92, -0.5
        )
        g.fill(p, c.second, "ear")
        g.key(side + "ear", x + s * w * 0.8, -0.74)
    x = 0.06 * yaw
    for s, side in SIDES:
        far = max(0, s * yaw)
        g.fill(
            ellipse(x + s * apart, -0.36, 0.28 - 0.03 * far, 0.28),
            c.light,
            "head",
            shade=0.1,
            line=0.02,
        )
        eye(g, x + s * apart, -0.36, 0.2, c, side + "eye", look, 1 - 0.12 * far)
    p = both(0, -0.3, 0.09, -0.26, 0.03, -0.1, 0, -0.04) + poly(x * 1.4, 0)
    g.fill(blob(p, 3), c.horn, "nose", line=0.018)
    g.key("nose", x * 1.4, -0.17)


def fish(g, r, c):
    h, tail = r.uniform(0.42, 0.56), r.uniform(0.3, 0.44)
    look = (r.uniform(-1, 1), r.uniform(-1, 1))
    p = poly(0.5, 0.02, 0.72, -tail * 0.6, 0.98, -tail, 0.88, 0, 0.98, tail, 0.72, tail * 0.6)
    g.fill(blob(p), c.second, "tail")
    g.fill(
        blob(poly(-0.2, -h * 0.8, 0.05, -h - 0.3, 0.42, -h - 0.12, 0.4, -h * 0.4)),
        c.second,
        "fin",
    )
    g.fill(blob(poly(0.0, h * 0.8, 0.28, h + 0.22, 0.38, h * 0.5)), c.second, "fin")
    back = (-0.95, 0.04, -0.7, -h * 0.66, -0.2, -h, 0.35, -h * 0.6)
    p = poly(*back, 0.66, 0, 0.35, h * 0.6, -0.2, h, -0.7, h * 0.66)
    g.fill(blob(p), c.base, "body", (c.scales, c.second))
    p = poly(
        -0.94,
        0.04,
        -0.7,
        -h * 0.62,
        -0.42,
        -h * 0.84,
        -0.32,
        0,
        -0.42,
        h * 0.84,
        -0.7,
        h * 0.62,
    )
    g.fill(blob(p), c.light, "head", line=0.012)
    g.fill(blob(poly(-0.2, 0.08, 0.12, 0.02, 0.2, 0.2, -0.02, 0.3)), c.second, "fin", line=0.02)
    g.fill(ellipse(-0.52, 0.16, 0.09, 0.06), c.pink, "head", shade=0, line=0, opacity=0.6)
    g.fill(
        stroke(curve(-0.9, 0.14, -0.76, 0.21, -0.64, 0.15), 0.026),
        INK,
        "mouth",
        shade=0,
        line=0,
    )
    eye(g, -0.58, -0.12, 0.16, c, "left_eye", look)
    g.key("mouth", -0.8, 0.17)
    g.key("tail", 0.8, 0)
