"""What a process that decodes may not do: use up the memory, dump core, reach the network."""

from __future__ import annotations

import ctypes
import os
import resource

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def isolate(memory_gb: float) -> None:
    """Limit this process before it opens a file that others made."""
    limit = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _leave_the_network()


def _leave_the_network() -> None:
    """Enter an empty network namespace, if the system permits it: no container can cause a request."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) and os.getuid():
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
