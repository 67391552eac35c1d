"""Reads that are repeated when they fail, as network file systems do now and then."""

import time
from collections.abc import Callable, Sequence
from typing import Any

PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between two attempts."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors of the system that another attempt does not mend."""


class UnreachableError(OSError):
    """The system did not give a file, which may be sound."""


def retried(
    read: Callable[[Any], Any],
    name: Callable[[Any], str] = str,
    *,
    pauses: Sequence[float] = PAUSES,
    sleep: Callable[[float], Any] = time.sleep,
) -> Callable[[Any], Any]:
    """`read` with further attempts after errors of the system; all others are raised at once.

    Args:
        read: Function of a handle.
        name: Function from a handle to its name in messages.
        pauses: Seconds to wait before each further attempt.
        sleep: Function that waits.

    Returns:
        The function, which raises an UnreachableError with the name and the last reason.
    """

    def repeat(handle: Any) -> Any:
        for pause in pauses:
            try:
                return read(handle)
            except OSError as error:
                if not _may_pass(error):
                    raise
            sleep(pause)
        try:
            return read(handle)
        except OSError as error:
            if not _may_pass(error):
                raise
            raise UnreachableError(
                f"{name(handle)} cannot be read in {len(pauses) + 1} attempts "
                f"({error.strerror or type(error).__name__}): check the file system of the data"
            ) from error

    return repeat


def check_reachable(error: Exception, name: str) -> None:
    """Raises an UnreachableError if `error` is one of the system, not of the content of a file.

    Args:
        error: What a read or a decoder raised. Pillow's own OSErrors have no number.
        name: Name of the file in the message.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise UnreachableError(
            f"{name} cannot be read ({error.strerror}): check the file system of the data"
        ) from error


def _may_pass(error: OSError) -> bool:
    """True for an error of the system that another attempt may mend."""
    return error.errno is not None and not isinstance(error, LASTING)
