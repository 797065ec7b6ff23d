"""What was measured, as a table: figure, target, how far the one meets the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line. ``at_most``: the target is a ceiling, so that less is better. ``target`` None: for information."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False

    @property
    def ratio(self) -> float | None:
        """1 or more where the target is met."""
        if self.target is None or not self.value or not self.target:
            return None
        return self.target / self.value if self.at_most else self.value / self.target


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def render(figures: Iterable[Figure]) -> str:
    rows = [("what", "measured", "target", "ratio")]
    for figure in figures:
        target = "" if figure.target is None else f"{'≤' if figure.at_most else '≥'} {number(figure.target)}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        rows.append((figure.name, f"{number(figure.value)} {figure.unit}", target, ratio))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {target:>{widths[2]}}  {ratio:>{widths[3]}}"
        for name, value, target, ratio in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)
