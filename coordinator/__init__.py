"""The coordinator: routes RequestID-tagged work to workers by task and model.

`router.py` decides, `broker.py` speaks with the peers, `process.py` does. This layer never imports ray, numpy or a
pipeline.
"""

from .connection import Connection, connections, read_connection
from .process import Coordinator
from .router import Router

__all__ = ["Connection", "Coordinator", "Router", "connections", "read_connection"]
