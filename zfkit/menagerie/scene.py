"""One picture with its ground truth, and the same picture with one thing changed."""

import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from . import animals, things
from . import textures as T
from .animals import INK, PINK, WHITE
from .backdrops import BACKDROPS, backdrop, darken, foreground, mix, tone
from .raster import PARTS, Brush, F, Layer

NAMES = tuple(
    "dog cat rabbit bear owl fish car pickup bicycle clock house keyboard boat balloon flower"
    " tree".split()
)
CONTEXT = {
    "boat": "water",
    "balloon": "sky",
}  # the one stated correlation, with probability 0.85
LEVELS = {
    "standard": dict(
        scale=(0.50, 0.92), rotation=20, slack=0.06, front=(0, 0, 1, 1, 2), reach=0.15, stray=3,
        gap=0.15, gain=(0.75, 1.15), gradient=(0, 0.45), tint=0.10, noise=(0, 8), blur=0.3,
        grey=0.05,
    ),
    "hard": dict(
        scale=(0.36, 0.92), rotation=32, slack=0.10, front=(0, 1, 2, 2, 3), reach=0.20, stray=6,
        gap=0.0, gain=(0.5, 1.25), gradient=(0.1, 0.7), tint=0.16, noise=(8, 36), blur=0.5,
        grey=0.15,
    ),
}  # fmt: skip
SHOW = ("all", "background")
POSE = ("dx", "dy", "scale", "rotation", "flip")


@dataclass
class Scene:
    """A picture of size S and what is true of it.

    image uint8 [S, S, 3]; parts uint8 [S, S], the visible part as an index into IDS (PARTS,
    then DECOYS); decoys uint8 [S, S], the stray thing that is seen there, likewise, 0 where
    there is none; visible and amodal bool [S, S], the object as seen and as if nothing stood in
    front; keypoints name -> (x, y, visible) in pixels; pose dx, dy (shares of S, from the
    centre), scale (side of the object / S), rotation (degrees), flip.
    """

    image: np.ndarray
    label: int
    parts: np.ndarray
    decoys: np.ndarray
    visible: np.ndarray
    amodal: np.ndarray
    keypoints: dict
    pose: dict
    background: str


def stream(seed, index, level, aspect):
    """Random stream of one aspect of one picture; never depends on the size."""
    return random.Random(f"{seed}/{index}/{level}/{aspect}")


def colours(r):
    """Colours and patterns of one object, independent of its class."""
    base = tone(r)
    second = tone(r, base, gap=0.42)
    accent = tone(r, base, second, gap=0.35)
    c = SimpleNamespace(
        base=base,
        second=second,
        accent=accent,
        light=mix(base, WHITE, 0.62),
        dark=mix(base, INK, 0.72),
    )
    fixed = dict(
        white=WHITE, pink=PINK, horn=(0.95, 0.68, 0.2), glass=(0.74, 0.88, 0.95),
        lamp=(1.0, 0.93, 0.62), wood=(0.52, 0.37, 0.25), green=(0.33, 0.62, 0.32),
        metal=(0.78, 0.79, 0.83),
    )  # fmt: skip
    for name, colour in fixed.items():  # tinted, so that they give no class away
        setattr(c, name, mix(colour, tone(r), 0.08 if name == "white" else 0.35))
    c.iris = r.choice(
        [(0.30, 0.55, 0.75), (0.35, 0.6, 0.35), (0.6, 0.4, 0.2), (0.85, 0.65, 0.2)]
    )
    c.nose = r.choice([INK, (0.75, 0.35, 0.38), (0.35, 0.2, 0.2)])
    c.key = r.choice([c.white, mix(base, WHITE, 0.7), mix(base, INK, 0.75)])
    c.turn, c.tex = (
        r.random(),
        r.choice([T.plain, T.plain, T.stripes, T.spots, T.fur, T.fur])(r),
    )
    c.scales, c.bricks, c.spots, c.leaves = T.scales(r), T.bricks(r), T.spots(r), T.leaves(r)
    return c


def draw_pose(r, level):
    p = dict(
        scale=r.uniform(*level["scale"]),
        rotation=r.uniform(-level["rotation"], level["rotation"]),
    )
    p["flip"] = r.random() < 0.5
    room = max(0.0, 0.5 - 0.5 * p["scale"]) + level["slack"]
    return dict(dx=r.uniform(-room, room), dy=r.uniform(-room, room)) | p


def frame(p, size):
    """Affine map from object units to pixels, by rows; rounded: all that follows is exact."""
    u, a, f = p["scale"] * size * 0.5, math.radians(p["rotation"]), -1 if p["flip"] else 1
    c, s = u * math.cos(a), u * math.sin(a)
    m = (c * f, -s, size * (0.5 + p["dx"]), s * f, c, size * (0.5 + p["dy"]))
    return tuple(round(v * 2**20) / 2**20 for v in m)


def blur(a, times):
    """Binomial blur of planes [C, S, S], repeated; the border is continued."""
    for _ in range(times):
        p = np.concatenate([a[:, :1], a, a[:, -1:]], 1)
        a = (p[:, :-2] + p[:, 2:]) * F(0.25) + a * F(0.5)
        p = np.concatenate([a[:, :, :1], a, a[:, :, -1:]], 2)
        a = (p[:, :, :-2] + p[:, :, 2:]) * F(0.25) + a * F(0.5)
    return a


def place_backdrop(seed, index, level, size, label):
    """(family, layer) of picture index; boat and balloon mostly have their own surroundings."""
    r, name = stream(seed, index, level, "background"), NAMES[label]
    kind, usual = r.choice(list(BACKDROPS)), r.random() < 0.85
    kind = CONTEXT[name] if usual and name in CONTEXT else kind
    base = colours(stream(seed, index, level, "colour")).base
    return kind, backdrop(kind, r, size, base, LEVELS[level])


def cast_shadow(planes, alpha, size):
    d = max(1, round(size * 0.02))
    shadow = np.zeros((1, size, size), F)
    shadow[0, d:, d:] = alpha[:-d, :-d]
    planes *= 1 - blur(shadow, round(size * size * 0.000072) + 1) * F(0.35)


def photograph(planes, r, level):
    """Light, tint, grey, blur and pixel noise: planes [3, S, S] in 0..1 -> uint8 [S, S, 3]."""
    size, gain = planes.shape[1], r.uniform(*level["gain"])
    amount, angle = r.uniform(*level["gradient"]), r.uniform(0, 2 * math.pi)
    darken(
        planes,
        angle,
        amount,
        [gain * r.uniform(1 - level["tint"], 1 + level["tint"]) for _ in range(3)],
    )
    grey, soft, width = (
        r.random() < level["grey"],
        r.random() < level["blur"],
        r.uniform(0.003, 0.009),
    )
    if grey:
        planes[:] = planes[:1] * F(0.3) + planes[1:2] * F(0.6) + planes[2:] * F(0.1)
    if soft:
        planes = blur(planes, round(width * width * size * size * 2))
    peak = r.uniform(*level["noise"])
    z = T.noise_bytes(r.getrandbits(63), 6 * size * size).reshape(2, 3, size, size).astype(F)
    planes = planes * F(255) + (z[0] - z[1]) * F(peak / 104)
    return np.ascontiguousarray(
        np.minimum(np.maximum(np.rint(planes), 0), 255).astype(np.uint8).transpose(1, 2, 0)
    )


def seen(point, visible):
    """Keypoint (x, y) -> (x, y, whether it lies in the picture on the visible object)."""
    j, i = math.floor(point[0]), math.floor(point[1])
    return (*point, bool(0 <= i < len(visible) and 0 <= j < len(visible) and visible[i, j]))


def one_of(what, value, valid):
    if value not in valid:
        raise ValueError(f"{what} {value!r} is none of {', '.join(map(str, valid))}")


def check(index, size, label, pose, level, background_of, skip, show):
    """Raise a ValueError that names the first bad argument; return the label as a number."""
    for what, value, least in (
        ("index", index, 0),
        ("size", size, 16),
        ("background_of", background_of or 0, 0),
    ):
        if int(value) != value or value < least:
            raise ValueError(f"{what} {value!r} is not a whole number of at least {least}")
    one_of("level", level, LEVELS)
    one_of("show", show, SHOW)
    for name in pose or {}:
        one_of("pose key", name, POSE)
    for part in skip:
        one_of("part in skip", part, PARTS[1:])
    if label is None:
        return index % len(NAMES)
    one_of("label", label, NAMES if isinstance(label, str) else range(len(NAMES)))
    return NAMES.index(label) if isinstance(label, str) else int(label)


def render(
    seed,
    index,
    size=128,
    label=None,
    pose=None,
    level="standard",
    background_of=None,
    skip=(),
    show="all",
):
    """Picture `index` of `seed` as a Scene; any other argument changes one thing alone.

    size: side in pixels, at least 16; the same scene at any size. label: class name or number
    (index mod 16).
    pose: overrides among dx, dy, scale, rotation, flip. level: "standard" or "hard".
    background_of: index whose backdrop to take. skip: names of PARTS to leave out. show: "all",
    or "background" without object and shadow.
    Raises ValueError naming a bad value and the valid ones.
    """
    label = check(index, size, label, pose, level, background_of, skip, show)
    q = LEVELS[level]
    p = draw_pose(stream(seed, index, level, "pose"), q) | (pose or {})
    here = background_of is None or background_of == index
    behind, its_label = (index, label) if here else (background_of, background_of % len(NAMES))
    kind, ground = place_backdrop(seed, behind, level, size, its_label)
    planes = ground.px[:3]
    layer, keys = Layer(size), {}
    draw = getattr(animals, NAMES[label], None) or getattr(things, NAMES[label])
    brush = Brush(layer, frame(p, size), keys, skip)
    draw(
        brush,
        stream(seed, index, level, "shape"),
        colours(stream(seed, index, level, "colour")),
    )
    if show == "all":
        cast_shadow(planes, layer.px[3], size)
        layer.over(planes)
    front = foreground(stream(seed, index, level, "front"), size, q)
    front.over(planes)
    image = photograph(planes, stream(seed, index, level, "light"), q)
    amodal = layer.px[3] > 0.5
    visible = amodal & ~(front.px[3] > 0.5)
    keypoints = {name: seen(point, visible) for name, point in keys.items()}
    decoys = np.where(front.parts > 0, front.parts, ground.parts * ~(amodal & (show == "all")))
    return Scene(
        image, label, layer.parts * visible, decoys, visible, amodal, keypoints, p, kind
    )


def dataset(seed, n, size=64, level="standard", start=0):
    """(uint8 [n, S, S, 3], int64 [n]) of pictures start..start+n-1; label = index mod 16."""
    images = np.empty((n, size, size, 3), np.uint8)
    for i in range(n):
        images[i] = render(seed, start + i, size, level=level).image
    return images, np.arange(start, start + n) % len(NAMES)
