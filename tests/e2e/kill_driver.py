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

from distill_core import checkpoint

checkpoint._orbax()  # imported once for all


def _start(workdir: Path, settings: dict) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            tiny_run.run(workdir, **settings)
            code = 0
        finally:
            os._exit(code)
    return child


def _finished(workdir: Path) -> list[int]:
    found = (workdir / "checkpoints").glob("*/metadata.json")
    return sorted(int(path.parent.name) for path in found)


def _is_saving(workdir: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        for path in (workdir / "checkpoints").iterdir():
            if not (path / "metadata.json").exists():
                return True
    return False


def main(workdir: Path, kills: int, seed: int, settings: dict) -> dict[str, int]:
    """Every kill comes after some progress: half of them anywhere, half while a save is written."""
    moments = random.Random(seed)
    in_save = 0
    for i in range(kills):
        before = _finished(workdir)
        child = _start(workdir, settings)
        while _finished(workdir)[-1:] == before[-1:]:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended before it was killed"
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        if i % 2:
            while not _is_saving(workdir):
                pass
            time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "ended before it was killed"
        in_save += _is_saving(workdir)
    _, status = os.waitpid(_start(workdir, settings), 0)
    assert status == 0
    return {"kills": kills, "in_save": in_save}


if __name__ == "__main__":
    workdir, kills, seed, settings = sys.argv[1:]
    print(json.dumps(main(Path(workdir), int(kills), int(seed), json.loads(settings))))
