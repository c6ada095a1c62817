"""Becomes another Python program, with limits and without a network; nothing imports this.

    python -I confined.py MEMORY_BYTES CPU_S FILE_BYTES PROGRAM ARGUMENTS

It says first, in one line of JSON, whether it could be parted from the network: without the right
to make namespaces it cannot, and the program goes on under the limits alone.

References:
    setrlimit(2); unshare(2), CLONE_NEWNET, CLONE_NEWUSER.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys

NEW_NET, NEW_USER = 0x40000000, 0x10000000
FILES = 256
NICE = 10


def main(memory: int, cpu_s: int, file_bytes: int, program: list[str]) -> None:
    """Limit this process, and run the program in it."""
    libc = ctypes.CDLL(None)
    isolated = any(libc.unshare(flags) == 0 for flags in (NEW_NET, NEW_USER | NEW_NET))
    print(json.dumps({"isolated": isolated}), flush=True)
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    os.nice(NICE)
    os.execv(sys.executable, [sys.executable, "-I", *program])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
