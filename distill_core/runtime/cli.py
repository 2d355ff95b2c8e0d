"""Flags, start-up and exit codes of the binaries.

Exit codes: 0 done; 1 the system failed (disk full, …); 2 wrong input, in one line; 3 diverged;
4 stopped by a signal or a deadline after saving.
"""

import argparse
import contextvars
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from distill_core import config
from distill_core.config import InputError, suggest
from distill_core.models import trust
from distill_core.runtime import compilation_cache, paths

EXIT_SYSTEM, EXIT_INPUT, EXIT_DIVERGED, EXIT_STOPPED = 1, 2, 3, 4
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Flags(argparse.ArgumentParser):
    """argparse whose errors are InputErrors."""

    def __init__(self, description: str | None, settings: type | None = None):
        """`settings` is the class of what `--config` may set, if the binary takes one."""
        self.fields = config.fields(settings) if settings else {}
        super().__init__(
            description=description,
            epilog=_describe(settings) if settings else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self.add_argument(
            "--trust",
            action="append",
            default=[],
            metavar="PACKAGE[,…]",
            help="allows checkpoints to import networks from PACKAGE, which runs its code",
        )
        self.add_argument(
            "--compilation_cache",
            metavar="DIR|off",
            help="keeps compiled programs there; by default in the user's cache directory",
        )

    def read(self, argv: Sequence[str], *, required: Sequence[str] = ()) -> argparse.Namespace:
        """The flags' values; from here on, what `--trust` names is trusted (see `exit_code`).

        Raises InputError on an unknown flag, a value of the wrong type or a missing required flag.
        """
        try:
            found, unknown = self.parse_known_args(argv)
        except argparse.ArgumentError as error:
            name = (error.argument_name or "flags").split("/")[0]
            raise InputError(name.lstrip("-"), _given(argv, name), error.message) from None
        if unknown:
            flag = unknown[0].partition("=")[0]
            if not flag.startswith("-"):
                raise InputError("arguments", unknown[0], "flags only, --NAME=VALUE; see --help")
            name = flag.lstrip("-")
            is_field = name in self.fields
            hint = f"did you mean config.{name}?" if is_field else suggest(name, vars(found))
            raise InputError(name, _given(argv, flag), f"no such flag; {hint}")
        for name in required:
            if not getattr(found, name):
                raise InputError(name, getattr(found, name), f"--{name} is required; see --help")
        trust.allow(name for names in found.trust for name in names.split(","))
        compilation_cache.keep(vars(found).pop("compilation_cache"))
        return found

    def error(self, message: str) -> NoReturn:
        raise InputError("flags", " ".join(sys.argv[1:]), message)


def launch_training(
    run: Callable[..., Any], settings: type, *, preview: Callable[[Any], Any] | None = None
):
    """Entry point of a binary with `--config` and `--workdir`.

    Calls `run(config, workdir, parallel=MODE)` with the file's ConfigDict, locked, after the
    overrides of the command line. `settings` is the class of all that a config may set. A binary
    with a `preview` has the flag `--preview`, with which `preview(config)` is called instead.
    """
    launch(lambda argv: run_training(run, settings, argv, preview=preview))


def run_training(
    run: Callable[..., Any],
    kind: type,
    argv: Sequence[str],
    *,
    preview: Callable[[Any], Any] | None = None,
):
    """`launch_training` within this process: raises InputError instead of exiting."""
    from distill_core.runtime import config_file, parallel, profiling

    flags = Flags(sys.modules[run.__module__].__doc__, kind)
    flags.add_argument("--config", metavar="FILE.py[:ARG]", help="defines get_config(arg)")
    flags.add_argument("--workdir", metavar="DIR", help="where the run lives: local or gs://…")
    flags.add_argument(
        "--parallel",
        metavar="MODE",
        help=f"spreads a step over several devices: {', '.join(parallel.MODES)}; default pmap",
    )
    flags.add_argument(
        "--mesh",
        metavar="data:D,model:M",
        help="the mode mesh: batches and parameters split over D devices, heads, MLPs and the "
        "vocabulary of a network of text over M",
    )
    flags.add_argument(
        "--multihost", action="store_true", help="one process of several; JAX finds the rest"
    )
    flags.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    flags.add_argument(
        "--num_processes", type=int, metavar="N", help="of a cluster that is started by hand"
    )
    flags.add_argument("--process_id", type=int, metavar="I", help="this process's index")
    flags.add_argument(
        "--profile",
        metavar="START:STOP",
        help="traces these steps for TensorBoard's profile plugin, into DIR/tensorboard",
    )
    if preview:
        flags.add_argument("--preview", action="store_true", help=preview.__doc__)
    overrides, others = config_file.split(argv)
    only_shows = preview is not None and "--preview" in others
    given = flags.read(others, required=("config",) if only_shows else ("config", "workdir"))
    settings = config_file.read(given.config, overrides, kind)
    if preview and only_shows:
        preview(settings)
        return
    if given.mesh is not None and given.parallel not in (None, "mesh"):
        raise InputError("mesh", given.mesh, f"is a mode, as --parallel={given.parallel} is")
    if given.mesh is not None and ":" not in given.mesh:
        raise InputError("mesh", given.mesh, "must be data:N or data:N,model:M")
    workdir = str(paths.folder_to_write("workdir", given.workdir))
    parallel.start(
        multihost=given.multihost,
        coordinator_address=given.coordinator_address,
        num_processes=given.num_processes,
        process_id=given.process_id,
    )
    with profiling.steps(given.profile):
        run(settings, workdir, parallel=given.mesh or given.parallel)


def launch(main: Callable[[Sequence[str]], Any]):
    """Runs `main(arguments)`; an error that a user can cause becomes one line and an exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.captureWarnings(True)
    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        if hasattr(stream, "reconfigure"):  # not in a notebook
            # Characters that the console's encoding lacks, such as ± or τ, are written as `?`.
            stream.reconfigure(errors="replace")
    for name in (signal.SIGTERM, signal.SIGINT):
        # Before the loop there is nothing to save; the loop installs its own handlers.
        signal.signal(name, lambda *_: os._exit(EXIT_STOPPED))
    from distill_core.runtime import parallel

    try:
        code = exit_code(main, sys.argv[1:])
    except (Exception, KeyboardInterrupt):
        parallel.leave(EXIT_SYSTEM, traceback.format_exc())
        raise
    if code == EXIT_SYSTEM:
        parallel.leave(code)
    sys.exit(code)


def exit_code(main: Callable[[Sequence[str]], Any], argv: Sequence[str]) -> int:
    """Runs `main(argv)` and returns the exit code; prints an error to stderr, in one line.

    What `--trust` names is trusted only within `main`.
    """
    from distill_core import checkpoint
    from distill_core.runtime import parallel
    from distill_core.training import loop

    try:
        contextvars.copy_context().run(main, argv)
    except InputError as error:
        code = _fail(EXIT_INPUT, str(error))
        parallel.roll_call(None)
        return code
    except (loop.DivergedError, loop.StoppedError, checkpoint.CheckpointError) as error:
        codes = {loop.DivergedError: EXIT_DIVERGED, loop.StoppedError: EXIT_STOPPED}
        return _fail(codes.get(type(error), EXIT_SYSTEM), str(error))
    except OSError as error:
        if error.errno is None or not (error.filename or error.errno in _FULL):
            raise
        return _fail(EXIT_SYSTEM, f"{error.filename or 'workdir'}: {error.strerror}")
    return 0


def _given(argv: Sequence[str], flag: str) -> str | None:
    """The value that the arguments give to a flag."""
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else following
    return None


def _describe(settings: type, group: str = "") -> str:
    """One line per field; the fields of a group follow it."""
    lines = []
    if not group:
        lines.append("every field of a config can also be given here: --config.FIELD=VALUE")
    for name, field in config.fields(settings).items():
        default = "required" if field.required else f"default {config.to_json(field.default)!r}"
        if field.kind is not None:
            lines.append(f"  {group}{name}: {field.help}; a group:")
            lines.append(_describe(field.kind, f"{group}{name}."))
            continue
        meaning = f"{field.help}; " if field.help else ""
        lines.append(f"  {group}{name}: {meaning}{field.allowed}; {default}")
    return "\n".join(lines)


def _fail(code: int, line: str) -> int:
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code
