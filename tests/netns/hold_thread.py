"""Holds one thread of a process, as if it were stuck: `hold_thread.py PID NAME`, until this ends. The others go on."""

import ctypes
import os
import pathlib
import signal
import sys

SEIZE, INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000  # ptrace(2), waitpid(2)

process, name = sys.argv[1:]
tasks = pathlib.Path(f"/proc/{process}/task").iterdir()
thread = next(int(task.name) for task in tasks if (task / "comm").read_text().strip() == name)

ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
for request in (SEIZE, INTERRUPT):
    if ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
os.waitpid(thread, WALL)
print("held", flush=True)
# The kernel lets it go when its tracer ends.
signal.pause()
