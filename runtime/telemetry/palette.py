"""Colours that stay apart for colour-blind readers: a hue per team, a tint per job of the team.

Hues after Okabe and Ito, "Color Universal Design" (2008), some darker so that white reads on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

HUES = ("#0072B2", "#C65200", "#00825F", "#A2548A", "#8A6D00", "#4D4D4D")
INK, MUTED, GRID, PAPER, TRACK = "#1B2430", "#5B6675", "#E3E8EE", "#FFFFFF", "#F1F4F7"
GOOD, WARN, BAD = "#0B7A53", "#A15C00", "#B3261E"
_TINTS = (0.0, 0.44, 0.64, 0.36, 0.54, 0.74)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def mix(colour: str, other: str, share: float) -> str:
    """`share` of `other` (0..1) mixed into `colour`, both `#rrggbb`."""
    pairs = zip(_channels(colour), _channels(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02X}" for a, b in pairs)


def luminance(colour: str) -> float:
    """Relative luminance, 0 (black) to 1 (white): WCAG 2.2, section 1.4.3."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def ink_on(background: str) -> str:
    """White or dark ink, whichever reads better on `background`."""
    return max((PAPER, INK), key=lambda ink: contrast(ink, background))


def job_colours(jobs: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
    """A colour for each (team, job): teams get hues and jobs tints in the order of their first appearance."""
    hues: dict[str, str] = {}
    counts: dict[str, int] = {}
    colours: dict[tuple[str, str], str] = {}
    for team, job in jobs:
        if (team, job) in colours:
            continue
        hue = hues.setdefault(team, HUES[len(hues) % len(HUES)])
        nth = counts[team] = counts.get(team, -1) + 1
        colours[team, job] = mix(hue, PAPER, _TINTS[nth % len(_TINTS)])
    return colours
