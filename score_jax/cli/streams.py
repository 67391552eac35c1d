"""Standard streams that are closed, full, or cannot encode the name of a file."""

import contextlib
import os
import sys


def prepare() -> None:
    """Makes the standard streams of this process usable.

    A stream that is closed is opened on the null device; else the next file that is opened, such
    as a checkpoint, would receive its text. Characters that a terminal cannot show, as in the name
    of a file, are escaped.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free, which is this one.
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.dup(descriptor), "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # Streams of another program
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Prints a line on the standard error; where nothing can be written, it is lost."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def settle() -> None:
    """Discards what the standard output cannot take, so that Python ends without complaint."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
