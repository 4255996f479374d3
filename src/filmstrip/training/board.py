"""Figures of a run in TensorBoard's format.

Records are written here and now with TensorBoard's own encoder. `torch.utils.tensorboard` writes them in a thread,
where a full disk ends in a traceback of that thread and in errors of later calls that have nothing to do with it.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """An event file below `directory`. Events after `step` of an earlier run there are hidden by TensorBoard.

    Raises `ImportError` where TensorBoard is not installed; every method raises what the system refuses (`OSError`).
    """

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((directory / name).open("ab"))
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, figures: Mapping[str, Any]) -> None:
        """Write every number among the figures of a step."""
        numbers = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(step=step, summary=self._summary(value=values))

    def flush(self) -> None:
        """Hand everything to the system."""
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
