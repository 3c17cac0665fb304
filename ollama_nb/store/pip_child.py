"""pip in a process that ends with ours. Run by its path: ``python pip_child.py PARENT_PID ARGUMENTS…``.

Standard library only, and nothing of this package: the folder that it is run in may know neither.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        # The thread that starts us waits for our end, so that the signal comes with the end of its process only.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    sys.argv = ["pip", *sys.argv[2:]]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
