"""Charts as numbers: axes with ticks, series with errors. Templates draw them as SVG."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Number = int | float

MAX_POINTS = 150
"""Largest number of points of a curve; longer ones are averaged in groups."""
MAX_TICKS = 6


class Axis(NamedTuple):
    """One axis.

    Attributes:
        label: Its name and unit.
        key: Key of its quantity in the glossary.
        low: Value at its beginning.
        high: Value at its end.
        log: If True, it is logarithmic.
        ticks: Values with a tick.
    """

    label: str
    key: str
    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: Number) -> float:
        """Position of a value along the axis, 0 at its beginning and 1 at its end."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log(max(each, 1e-300)) for each in (value, low, high))
        # Far outside of the chart, positions need not be exact.
        return min(max((value - low) / (high - low), -5.0), 6.0)


class Point(NamedTuple):
    """A point with the standard error of its height; None where there is no error."""

    x: float
    y: float
    error: float | None = None


class Series(NamedTuple):
    """Points of one quantity.

    Attributes:
        name: Its name in the legend.
        key: Its key in the glossary.
        points: Its points, from left to right.
        style: "main", "second", "third", "fourth"; "reference" for another quantity that it is
            compared with, or "healthy" for a line at the value of a healthy run.
    """

    name: str
    key: str
    points: tuple[Point, ...]
    style: str = "main"


class Chart(NamedTuple):
    """A chart.

    Attributes:
        title: Its title.
        description: One or two sentences: its content, and the look of a healthy run.
        x: Horizontal axis.
        y: Vertical axis.
        series: The curves.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]

    def rows(self) -> list[tuple[float, list[tuple[str, Point | None]]]]:
        """The data as a table: per x value, the key and the point (or None) of each series."""
        listed = [each for each in self.series if each.style != "healthy"]
        columns = [(each.key, {point.x: point for point in each.points}) for each in listed]
        values = sorted({x for _, column in columns for x in column})
        return [(x, [(key, column.get(x)) for key, column in columns]) for x in values]


def axis(
    label: str,
    key: str,
    values: Sequence[Number],
    log: bool = False,
    include: Sequence[Number] = (),
    margin: Number = 0.06,
) -> Axis:
    """An axis that holds all values.

    Args:
        label: Its name and unit.
        key: Key of its quantity in the glossary.
        values: Values that it must hold; those that are not finite are ignored.
        log: If True, the axis is logarithmic unless some value is not positive.
        include: Further values that it must hold.
        margin: Empty share at both ends.
    """
    finite = [float(value) for value in [*values, *include] if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    log = log and low > 0
    if log:
        first, last = math.log(low), math.log(high)
        room = margin * (last - first) if last > first else 0.5
        low, high = math.exp(first - room), math.exp(last + room)
        return Axis(label, key, low, high, True, _log_ticks(low, high))
    room = margin * (high - low) if high > low else 0.1 * abs(high) or 1.0
    low, high = low - room, high + room
    return Axis(label, key, low, high, False, _ticks(low, high))


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """At most `MAX_TICKS` round values."""
    step = 10.0 ** math.floor(math.log10((high - low) / MAX_TICKS))
    for factor in (1, 2, 5, 10):
        first, last = math.ceil(low / (step * factor)), math.floor(high / (step * factor))
        if last - first < MAX_TICKS:
            break
    # Rounding removes digits such as those of 0.30000000000000004.
    return tuple(float(f"{n * step * factor:.12g}") for n in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten, with 2 and 5 times them if there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= MAX_TICKS:
            return tuple(ticks)
    return tuple(ticks[:: -(-len(ticks) // MAX_TICKS)])


def averaged(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most `MAX_POINTS` points: means of equal groups of neighbours, without errors."""
    if len(points) <= MAX_POINTS:
        return tuple(points)
    size = -(-len(points) // MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple(
        Point(sum(p.x for p in group) / len(group), sum(p.y for p in group) / len(group))
        for group in groups
    )


def shown(value: Number | None, error: Number | None = None) -> str:
    """A number with the digits that its error leaves significant; four without an error."""
    if value is None:
        return "–"  # noqa: RUF001
    value = float(value)
    if not math.isfinite(value):
        return "not finite"
    if error is not None and math.isfinite(error) and error > 0:
        # Two digits of the error, but not more than six of the value.
        digits = 1 - math.floor(math.log10(error))
        if value:
            digits = min(digits, 5 - math.floor(math.log10(abs(value))))
        if -6 < digits <= 8:
            return _signed(f"{value:,.{max(digits, 0)}f}")
    if value == int(value) and abs(value) < 1e15:
        return _signed(f"{int(value):,}")
    return _signed(f"{value:.4g}")


def shown_error(error: Number | None) -> str:
    """An error with two significant digits; "" without one."""
    if error is None or not math.isfinite(error):
        return ""
    if error == 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(error))))
    return f"{error:,.{digits}f}" if digits <= 8 else f"{error:.1e}"


def _signed(text: str) -> str:
    return text.replace("-", "−") if not text.startswith("nan") else text  # noqa: RUF001
