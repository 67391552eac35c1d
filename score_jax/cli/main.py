"""The command `score-jax`: parses, chooses devices, runs a mode and turns errors into sentences.

Exit codes: 0 when done, 1 for a run that failed, 2 for input that cannot be used, 130 when
stopped.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

EXIT_CODE_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name; None for that of the process, which
            Ctrl-C then ends at once.

    Returns:
        The exit code.
    """
    is_process = arguments is None
    try:
        # Everything else is imported after this, so that Ctrl-C is heard from the start.
        from score_jax.cli import interrupts

        if is_process:
            interrupts.exit_on_interrupt(EXIT_CODE_INTERRUPTED)
        from score_jax.cli.flags import parse

        command = parse(sys.argv[1:] if is_process else list(arguments))
        if command is None:
            sys.stdout.flush()
            return 0
        devices = choose_devices(command.config, command.devices, command.mode)
        _keep_compiled(command.cache)
        if command.options.debug_nans:
            _debug_nans()
        finished = _function(command.mode)(command, devices)
    except KeyboardInterrupt:
        if is_process:
            interrupts.end(EXIT_CODE_INTERRUPTED)
        return _refused("interrupted", EXIT_CODE_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output has gone, as in `score-jax --help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FloatingPointError as error:
        return _refused(error, 1)
    except ValueError as error:
        return _refused(error)
    except OSError as error:
        return _refused(_system_error(error) if error.errno else error)
    return 0 if finished else EXIT_CODE_INTERRUPTED


def _refused(reason: Any, code: int = 2) -> int:
    """Prints one sentence."""
    print(f"score-jax: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    return code


def _function(mode: str) -> Callable[[Any, Sequence[Any]], bool]:
    """The function of a mode; no other mode is imported."""
    import importlib

    from score_jax.cli.modes import MODES

    module, _, name = MODES[mode].function.partition(":")
    return getattr(importlib.import_module(module), name)


def _debug_nans() -> None:
    import jax

    jax.config.update("jax_debug_nans", True)


def _keep_compiled(folder: str | None) -> None:
    from score_jax.cli.cache import keep_compiled

    keep_compiled(folder)


def _system_error(error: OSError) -> str:
    """A sentence about a full disk, missing permissions and the like."""
    what = error.strerror or type(error).__name__
    where = f" with {error.filename}" if error.filename else ""
    return f"reading or writing failed{where} ({what}): files written so far are kept"


def choose_devices(config: Mapping[str, Any], requested: int | None, mode: str) -> Sequence[Any]:
    """The devices that share the work: all accelerators, or the cores of the CPU.

    Some cores stay idle, fewer than half, if the others divide the batch sizes.

    Args:
        config: The config.
        requested: Number of devices; None for all.
        mode: Name of the mode, whose batches the devices share.

    Raises:
        ValueError: If JAX has no device, or fewer than are requested.
    """
    import jax

    from score_jax.cli.modes import MODES
    from score_jax.devices import described

    if hasattr(os, "sched_getaffinity"):
        num_cores = len(os.sched_getaffinity(0))
    else:
        num_cores = os.cpu_count() or 1
    sizes = [config[section]["batch_size"] for section in MODES[mode].batches]
    fitting = max(n for n in range(1, num_cores + 1) if all(size % n == 0 for size in sizes))
    num_cpu_devices = requested or (fitting if 2 * fitting > num_cores else num_cores)
    # Other platforms ignore this. In a process that has used JAX before, it is an error, and the
    # devices stay as they are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        hint = f"JAX_PLATFORMS={platforms}" if platforms else "JAX"
        raise ValueError(
            f"{hint} gives no device ({str(error) or type(error).__name__}): set "
            "JAX_PLATFORMS=cpu to use the CPU"
        ) from error
    if requested and requested > len(devices):
        raise ValueError(f"--devices={requested} is more than there are: {described(devices)}")
    return devices[: requested or len(devices)]


if __name__ == "__main__":
    sys.exit(main())
