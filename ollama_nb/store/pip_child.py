"""Run pip in a process that ends with its parent. Usage: ``python pip_child.py PARENT_PID ARGUMENTS…``.

This script is run by its path and imports nothing but the standard library, because the working folder of pip gives no
access to this package.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def main() -> None:
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        # The signal follows the thread that started us; that thread waits for us, so it ends only with its process.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    sys.argv = ["pip", *sys.argv[2:]]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
