"""Events that TensorBoard shows, written at once and without threads.

A thread that fails to write, as on a full disk, could only print; here the caller gets the error.
"""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.devices import is_first_process

MASK = 0xA282EAD8
"""Constant that the format of event files adds to checksums."""


class EventWriter:
    """Writes a file of events to a folder; a context manager.

    Of several processes, only the first one writes.

    Args:
        folder: The folder, which exists.
        step: Last step that is kept of earlier files: TensorBoard drops what follows.

    Raises:
        OSError: If the file cannot be written, also in the methods.
    """

    def __init__(self, folder: str | Path, step: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # Two files of one second must not replace each other.
        number = len(list(Path(folder).glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{number}"
        self._path = Path(folder) / name if is_first_process() else Path(os.devnull)
        self._file = self._path.open("ab", buffering=0)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; everything has been written before."""
        self._file.close()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Adds a number."""
        from tensorboardX.summary import scalar

        self._add(scalar(tag, value), step)

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Adds an image, uint8 [height, width, channels]."""
        from tensorboardX.summary import image as image_summary

        self._add(image_summary(tag, image, dataformats="HWC"), step)

    def _add(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._write(Event(summary=summary, step=step))

    def _write(self, event: Any) -> None:
        """Appends an event, whole or not at all: length, its checksum, content, its checksum."""
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = len(content).to_bytes(8, "little")
        record = memoryview(length + _checksum(length) + content + _checksum(content))
        begin = self._file.tell()
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), begin)
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def _checksum(content: bytes) -> bytes:
    """The masked CRC-32C of the format."""
    from tensorboardX.crc32c import crc32c

    crc = crc32c(content)
    return ((((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF).to_bytes(4, "little")
