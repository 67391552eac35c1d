"""Checks of the fields of networks, on Python values when a network is built."""

from typing import Any

from score_jax.noise import check_counts


def check_booleans(**fields: Any) -> None:
    """Raises a ValueError for a field that is not True or False."""
    for name, value in fields.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be True or False")


def check_widths(**fields: Any) -> None:
    """Raises a ValueError for a field that is no tuple of whole numbers of at least 1."""
    for name, value in fields.items():
        if not isinstance(value, tuple | list) or not value:
            raise ValueError(
                f"{name}={value!r} must name at least one layer, as a tuple such as (128, 128)"
            )
        check_counts(**{f"{name}[{i}]": width for i, width in enumerate(value)})
