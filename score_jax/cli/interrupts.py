"""Ends the process at once on SIGINT (Ctrl-C), SIGTERM and SIGHUP, also while XLA compiles.

Python runs signal handlers when its main thread next runs bytecode, which XLA can keep it from
for minutes, and callbacks that ignore exceptions can swallow KeyboardInterrupt. So a thread waits
for the signals.
"""

import contextlib
import os
import signal
import threading

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a process to stop."""

_ending = threading.Lock()


class Stopped(Exception):  # noqa: N818 (no error: what is done is saved)
    """Raised by a mode that a signal has stopped, after its state is saved.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = int(number)


def exit_code(number: int) -> int:
    """The exit code that shells and schedulers expect of a process ended by a signal."""
    return 128 + int(number)


def exit_on_signals() -> None:
    """Makes the signals end this process with one line and `exit_code`.

    A mode can take the first signal over with handlers of its own; the second one ends the process
    nevertheless. In another thread than the main one, nothing changes. A signal that is ignored
    stays ignored, as SIGINT in a job of the background and SIGHUP under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if not heard:
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, _leave_to_thread)
    threading.Thread(target=_watch, args=(read_end,), daemon=True).start()


def _leave_to_thread(number, frame) -> None:
    """Handler of a signal that does nothing."""


def _watch(read_end: int) -> None:
    """Waits for signals, whose numbers the system writes to a pipe."""
    num_signals = 0
    while True:
        for number in os.read(read_end, 16):
            if number not in SIGNALS:
                continue
            num_signals += 1
            handled_by_mode = signal.getsignal(number) is not _leave_to_thread
            if num_signals > 1 or not handled_by_mode:
                end(number)


def end(number: int) -> None:
    """Ends this process with one line, without waiting for other threads."""
    if not _ending.acquire(blocking=False):
        return
    from score_jax.cli import workdir

    line = "score-jax: interrupted"
    if number != signal.SIGINT:
        line = f"score-jax: stopped by {signal.Signals(number).name}"
    kept = workdir.what_is_kept()
    line = f"{line}; {kept}\n" if kept else f"{line}\n"
    with_newline = f"\n{line}" if os.isatty(2) else line
    with contextlib.suppress(OSError):  # The terminal may have gone.
        os.write(2, with_newline.encode())
    leave(exit_code(number))


def leave(code: int) -> None:
    """Ends this process with an exit code, without waiting for other threads."""
    from score_jax.cli import workdir

    workdir.remove_unfinished()
    os._exit(code)
