"""Waits for the end of its standard input, then ends every process that carries a run's mark. See `house.Guardian`.

`python -m tensoryard.benchmarks.guardian MARK`.
"""

from __future__ import annotations

import signal
import sys

from .house import sweep

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(sys.argv[1], patience_s=0)
