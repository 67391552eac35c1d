"""Events that TensorBoard shows, written at once and without threads.

A thread that fails to write, as on a full disk, could only print; here the caller gets the error.
"""

import contextlib
import io
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.cli import images
from score_jax.devices import is_first_process


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
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

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
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(Summary.Value(tag=tag, simple_value=value), step)

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Adds an image, uint8 [height, width, channels]."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width, channels = image.shape
        stored = Summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=images.encoded(image, format="PNG"),
        )
        self._add(Summary.Value(tag=tag, image=stored), step)

    def _add(self, value: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(Event(summary=Summary(value=[value]), step=step))

    def _write(self, event: Any) -> None:
        """Appends an event, whole or not at all."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        event.wall_time = time.time()
        whole = io.BytesIO()
        RecordWriter(whole).write(event.SerializeToString())
        record, begin = whole.getbuffer(), self._file.tell()
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), begin)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
