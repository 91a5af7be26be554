"""Logs on standard error: one line an event, its fields behind it as key=value."""

from __future__ import annotations

import json
import logging
import sys
import time

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class EventFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z WARNING lakemesh.agents.runtime what happened agent=echo`."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = f"{when}.{int(record.msecs):03d}Z {record.levelname} {record.name} "
        text += record.getMessage()
        for key, value in vars(record).items():
            if key not in _STANDARD:
                text += f" {key}={json.dumps(value, default=str)}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure_logs(level: str) -> None:
    """Send this process's logs to standard error; `level` is debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Uvicorn's access log would cost more than the request it tells of; spans have it all.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
