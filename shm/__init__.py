"""Shared memory: sealed segments, the tensor pool, leases and the handles that travel.

The ground layer: numpy and the operating system only, and `errors.py`. A process has one `Pool` (what it owns) and one
`Reader` (what others own).
"""

from .courier import Courier
from .handle import SharedMemoryArray
from .inspector import Inspector, PoolReport
from .ledger import LiveBlock, PoolStatistics
from .os_memory import host_name
from .pool import Loan, Pool
from .reader import Reader
from .runtime_dir import runtime_dir

__all__ = [
    "Courier",
    "Inspector",
    "LiveBlock",
    "Loan",
    "Pool",
    "PoolReport",
    "PoolStatistics",
    "Reader",
    "SharedMemoryArray",
    "host_name",
    "runtime_dir",
]
