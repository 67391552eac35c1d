"""JAX's own switches, set by environment variables, with which the command cannot run."""

import jax

UNSUPPORTED = {
    "jax_disable_jit": (True,),
    "jax_transfer_guard": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_host_to_device": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_device_to_device": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_device_to_host": ("disallow", "disallow_explicit"),
    "jax_numpy_dtype_promotion": ("strict",),
}
"""Switch -> values with which no program of the command runs."""
REASONS = {
    "jax_disable_jit": "programs over several devices must be compiled",
    "jax_numpy_dtype_promotion": "Flax and Optax mix Python numbers with arrays",
}
"""The reason; that of the others is that constants and batches move to the devices."""


def check_switches() -> None:
    """Raises a ValueError that names an environment variable with which nothing can run."""
    for name, values in UNSUPPORTED.items():
        value = getattr(jax.config, name, None)
        if value in values:
            shown = int(value) if isinstance(value, bool) else value
            reason = REASONS.get(name, "constants and batches are moved to the devices implicitly")
            raise ValueError(
                f"{name.upper()}={shown} cannot be used here, since {reason}: unset it"
            )
