"""One procedural image: a random generator and a class -> (H, W, 3) uint8 RGB (pure).

An object of a random place, size, turn and light over 1/f noise in correlated colours.
Some of the ten classes share shape and colour, some texture and colour, some shape and
texture: no single cue tells them apart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float32]

TILE_PX = 128
RENDER_SHORT_PX = 288  # larger images are drawn at this size and enlarged
RENDER_LONG_PX = 640
SMALLEST_PX, LARGEST_PX = 60, 1200


class Kind(NamedTuple):
    """The attributes of a class; its folder is named ``texture-shape-colour``."""

    texture: str
    shape: str
    colour: str

    @property
    def name(self) -> str:
        """The folder name, for example ``striped-disc-red``."""
        return f"{self.texture}-{self.shape}-{self.colour}"


KINDS = (
    Kind("striped", "disc", "red"),
    Kind("dotted", "disc", "red"),  # only the texture differs from the first
    Kind("striped", "disc", "blue"),  # only the colour
    Kind("striped", "star", "red"),  # only the shape
    Kind("dotted", "star", "blue"),
    Kind("dotted", "triangle", "blue"),  # only the shape
    Kind("checked", "triangle", "green"),
    Kind("checked", "triangle", "red"),  # only the colour
    Kind("checked", "ring", "green"),  # only the shape from the seventh
    Kind("dotted", "ring", "green"),  # only the texture
)
HUES = {"red": 0.0, "green": 0.38, "blue": 0.61}  # of a full turn

ASPECTS = (1.0, 1.0, 4 / 3, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 2.2, 0.45, 3.0)

# Top and bottom of natural scenes, sRGB levels: meadow, beach, wood, stone, dusk, sea,
# autumn, snow, heather, night.
SCENES = (
    ((150, 185, 215), (92, 118, 58)),
    ((142, 180, 200), (205, 182, 140)),
    ((62, 84, 52), (96, 74, 52)),
    ((150, 146, 140), (104, 100, 98)),
    ((214, 160, 130), (86, 72, 92)),
    ((172, 196, 208), (60, 102, 122)),
    ((196, 164, 104), (122, 82, 46)),
    ((200, 208, 220), (222, 224, 226)),
    ((170, 168, 190), (110, 84, 112)),
    ((40, 46, 66), (64, 58, 60)),
)


@functools.cache
def _spectrum(exponent: float, lowest: float) -> Floats:
    """Amplitudes f^-exponent (TILE_PX, TILE_PX // 2 + 1), nothing below ``lowest`` cycles."""
    rows = np.fft.fftfreq(TILE_PX)[:, None] * TILE_PX
    columns = np.fft.rfftfreq(TILE_PX)[None, :] * TILE_PX
    cycles = np.hypot(rows, columns)
    amplitude = np.where(cycles >= lowest, np.maximum(cycles, 1.0) ** -exponent, 0.0)
    amplitude[0, 0] = 0.0
    return amplitude.astype(np.float32)


def _noise(
    rng: np.random.Generator, planes: int, exponent: float, lowest: float = 1.0
) -> list[Floats]:
    """``planes`` periodic tiles (TILE_PX, TILE_PX) of 1/f noise, standard deviation one."""
    amplitude = _spectrum(exponent, lowest)
    tiles = []
    for _ in range(planes):
        parts = rng.standard_normal((2, *amplitude.shape), dtype=np.float32) * amplitude
        tile = np.fft.irfft2(parts[0] + 1j * parts[1], s=(TILE_PX, TILE_PX))
        tiles.append((tile / tile.std()).astype(np.float32))
    return tiles


def _stretch(tile: Floats, height: int, width: int) -> Floats:
    """The tile's part with the image's aspect ratio, enlarged to (height, width)."""
    long = max(height, width)
    box = (0, 0, TILE_PX * width / long, TILE_PX * height / long)
    image = Image.fromarray(tile).resize((width, height), Image.Resampling.BICUBIC, box)
    return np.asarray(image, dtype=np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """A soft scene with a horizon, (height, width, 3) float32 of levels about 0-255.

    Light varies most, yellow-blue less, green-magenta least, as in natural images.
    """
    top, bottom = np.asarray(SCENES[rng.integers(len(SCENES))], dtype=np.float32)
    light, warm, tint = (_stretch(t, height, width) for t in _noise(rng, 3, rng.choice([1.2, 1.5])))
    (grain,) = _noise(rng, 1, 0.9, lowest=9.0)
    rows, columns = np.arange(height) % TILE_PX, np.arange(width) % TILE_PX
    light = light * rng.uniform(16, 34) + grain[rows][:, columns] * rng.uniform(2, 9)
    horizon, softness = rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.5)
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None] + 0.004 * light - horizon
    share = np.clip(0.5 + depth / softness, 0, 1)[..., None]
    scene: Floats = (top + (bottom - top) * share).astype(np.float32)
    chroma = rng.uniform(4, 12)
    scene[..., 0] += light + chroma * warm - 0.3 * chroma * tint
    scene[..., 1] += light + 0.2 * chroma * warm + 0.4 * chroma * tint
    scene[..., 2] += light - chroma * warm - 0.3 * chroma * tint
    for _ in range(int(rng.integers(0, 6))):
        _blur_spot(rng, scene)
    return scene


def _blur_spot(rng: np.random.Generator, scene: Floats) -> None:
    """Adds one out-of-focus spot of light of any hue, in place."""
    height, width = scene.shape[:2]
    radius = min(height, width) * rng.uniform(0.04, 0.14)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    colour = _rgb(rng.uniform(), rng.uniform(0.1, 0.8), rng.uniform(0.7, 1.0))
    window, across, down = _window(scene, x, y, radius * 1.2)
    inside = np.clip((radius - np.hypot(across, down)) / (0.15 * radius) + 0.5, 0, 1)
    window += (inside * rng.uniform(0.12, 0.4))[..., None] * (colour - window)


def _window(scene: Floats, x: float, y: float, reach: float) -> tuple[Floats, Floats, Floats]:
    """The part of the scene within ``reach`` of (x, y), and its offsets from there, px."""
    height, width = scene.shape[:2]
    left, right = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach))
    top, bottom = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
    across = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x))[None, :]
    down = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y))[:, None]
    return scene[top:bottom, left:right], across, down


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    """Hue (of a full turn), saturation and value 0-1 -> (3,) levels."""
    phase = (hue + np.array([1.0, 2 / 3, 1 / 3])) % 1.0
    ramp = np.clip(np.abs(phase * 6 - 3) - 1, 0, 1)
    colour: Floats = (255 * value * (1 - saturation + saturation * ramp)).astype(np.float32)
    return colour


def _disc(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - np.float32(0.92)


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - np.float32(0.7)) - np.float32(0.3)


def _triangle(x: Floats, y: Floats) -> Floats:
    slant = np.float32(math.sqrt(3) / 2) * np.abs(x) - np.float32(0.5) * y
    return np.maximum(slant, y) - np.float32(0.58)


def _star(x: Floats, y: Floats) -> Floats:
    fifth = np.float32(2 * math.pi / 5)
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)
    radius = np.hypot(x, y)
    # In the folded fifth the edge runs from the tip (1.1, 0) to the notch, at half a fifth.
    notch = 0.47 * np.array([math.cos(fifth / 2), math.sin(fifth / 2)])
    along = notch - (1.1, 0.0)
    across = np.array([along[1], -along[0]], dtype=np.float32) / np.float32(np.hypot(*along))
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    distance: Floats = (px - np.float32(1.1)) * across[0] + py * across[1]
    return distance


SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _triangle,
    "star": _star,
}
"""Unit coordinates -> distance to the outline, negative inside; all fit a circle of 1.16."""


def _texture(name: str, x: Floats, y: Floats, period: float, period_px: float) -> Floats:
    """Unit coordinates -> share of the light tone 0-1, its edges one pixel soft."""
    turn, slope = np.float32(2 * math.pi / period), np.float32(period_px / (2 * math.pi))
    if name == "striped":
        wave = np.sin(x * turn) * slope
    elif name == "checked":
        wave = np.sin(x * turn * np.float32(0.8)) * np.sin(y * turn * np.float32(0.8)) * slope
    else:
        step = np.float32(period)
        from_dot = np.hypot((x / step) % 1 - np.float32(0.5), (y / step) % 1 - np.float32(0.5))
        wave = (np.float32(0.29) - from_dot) * np.float32(period_px)
    light_tone: Floats = np.clip(0.5 + wave, 0, 1).astype(np.float32)
    return light_tone


def _place(rng: np.random.Generator, scene: Floats, kind: Kind) -> None:
    """Draws one object of ``kind`` into the scene, mostly inside its centre square."""
    height, width = scene.shape[:2]
    short = min(height, width)
    # Images of few pixels need a large object for its texture to be there at all.
    radius = short * rng.uniform(0.45 if short >= 120 else 0.6, 0.75) / 2
    slack = 0.55 * (short - 2 * radius)
    x = width / 2 + rng.uniform(-slack, slack)
    y = height / 2 + rng.uniform(-slack, slack)
    window, across, down = _window(scene, x, y, 1.5 * radius)
    angle, grain_angle = rng.uniform(0, 2 * math.pi, 2)
    u, v = _turned(across, down, angle, radius)
    distance = SHAPES[kind.shape](u, v)
    period = rng.uniform(0.36, 0.52)
    s, t = _turned(across, down, grain_angle, radius)
    shift = rng.uniform(0, 1, 2).astype(np.float32)
    light_tone = _texture(kind.texture, s + shift[0], t + shift[1], period, period * radius)
    colour = _rgb(
        HUES[kind.colour] + rng.uniform(-0.025, 0.025),
        rng.uniform(0.7, 0.92),
        rng.uniform(0.6, 0.9),
    )
    cream = _rgb(rng.uniform(0.08, 0.16), rng.uniform(0.02, 0.22), rng.uniform(0.85, 1.0))
    surface = colour + light_tone[..., None] * (cream - colour)
    shade, shine = _relief(rng, distance, across / radius, down / radius)
    surface = surface * shade[..., None] + shine[..., None]
    _shadow(rng, window, distance, radius)
    inside = np.clip(0.5 - distance * radius, 0, 1)[..., None]
    window += inside * (surface - window)


def _turned(across: Floats, down: Floats, angle: float, radius: float) -> tuple[Floats, Floats]:
    """Offsets in px -> unit coordinates of an object turned by ``angle``."""
    c, s = np.float32(math.cos(angle) / radius), np.float32(math.sin(angle) / radius)
    return across * c + down * s, down * c - across * s


def _relief(
    rng: np.random.Generator, distance: Floats, u: Floats, v: Floats
) -> tuple[Floats, Floats]:
    """Light from one side on a body with a rounded rim -> shade (factor), shine (levels)."""
    from_angle = rng.uniform(0, 2 * math.pi)
    lx, ly = np.float32(math.cos(from_angle)), np.float32(math.sin(from_angle))
    rim = np.float32(0.22)
    height = np.sqrt(np.clip(-distance / rim, 0, 1))
    down_slope, across_slope = np.gradient(height)
    slope = across_slope * lx + down_slope * ly
    spread = np.float32(slope.std() + 1e-6)
    side = u * lx + v * ly
    shade = 1 - np.float32(0.18) * side - np.float32(0.16) * np.clip(slope / spread, -2, 2)
    centre = np.hypot(u + np.float32(0.4) * lx, v + np.float32(0.4) * ly)
    shine = np.exp(-((centre / np.float32(0.35)) ** 2)) * np.float32(rng.uniform(5, 40))
    return np.clip(shade, 0.35, 1.5).astype(np.float32), shine.astype(np.float32)


def _shadow(rng: np.random.Generator, window: Floats, distance: Floats, radius: float) -> None:
    """Darkens the scene beside the object, softly, in place."""
    mask = Image.fromarray((np.clip(0.5 - distance * radius, 0, 1) * 255).astype(np.uint8))
    dx, dy = (int(n) for n in np.rint(rng.uniform(-0.14, 0.14, 2) * radius))
    beside = Image.new("L", mask.size)
    beside.paste(mask, (dx, dy))
    soft = beside.filter(ImageFilter.GaussianBlur(0.09 * radius))
    shadow = np.asarray(soft, dtype=np.float32) * np.float32(rng.uniform(0.3, 0.6) / 255)
    window *= 1 - shadow[..., None]


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height: mostly 150-500 px, a few tiny, a few large, some of them long."""
    draw = rng.uniform()
    if draw < 0.03:
        short = rng.uniform(SMALLEST_PX, 110)
    elif draw < 0.05:
        short = rng.uniform(500, 900)
    else:
        short = 150 * (380 / 150) ** rng.uniform()
    aspect = ASPECTS[rng.integers(len(ASPECTS))] * rng.uniform(0.95, 1.05)
    width, height = short * max(aspect, 1.0), short * max(1 / aspect, 1.0)
    shrink = min(1.0, LARGEST_PX / max(width, height))
    return (max(SMALLEST_PX, round(width * shrink)), max(SMALLEST_PX, round(height * shrink)))


def draw_image(rng: np.random.Generator, kind: Kind) -> NDArray[np.uint8]:
    """A class -> (H, W, 3) uint8 RGB, 60 to 1200 px; all random numbers come from ``rng``."""
    width, height = _size(rng)
    shrink = min(1.0, RENDER_SHORT_PX / min(width, height), RENDER_LONG_PX / max(width, height))
    w, h = max(1, round(width * shrink)), max(1, round(height * shrink))
    scene = _background(rng, h, w)
    _place(rng, scene, kind)
    # The camera: exposure, white balance, a darker rim, sensor noise.
    y, x = np.linspace(-1, 1, h, dtype=np.float32), np.linspace(-1, 1, w, dtype=np.float32)
    rim = 1 - np.float32(rng.uniform(0, 0.14)) * (x[None, :] ** 2 + y[:, None] ** 2)
    balance = (rng.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05, 3)).astype(np.float32)
    scene *= rim[..., None] * balance
    scene += rng.standard_normal((h, w, 1), dtype=np.float32) * np.float32(rng.uniform(0.5, 3))
    pixels: NDArray[np.uint8] = np.clip(scene + 0.5, 0, 255).astype(np.uint8)
    if shrink < 1.0:
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    return pixels
