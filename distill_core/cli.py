"""Flags, start-up and exit codes of the binaries.

Exit codes: 0 done; 1 the system failed us (disk full, …); 2 wrong input, in one line; 3 diverged;
4 stopped by a signal after saving.
"""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags

EXIT_SYSTEM, EXIT_INPUT, EXIT_DIVERGED, EXIT_STOPPED = 1, 2, 3, 4
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def launch_training(run: Callable[..., Any]):
    """Entry point of a binary with `--config` and `--workdir`.

    Args:
      run: `run(config, workdir, parallel=None)`; `config` is the file's locked ConfigDict.
    """
    from ml_collections import config_flags

    config = config_flags.DEFINE_config_file(
        "config", None, "Config file, `path.py` or `path.py:arg`; --config.FIELD=VALUE overrides."
    )
    workdir = flags.DEFINE_string("workdir", None, "Where the run lives: local or gs://…")
    mode = flags.DEFINE_enum(
        "parallel",
        None,
        ["pmap", "shard_map", "mesh"],
        "How a step is spread over several devices; the default is pmap.",
    )
    start = _define_cluster_flags()

    def main():
        _require("config", config.value, "--config configs/….py is required")
        _require("workdir", workdir.value, "--workdir is required")
        start()
        run(config.value, workdir.value, parallel=mode.value)

    launch(main)


def launch(main: Callable[[], Any]):
    """Parses flags, runs `main`, turns what a user can cause into one line and an exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.captureWarnings(True)
    for name in (signal.SIGTERM, signal.SIGINT):
        # Before the loop there is nothing to save; the loop puts its own handlers in.
        signal.signal(name, lambda *_: os._exit(EXIT_STOPPED))
    sys.exit(_guarded(lambda: (_parse(sys.argv), main())))


def _guarded(action: Callable[[], Any]) -> int:
    from distill_core import checkpoint, config, loop

    try:
        action()
    except config.InputError as error:
        return _fail(EXIT_INPUT, str(error))
    except loop.DivergedError as error:
        return _fail(EXIT_DIVERGED, str(error))
    except loop.StoppedError as error:
        return _fail(EXIT_STOPPED, str(error))
    except checkpoint.CheckpointError as error:
        return _fail(EXIT_SYSTEM, str(error))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return _fail(EXIT_SYSTEM, f"{error.filename or 'workdir'}: {error.strerror}")
    return 0


def _parse(argv: list[str]):
    from distill_core import config

    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        name, value = error.flagname, error.flagvalue
        near = flags._helpers.get_flag_suggestions(name, list(flags.FLAGS))
        hint = f"did you mean --{near[0]}?" if near else "see --help"
        field = name.removeprefix("config.")
        raise config.InputError(field, value, f"no such field or flag; {hint}") from None
    except flags.Error as error:
        raise _bad_flag(argv, error) from None
    except (SystemExit, KeyboardInterrupt):
        raise
    except Exception as error:
        # Whatever a user's config file raises while it is read.
        raise config.InputError(
            "config",
            next((a for a in argv[1:] if ".py" in a or "config" in a), None),
            f"is not a config file with get_config(): {type(error).__name__}: {error}",
        ) from None
    if len(rest) > 1:
        raise config.InputError("arguments", rest[1:], "flags only; see --help")


def _bad_flag(argv: list[str], error: Exception):
    from distill_core import config

    message = " ".join(str(error).split())
    for argument in argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if name and f"--{name}=" in message:
            return config.InputError(name.removeprefix("config."), value, message.split(": ", 1)[-1])
    return config.InputError("flags", argv[1:], message)


def _require(name: str, value: object, allowed: str):
    from distill_core import config

    if not value:
        raise config.InputError(name, value, allowed)


def _define_cluster_flags() -> Callable[[], None]:
    multihost = flags.DEFINE_bool("multihost", False, "One process of several; JAX finds the rest.")
    address = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
    count = flags.DEFINE_integer("num_processes", None, "Processes of a hand-started cluster.")
    index = flags.DEFINE_integer("process_id", None, "This process's index.")

    def start():
        from distill_core import parallel

        parallel.start(
            multihost=multihost.value,
            coordinator_address=address.value,
            num_processes=count.value,
            process_id=index.value,
        )

    return start


def _fail(code: int, line: str) -> int:
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code

