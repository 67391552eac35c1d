"""The command `score-jax`: parses, chooses devices, runs a mode and turns errors into sentences.

Exit codes: 0 when done, 1 for a run that failed, 2 for input that cannot be used, 128 + n when
stopped by signal n: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

EXIT_CODE_INTERRUPTED = 130
"""128 + SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name; None for that of the process, which
            Ctrl-C, SIGTERM and SIGHUP then end at once.

    Returns:
        The exit code.
    """
    is_process = arguments is None
    try:
        code = _run(arguments, is_process)
    except Exception:
        if not is_process or "score_jax.cli.processes" not in sys.modules:
            raise
        # Leaving as usual would wait for processes that wait for this one.
        traceback.print_exc()
        code = 1
    if is_process and "score_jax.cli.processes" in sys.modules:
        from score_jax.cli import processes

        processes.part(code)
    return code


def _run(arguments: Sequence[str] | None, is_process: bool) -> int:
    """Parses, runs a mode and prints one sentence for an error; the exit code."""
    try:
        # Everything else is imported after this, so that signals are heard from the start.
        from score_jax.cli import interrupts, streams

        if is_process:
            streams.prepare()
            interrupts.exit_on_signals()
    except KeyboardInterrupt:
        return _refused("interrupted", EXIT_CODE_INTERRUPTED)
    try:
        from score_jax.cli.flags import parse

        command = parse(sys.argv[1:] if is_process else list(arguments))
        if command is None:
            sys.stdout.flush()
            return 0
        _check_switches()
        group = _join(command)
        devices = choose_devices(command.config, command.devices, command.mode, group)
        _keep_compiled(command.cache)
        if command.options.debug_nans:
            _debug_nans()
        if is_process:
            _silence_background_saves()
        _function(command.mode)(command, devices)
    except KeyboardInterrupt:
        return _refused("interrupted", EXIT_CODE_INTERRUPTED)
    except interrupts.Stopped as stopped:
        return interrupts.exit_code(stopped.number)
    except BrokenPipeError:
        # The reader of the output has gone, as in `score-jax --help | head`.
        streams.settle()
        return 1
    except FloatingPointError as error:
        return _refused(error, 1)
    except MemoryError as error:
        return _refused(_memory_error(error), 1)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return _refused(_memory_error(error), 1)
        # A collective fails when another process has ended; the watch then ends this one.
        if "score_jax.cli.processes" in sys.modules:
            from score_jax.cli import processes

            processes.wait_for_end()
        raise
    except ValueError as error:
        return _refused(error)
    except OSError as error:
        code = _refused(_system_error(error))
        if is_process:
            # Background saves may wait for a disk that fails.
            interrupts.leave(code)
        return code
    return 0


def _refused(reason: Any, code: int = 2) -> int:
    """Prints one sentence."""
    from score_jax.cli import streams

    streams.say(f"score-jax: {' '.join(str(reason).split())}")
    streams.settle()
    return code


def _join(command: Any) -> Any:
    """Connects this process to others that run the same command; the group, or None if alone.

    Raises:
        ValueError: If the processes do not find each other, or several cannot run this mode.
    """
    options = command.options
    flags = (options.coordinator, options.num_processes, options.process_id)
    from score_jax.cli.modes import MODES, PROCESSES
    from score_jax.cli.together import group_of

    group = group_of(*flags, os.environ)
    if group is None:
        return None
    if not set(PROCESSES) <= set(MODES[command.mode].flags):
        raise ValueError(
            f"--mode={command.mode} runs in a single process, but the flags or the environment "
            "describe several: start it once, with --coordinator=none"
        )
    from score_jax.cli import processes

    processes.join(group)
    return group


def _function(mode: str) -> Callable[[Any, Sequence[Any]], Any]:
    """The function of a mode; no other mode is imported."""
    import importlib

    from score_jax.cli.modes import MODES

    module, _, name = MODES[mode].function.partition(":")
    return getattr(importlib.import_module(module), name)


def _check_switches() -> None:
    from score_jax.cli.switches import check_switches

    check_switches()


def _debug_nans() -> None:
    import jax

    jax.config.update("jax_debug_nans", True)


def _keep_compiled(folder: str | None) -> None:
    from score_jax.cli.cache import keep_compiled

    keep_compiled(folder)


def _silence_background_saves() -> None:
    from score_jax.checkpoint import silence_background_saves

    silence_background_saves()


def _memory_error(error: Exception) -> str:
    """A sentence about memory that does not suffice."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return (
        f"the memory does not suffice ({first}): lower config.training.batch_size, "
        "config.sampling.batch_size or the width of the network; files written so far are kept"
    )


def _system_error(error: OSError) -> str:
    """A sentence about a full disk, missing permissions and the like, with what is kept."""
    kept = "; ".join(getattr(error, "__notes__", []))
    if not error.errno:
        return f"{error}; {kept}" if kept else str(error)
    what = error.strerror or type(error).__name__
    where = f" with {error.filename}" if error.filename else ""
    kept = kept or "files written so far are kept"
    return f"reading or writing failed{where} ({what}): {kept}"


def choose_devices(
    config: Mapping[str, Any], requested: int | None, mode: str, group: Any = None
) -> Sequence[Any]:
    """The devices that share the work: all accelerators, or the cores of the CPU.

    Some cores stay idle, fewer than half, if the others divide the batch sizes.

    Args:
        config: The config.
        requested: Number of devices of each process; None for all.
        mode: Name of the mode, whose batches the devices share.
        group: Group of processes that run the command together; None for a single one.

    Raises:
        ValueError: If JAX has no device, or fewer than are requested.
    """
    import jax

    from score_jax.cli.modes import MODES
    from score_jax.devices import described, num_cores

    cores = num_cores()
    num_processes = (group.number if group else None) or 1
    sizes = [config[section]["batch_size"] for section in MODES[mode].batches]
    fitting = max(
        n
        for n in range(1, cores + 1)
        if n == 1 or all(size % (n * num_processes) == 0 for size in sizes)
    )
    num_cpu_devices = requested or (fitting if 2 * fitting > cores else cores)
    # Other platforms ignore this. In a process that has used JAX before, it is an error, and the
    # devices stay as they are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    try:
        local, devices = jax.local_devices(), jax.devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        hint = f"JAX_PLATFORMS={platforms}" if platforms else "JAX"
        raise ValueError(
            f"{hint} gives no device ({str(error) or type(error).__name__}): set "
            "JAX_PLATFORMS=cpu to use the CPU"
        ) from error
    if requested and requested > len(local):
        raise ValueError(f"--devices={requested} is more than there are: {described(local)}")
    if group is None:
        return local[: requested or len(local)]

    # The first devices of every process, and as many of each.
    from score_jax.cli import processes

    processes.watch(group)
    by_process = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    number = requested or min(map(len, by_process.values()))
    return [each for index in sorted(by_process) for each in by_process[index][:number]]


if __name__ == "__main__":
    sys.exit(main())
