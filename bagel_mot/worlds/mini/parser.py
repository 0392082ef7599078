"""The parser: recovers the scene from the pixels of an image alone, and decides whether the image is clean.

It works by synthesis. The background is the one that most of the image agrees with; the pixels that differ from it form
blobs; each blob is explained by the sprite and place that leave the least error. The scene found is drawn again and
compared: any difference that a small shift, blur or change of tint cannot explain (a half-formed thing, a mixed colour,
a missing eye, a stray blob) makes the image unclean. All lengths are world pixels; images of other sides are reduced to
64 × 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bagel_mot.worlds.mini.scene import BACKGROUNDS, CENTRE, MAX_THINGS, WORLD, Scene
from bagel_mot.worlds.mini.spec import Spec, satisfies
from bagel_mot.worlds.mini.templates import Library, SizeTemplates, features, library, name_of, soften, to_world

SLOT_TOLERANCE = 6
"""World pixels that a centre may lie off its slot, along each axis."""


@dataclass(frozen=True)
class Tolerance:
    """The largest differences from the drawn scene that a clean image may have; values of 0..255, after a slight blur.

    They lie between autoencoder-like damage (blur up to 0.8 px, noise of 6, shifts of half a pixel, tints of 6) and
    images that are nearly right, both simulated; tests/worlds/mini/test_parser.py checks the margins.
    """

    tint: float = 14.0
    """The mean colour error of one thing, in its worst channel."""
    blur: float = 0.55
    """The blur of one thing, as half the variance in square pixels."""
    local: float = 36.0
    """The largest error anywhere on a thing."""
    spread: float = 7.5
    """The root mean square error of a thing over its box."""
    background: float = 26.0
    """The largest error anywhere on the background."""
    ground: float = 5.5
    """The root mean square error of the background."""
    overall: float = 16.0
    """The colour error of the whole image, which is removed before everything else."""


TOLERANCE = Tolerance()
FOREGROUND = 36.0
"""A softened pixel that differs from the background by more than this, in some channel, belongs to a blob."""
MIN_BLOB = 10
"""Pixels; smaller blobs are left to the check of the background."""
MAX_BLOB_SIDE = 33
"""A wider blob is two things that touch, and is cut along the quadrants."""
SHORTLIST = 6
"""Sprites that survive the rough search."""
FINALISTS = 4
FINAL_SHARE = 0.7
"""Sprites that explain at least this share of what the best one does are compared more closely, FINALISTS at most."""
Bounds = Sequence[tuple[float, float]]
SMALL_CHANGES: Bounds = ((-0.75, 0.75), (-0.75, 0.75), (-0.3, 0.6))
"""Bounds of a thing's or background's shift to the right and down (pixels) and of its blur (half the variance)."""


@dataclass(frozen=True)
class ParsedThing:
    """A thing found in an image: `centre` (x, y), `slot` None if it is near no place."""

    kind: str
    colour: str
    size: str
    slot: str | None
    centre: tuple[float, float]

    @property
    def dx(self) -> int:
        """Whole world pixels right of the slot's centre."""
        return round(self.centre[0] - CENTRE[self.slot][0]) if self.slot else 0

    @property
    def dy(self) -> int:
        """Whole world pixels below the slot's centre."""
        return round(self.centre[1] - CENTRE[self.slot][1]) if self.slot else 0


@dataclass(frozen=True)
class ParsedScene:
    """The scene that the parser found; `reason` names the unexplained part where `clean` is False."""

    background: str
    things: tuple[ParsedThing, ...]
    clean: bool
    reason: str = ""


@dataclass(frozen=True)
class _Found:
    """A template at the whole-pixel corner (x, y) of its box."""

    templates: SizeTemplates
    index: int
    x: int
    y: int


def parse(image: Image.Image | np.ndarray, tolerance: Tolerance = TOLERANCE) -> ParsedScene:
    """Recovers the scene of an image: PIL, or uint8 (side, side, 3), side a multiple of 64.

    Raises:
        SceneError: the image has another form.
    """
    pixels, side = to_world(image)
    templates = library(side)
    name, ground, tint, difference = _find_background(pixels, templates)
    pixels = pixels - tint
    found = _find_things(pixels, ground, np.abs(difference).max(axis=2), templates)
    drawn = ground.copy()
    for item in found:
        _paste(drawn, item)
    things, reason = _compare(pixels, drawn, ground, found, tolerance)
    if np.abs(tint).max() > tolerance.overall:
        reason = f"the whole picture is tinted by {np.abs(tint).max():.0f}"
    if len(things) > MAX_THINGS:
        reason = f"there are {len(things)} things"
    return ParsedScene(name, tuple(things), not reason, reason)


def same_scene(parsed: ParsedScene, scene: Scene, *, sizes: bool = True, jitter: bool = False) -> bool:
    """Whether an image is clean and shows exactly this scene: background, and kind, colour, slot of every thing.

    `sizes=False` ignores sizes; `jitter=True` demands equal offsets as well.
    """

    def key(kind: str, colour: str, size: str, slot: str | None, dx: int, dy: int) -> tuple[str, ...]:
        return (str(slot), kind, colour, size if sizes else "", *((str(dx), str(dy)) if jitter else ()))

    found = sorted(key(t.kind, t.colour, t.size, t.slot, t.dx, t.dy) for t in parsed.things)
    wanted = sorted(key(t.kind, t.colour, t.size, t.slot, t.dx, t.dy) for t in scene.things)
    return parsed.clean and parsed.background == scene.background and found == wanted


def matches(parsed: ParsedScene, spec: Spec) -> bool:
    """Whether an image is clean and satisfies a spec: exactly its things, and no others."""
    return parsed.clean and satisfies(parsed, spec)


def _find_background(image: np.ndarray, templates: Library) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """The background that most of the image agrees with.

    Returns its name, its image, the overall tint (3,), and the remaining difference of the softened image (64, 64, 3)
    after the tint and a small shift or blur of the background are removed.
    """
    errors = np.minimum(np.abs(image[None] - templates.backgrounds).max(axis=3), 60.0)
    best = int(errors.mean(axis=(1, 2)).argmin())
    ground = templates.backgrounds[best]
    tint = np.zeros(3, np.float32)
    empty = errors[best] < 24
    if empty.sum() > 200:
        tint = np.median((image - ground)[empty], axis=0)
    target = soften(ground)
    difference = soften(image - tint) - target
    slopes = _slopes(target)
    # Only pixels that agree fairly well enter the fit: the things must not bend the background towards themselves.
    agreeing = (np.abs(difference).max(axis=2) < 1.6 * FOREGROUND)[..., None]
    _, coefficients = _fit(difference * agreeing, [slope * agreeing for slope in slopes], SMALL_CHANGES)
    for coefficient, slope, (low, high) in zip(coefficients, slopes, SMALL_CHANGES, strict=True):
        difference = difference - min(max(float(coefficient), low), high) * slope
    return BACKGROUNDS[best], ground, tint, difference


def _find_things(image: np.ndarray, ground: np.ndarray, difference: np.ndarray, templates: Library) -> list[_Found]:
    """Explains blob after blob, the largest first, until none is left outside the things found."""
    mask = difference > FOREGROUND
    seen = features(image, ground)
    soft_seen = features(soften(soften(image)), soften(soften(ground)))
    found: list[_Found] = []
    while len(found) <= MAX_THINGS:
        blob = _largest_blob(mask)
        if blob is None:
            break
        item = _explain(blob, image, ground, seen, soft_seen, templates)
        found.append(item)
        box = item.templates.box
        mask[blob[0], blob[1]] = False
        mask[max(0, item.y - 1) : item.y + box + 1, max(0, item.x - 1) : item.x + box + 1] = False
    return found


def _largest_blob(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(rows, columns) of the pixels of the largest blob, one-pixel gaps bridged; None if all are below MIN_BLOB."""
    bridged = _largest_around(mask.astype(np.int32)) > 0
    labels = np.where(bridged, np.arange(1, mask.size + 1, dtype=np.int32).reshape(mask.shape), 0)
    while True:
        # Every pixel takes the largest label around it until nothing changes: each blob ends up with one.
        spread = np.where(bridged, _largest_around(labels), 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    counts = np.bincount(labels[mask])
    if counts.size == 0 or counts.max() < MIN_BLOB:
        return None
    blob = mask & (labels == counts.argmax())
    ys, xs = np.nonzero(blob)
    if max(np.ptp(xs), np.ptp(ys)) >= MAX_BLOB_SIDE:
        half = WORLD // 2
        quadrant = (ys >= half) * 2 + (xs >= half)
        chosen = quadrant == np.bincount(quadrant).argmax()
        ys, xs = ys[chosen], xs[chosen]
    return ys, xs


def _largest_around(values: np.ndarray) -> np.ndarray:
    """The maximum of each 3 × 3 neighbourhood."""
    wide = np.pad(values, 1)
    rows = np.maximum(np.maximum(wide[:-2], wide[1:-1]), wide[2:])
    return np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _explain(
    blob: tuple[np.ndarray, np.ndarray],
    image: np.ndarray,
    ground: np.ndarray,
    seen: np.ndarray,
    soft_seen: np.ndarray,
    templates: Library,
) -> _Found:
    """The sprite and its place that explain a blob best: a rough search on softened images, then hill climbing."""
    ys, xs = blob
    cx, cy = (int(xs.min()) + int(xs.max()) + 1) / 2, (int(ys.min()) + int(ys.max()) + 1) / 2
    candidates: list[tuple[float, _Found]] = []
    for group in templates.sizes:
        box, limit = group.box, WORLD - group.box
        corners = sorted(
            {
                (min(max(round(cx - box / 2) + dx, 0), limit), min(max(round(cy - box / 2) + dy, 0), limit))
                for dx in (-2, 0, 2)
                for dy in (-2, 0, 2)
            }
        )
        patches = np.stack([soft_seen[y : y + box, x : x + box].reshape(-1) for x, y in corners])
        scores = group.rough_scores(patches)  # (corners, N)
        for index in np.argsort(scores.min(axis=0))[:SHORTLIST]:
            x, y = corners[int(scores[:, index].argmin())]
            candidates.append((float(scores[:, index].min()), _Found(group, int(index), x, y)))
    candidates.sort(key=lambda candidate: candidate[0])
    climbed = sorted((_climb(candidate[1], seen) for candidate in candidates[:SHORTLIST]), key=lambda item: item[0])
    # Blur can make a wrong sprite look better than the right one, so the best few are compared with blur removed.
    finalists = [item for score, item in climbed[:FINALISTS] if score < FINAL_SHARE * climbed[0][0]]
    return min(finalists, key=lambda item: _misfit(item, image, ground)) if len(finalists) > 1 else climbed[0][1]


def _misfit(found: _Found, image: np.ndarray, ground: np.ndarray) -> float:
    """The change of the squared error by drawing the thing, with small shift, blur and tint removed: low is good."""
    box = found.templates.box
    x, y = max(0, found.x - 2), max(0, found.y - 2)
    window = (slice(y, found.y + box + 2), slice(x, found.x + box + 2))
    drawn = ground[window].copy()
    _paste(drawn, _Found(found.templates, found.index, found.x - x, found.y - y))
    target = soften(drawn)
    seen = soften(image[window])
    tints = [np.broadcast_to(unit, target.shape) for unit in np.eye(3, dtype=target.dtype)]
    left, _ = _fit(seen - target, [*_slopes(target), *tints], (*SMALL_CHANGES, *[(-8.0, 8.0)] * 3))
    return float((left**2).sum() - ((seen - soften(ground[window])) ** 2).sum())


def _climb(found: _Found, seen: np.ndarray) -> tuple[float, _Found]:
    """Moves a template pixel by pixel to its best place: (score, place)."""
    group = found.templates
    weights, box, limit = group.weights[found.index], group.box, WORLD - group.box

    def score(x: int, y: int) -> float:
        return float(seen[y : y + box, x : x + box].reshape(-1) @ weights)

    x, y, best = found.x, found.y, score(found.x, found.y)
    while True:
        around = [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
        scored = [(score(a, b), a, b) for a, b in around if 0 <= a <= limit and 0 <= b <= limit]
        lowest = min(scored)
        if lowest[0] >= best:
            return best + float(group.energy[found.index]), _Found(group, found.index, x, y)
        best, x, y = lowest


def _paste(drawn: np.ndarray, found: _Found) -> None:
    box, group = found.templates.box, found.templates
    window = drawn[found.y : found.y + box, found.x : found.x + box]
    window *= 1 - group.alpha[found.index][..., None]
    window += group.premultiplied[found.index]


def _slopes(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The derivatives of an image with respect to a shift to the right, a shift down, and blur."""
    wide = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    left, right, up, down = wide[1:-1, :-2], wide[1:-1, 2:], wide[:-2, 1:-1], wide[2:, 1:-1]
    return (left - right) / 2, (up - down) / 2, left + right + up + down - 4 * pixels


def _fit(error: np.ndarray, basis: Sequence[np.ndarray], limits: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Least squares: (the remaining error with the coefficients clipped to their bounds, the free coefficients)."""
    flat = np.stack([item.reshape(-1) for item in basis])
    gram = flat @ flat.T + 1e-3 * np.eye(len(basis), dtype=flat.dtype)
    free = np.linalg.solve(gram, (flat * error.reshape(-1)).sum(axis=1))
    low, high = np.array(limits).T
    explained = (flat * np.clip(free, low, high).astype(error.dtype)[:, None]).sum(axis=0)
    return error - explained.reshape(error.shape), free


def _compare(
    image: np.ndarray, drawn: np.ndarray, ground: np.ndarray, found: list[_Found], tolerance: Tolerance
) -> tuple[list[ParsedThing], str]:
    """The things with their fine positions, and the first fault of the image ("" if it has none)."""
    target = soften(drawn)
    error = soften(image) - target
    slopes = _slopes(target)
    outside = np.ones((WORLD, WORLD), bool)
    things, reasons = [], []
    for item in found:
        thing, reason, box = _check_thing(item, error, slopes, tolerance)
        things.append(thing)
        reasons.append(reason)
        outside[box] = False
    left, _ = _fit(
        error * outside[..., None],
        [slope * outside[..., None] for slope in slopes],
        SMALL_CHANGES,
    )
    spread = float(np.sqrt((left[outside] ** 2).mean())) if outside.any() else 0.0
    if spread > tolerance.ground:
        reasons.append(f"the background is {spread:.0f} off on average")
    worst = np.abs(left).max(axis=2)
    if worst.max() > tolerance.background:
        y, x = np.unravel_index(int(worst.argmax()), worst.shape)
        reasons.append(f"something unexplained at ({x}, {y}), {worst.max():.0f} off the background")
    return things, next((reason for reason in reasons if reason), "")


def _check_thing(
    found: _Found, error: np.ndarray, slopes: tuple[np.ndarray, ...], tolerance: Tolerance
) -> tuple[ParsedThing, str, tuple[slice, slice]]:
    """One thing with its fine position, its fault if any, and the region it explains."""
    box = found.templates.box
    rows = slice(max(0, found.y - 1), min(WORLD, found.y + box + 1))
    columns = slice(max(0, found.x - 1), min(WORLD, found.x + box + 1))
    cover = np.zeros((WORLD, WORLD, 1), error.dtype)
    cover[found.y : found.y + box, found.x : found.x + box, 0] = found.templates.alpha[found.index]
    cover = soften(cover)[rows, columns]
    tints = [cover * unit for unit in np.eye(3, dtype=error.dtype)]
    limits = (*SMALL_CHANGES, *[(-tolerance.tint, tolerance.tint)] * 3)
    basis = [*(slope[rows, columns] for slope in slopes), *tints]
    left, coefficients = _fit(error[rows, columns], basis, limits)
    kind, colour = name_of(found.index)
    spread = float(np.sqrt((left**2).mean()))
    worst = float(np.abs(left).max())
    across, down = np.clip(coefficients[:2], -0.75, 0.75)
    centre = (found.x + box / 2 + float(across), found.y + box / 2 + float(down))
    slot = next(
        (name for name, (x, y) in CENTRE.items() if max(abs(centre[0] - x), abs(centre[1] - y)) <= SLOT_TOLERANCE),
        None,
    )
    thing = ParsedThing(kind, colour, found.templates.size, slot, centre)
    reason = ""
    if coefficients[2] > tolerance.blur:
        reason = f"the {colour} {kind} is smeared"
    elif np.abs(coefficients[3:]).max() > tolerance.tint:
        reason = f"the {kind} is not quite {colour}"
    elif worst > tolerance.local:
        reason = f"the {colour} {kind} has a wrong detail, {worst:.0f} off"
    elif spread > tolerance.spread:
        reason = f"the {colour} {kind} is malformed, {spread:.0f} off on average"
    return thing, reason, (rows, columns)
