"""The Python client library: needs neither ray nor a pipeline's libraries.

`connect()` for threads, `connect_async()` for event loops.
"""

from .aio import AsyncClient, AsyncReply, connect_async
from .client import Client, connect
from .ledger import CopyLedger
from .reply import Reply
from .retry import Retry

__all__ = ["AsyncClient", "AsyncReply", "Client", "CopyLedger", "Reply", "Retry", "connect", "connect_async"]
