"""Checks of the fields of networks, on Python values when a network is built."""

import numbers
from typing import Any


def check_switches(**fields: Any) -> None:
    """Raises a ValueError for a field that is not True or False."""
    for name, value in fields.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be True or False")


def check_widths(**fields: Any) -> None:
    """Raises a ValueError for a field that is no tuple of whole numbers of at least 1."""
    for name, value in fields.items():
        widths = value if isinstance(value, tuple | list) else ()
        if not widths or not all(_is_whole(width) and width >= 1 for width in widths):
            raise ValueError(
                f"{name}={value!r} must name at least one layer, as a tuple such as (128, 128), "
                "and every width must be at least 1"
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
