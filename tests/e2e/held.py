"""A binary that suspends itself once, as by SIGSTOP, when it has saved a step or a later one.

`python held.py STEP MODULE ARGUMENTS…`: so it can be killed or stopped at that step, however fast
or busy the machine is.
"""

import os
import runpy
import signal
import subprocess
import sys

from distill_core import checkpoint


def wait(process: subprocess.Popen):
    """Until the process has suspended itself; fails if it ends before."""
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None and found.si_code == os.CLD_STOPPED, process.communicate()[1]


def _hold(step: int):
    save, held = checkpoint.save, []

    def save_and_hold(workdir, at, **state):
        saving = save(workdir, at, **state)
        if at >= step and not held:
            held.append(at)
            saving.wait()
            os.kill(os.getpid(), signal.SIGSTOP)
        return saving

    checkpoint.save = save_and_hold


if __name__ == "__main__":
    step, module, *arguments = sys.argv[1:]
    _hold(int(step))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")
