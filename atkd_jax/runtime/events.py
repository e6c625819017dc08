"""TensorBoard event files, written in the calling thread.

tensorboardX's SummaryWriter uses a thread. On a full disk it dies with a traceback and later calls
block forever; here the caller gets the OSError.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class Events:
    """A new event file in `folder`.

    Args:
      purge_step: TensorBoard discards what older files contain for this and later steps.
    """

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = EventsWriter(str(folder.absolute() / "events"))  # "s3:..." would be a bucket
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), purge_step)

    def _write(self, event: Event, step: int) -> None:
        event.step, event.wall_time = step, time.time()
        self.writer.write_event(event)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._write(Event(summary=scalar(name, value)), step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
