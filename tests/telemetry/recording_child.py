"""A worker that records spans for ever and tells which of them it acknowledged, until killed.

Run with a data directory. Each acknowledged span id is a line of 17 bytes on standard output,
written with one system call after `record` has returned.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lakemesh.telemetry.telemetry import open_telemetry
from tests.telemetry.spans import new_span


def main() -> None:
    telemetry = open_telemetry(Path(sys.argv[1]), flush_interval=0.1, batch_size=100)
    telemetry.start()
    while True:
        for _ in range(20):
            if telemetry.status().recorded % 3:
                span = new_span()
                telemetry.recorder.record(span)
                acknowledged = span.span_id.encode() + b"\n"
            else:
                spans = [new_span(), new_span()]
                telemetry.recorder.record_all(spans)
                acknowledged = b"".join(span.span_id.encode() + b"\n" for span in spans)
            os.write(1, acknowledged)
        time.sleep(0.002)


if __name__ == "__main__":
    main()
