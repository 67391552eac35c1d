"""Ends the process at once on Ctrl-C, also while a program is compiled.

Python raises KeyboardInterrupt when its main thread next runs bytecode, which XLA can keep it from
for minutes, and callbacks that ignore exceptions can swallow it. So a thread waits for the signal.
"""

import os
import signal
import threading

from score_jax.cli import workdir

_ending = threading.Lock()


def exit_on_interrupt(exit_code: int) -> None:
    """Makes Ctrl-C end this process with one line.

    A mode can take the first Ctrl-C over with a signal handler of its own; the second one ends the
    process nevertheless. In another thread than the main one, and where Ctrl-C is ignored, as in a
    job of the background, nothing changes.

    Args:
        exit_code: Exit code of the process.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _leave_to_thread)
    threading.Thread(target=_watch, args=(read_end, exit_code), daemon=True).start()


def _leave_to_thread(number, frame) -> None:
    """Handler of SIGINT that does nothing."""


def _watch(read_end: int, exit_code: int) -> None:
    """Waits for signals, whose numbers the system writes to a pipe."""
    num_interrupts = 0
    while True:
        num_interrupts += os.read(read_end, 16).count(signal.SIGINT)
        handled_by_mode = signal.getsignal(signal.SIGINT) is not _leave_to_thread
        if num_interrupts > 1 or (num_interrupts == 1 and not handled_by_mode):
            end(exit_code)


def end(exit_code: int) -> None:
    """Ends this process with one line, without waiting for other threads."""
    if not _ending.acquire(blocking=False):
        return
    line = "score-jax: interrupted\n"
    os.write(2, f"\n{line}".encode() if os.isatty(2) else line.encode())
    workdir.remove_unfinished()
    os._exit(exit_code)
