"""What was measured, as a table: figure, target, how far the one meets the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    return lay_out(rows, right_from=1)


def lay_out(rows: Sequence[Sequence[str]], right_from: int | None = None) -> str:
    """The rows, of which the first is the head, in columns; from ``right_from`` on these are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) if right_from is None else right_from

    def line(cells: Sequence[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(cells[:last], widths[:last], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[last:], widths[last:], strict=True)]
        return "  ".join([*left, *right]).rstrip()

    return "\n".join([line(rows[0]), "  ".join("─" * width for width in widths), *map(line, rows[1:])])
