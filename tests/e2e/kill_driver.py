"""A program that runs tests/distill_core/tiny_run.py and kills it again and again.

`python kill_driver.py WORKDIR KILLS SEED SETTINGS` prints {"kills": N, "in_save": N}. It imports
JAX once and forks, so that a run starts fast; no device is touched before the fork.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "distill_core"))
import tiny_run

from distill_core.checkpoint import store

store._orbax()  # imported once for all


def _start(workdir: Path, settings: dict, brake: int | None = None) -> int:
    """A child that runs; at the step `brake` it suspends itself in the midst of a save."""
    child = os.fork()
    if not child:
        code = 1
        finish = store.finish

        def finish_or_wait(path, metadata):
            if brake is not None and metadata["step"] >= brake:
                os.kill(os.getpid(), signal.SIGSTOP)
            finish(path, metadata)

        store.finish = finish_or_wait
        try:
            tiny_run.run(workdir, **settings)
            code = 0
        finally:
            os._exit(code)
    return child


def _newest(workdir: Path) -> int:
    found = (workdir / "checkpoints").glob("*/metadata.json")
    return max((int(path.parent.name) for path in found), default=0)


def _is_saving(workdir: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        for path in (workdir / "checkpoints").iterdir():
            if not (path / "metadata.json").exists():
                return True
    return False


def main(workdir: Path, kills: int, seed: int, settings: dict) -> dict[str, int]:
    """A third of the kills comes at any moment from the start on, the others after some progress:
    a third anywhere, a third while a checkpoint is being written."""
    moments = random.Random(seed)
    in_save = 0
    for i in range(kills):
        before, progress = _newest(workdir), moments.randint(1, 3)
        child = _start(workdir, settings, brake=before + 8)  # a busy machine may look late
        while i % 3 and _newest(workdir) < before + progress:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended before it was killed"
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1 if i % 3 else 1.5))
        while i % 3 == 2:
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)
            if _is_saving(workdir):
                break
            os.kill(child, signal.SIGCONT)
            time.sleep(0.0002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "ended before it was killed"
        in_save += _is_saving(workdir)
    _, status = os.waitpid(_start(workdir, settings), 0)
    assert status == 0
    return {"kills": kills, "in_save": in_save}


if __name__ == "__main__":
    workdir, kills, seed, settings = sys.argv[1:]
    print(json.dumps(main(Path(workdir), int(kills), int(seed), json.loads(settings))))
