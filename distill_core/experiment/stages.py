"""An experiment's stages: each runs once, and is skipped while what decides it stays the same."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from distill_core.checkpoint import integrity
from distill_core.config import InputError, to_json
from distill_core.privacy import noise
from distill_core.runtime import clock, process, profiling, strict_json
from distill_core.training.loop import StoppedError

FORMAT = 1  # raise it when finished stages of an older version must not be reused

# These change no number; data is known by content, input checkpoints by their ids, not by path.
NOT_KNOWN_BY = (
    "dataset",
    "data_dir",
    "log_every",
    "eval_every",
    "save_every",
    "eval_batch_size",
    "data_on_device",
    "steps_per_dispatch",
    "remat",
    "masked",  # of the group dp: a file of rows, which an experiment draws with its data
)
# Also the file below `private` with the data's fingerprint, by which private data can be guessed.
_RECORD = "stage.json"


class Run(NamedTuple):
    """A run of an experiment's plan, and the stage that it is.

    Attributes:
      arm, seed: its name.
      binary: `binary(settings, workdir, parallel=…) -> result`, JSON-able.
      settings: all but `inputs`.
      inputs: setting -> the run whose checkpoint it names.
      data: fingerprint of its data, where that is not the experiment's.
      about: what it is, in one line, for reports.
    """

    arm: str
    seed: int
    binary: Callable[..., dict[str, Any]]
    settings: Mapping[str, Any]
    inputs: Mapping[str, "Run"]
    data: str | None = None
    about: str = ""


class Runner(NamedTuple):
    """Completes the runs of an experiment, each in `<workdir>/runs/ARM/seedN`.

    Attributes:
      workdir: the experiment's.
      data: fingerprint of its data.
      mode: as for `parallel.choose_mode`.
    """

    workdir: epath.Path
    data: str
    mode: str | None = None

    def directory(self, run: Run) -> epath.Path:
        """The run's workdir."""
        return run_directory(self.workdir, run.arm, run.seed)

    def complete(self, run: Run, count: str = "") -> dict[str, Any]:
        """The result of a run, with "seconds"; see `run_stage`. The runs of its inputs are done."""
        directory = self.directory(run)
        paths = {name: str(self.directory(each)) for name, each in run.inputs.items()}
        return run_stage(
            directory,
            config={"binary": run.binary.__module__, **_known_by(run.settings)},
            data=run.data or self.data,
            inputs=[integrity.find(path)[1]["id"] for path in paths.values()],
            run=lambda: run.binary({**run.settings, **paths}, directory, parallel=self.mode),
            count=count,
        )

    def complete_all(self, runs: Iterable[Run]) -> dict[tuple[str, int], dict[str, Any]]:
        """Results by (arm, seed); inputs come first."""
        runs = list(runs)
        return {
            (run.arm, run.seed): self.complete(run, f" ({k} of {len(runs)})")
            for k, run in enumerate(runs, 1)
        }


def _known_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a number, also within groups."""
    return {
        k: _known_by(v) if isinstance(v, Mapping) else v
        for k, v in settings.items()
        if k not in NOT_KNOWN_BY
    }


def check_seeds(seeds: Sequence[int]):
    """Refuses an experiment without seeds, on several hosts, or with a trace of some steps.

    Raises:
      InputError: on `seeds`, `multihost` or `profile`.
    """
    if not seeds:
        raise InputError("seeds", seeds, "must name at least one seed")
    profiling.refuse("an experiment has many runs: profile one by its training binary")
    if jax.process_count() > 1:
        allowed = "an experiment runs on one host; start the training binaries on several"
        raise InputError("multihost", jax.process_count(), allowed)


def run_directory(workdir: epath.PathLike, arm: str, seed: int) -> epath.Path:
    """The workdir of a run of an experiment."""
    return epath.Path(workdir) / "runs" / arm / f"seed{seed}"


def run_stage(
    directory: epath.PathLike,
    *,
    config: Mapping[str, Any],
    data: str,
    inputs: Sequence[str],
    run: Callable[[], dict[str, Any]],
    count: str = "",
) -> dict[str, Any]:
    """Runs one stage in `directory`, unless it is there already; one line on stderr says why.

    A stage is known by its resolved `config` (JSON types) and `inputs`, the ids of the checkpoints
    it reads, which `<directory>/stage.json` remembers, and by `data`, the fingerprint of its data,
    which `<directory>/private/stage.json` does:

    | found | what happens |
    |---|---|
    | nothing, or an empty directory | `run()` |
    | finished, the same | nothing; the remembered result is returned |
    | begun, the same | `run()`, which resumes from what it left there |
    | another | the directory is emptied, then `run()` |

    Returns the result of `run` as JSON reads it back, "seconds": its time by the wall clock,
    compilation included, or None where a go was killed and so not counted, and "spent": of all goes
    but those killed, {"seconds" by activity, "speed" of the training} (`runtime.clock`). An
    exception in `run` passes through, and the stage stays begun.

    Raises InputError, and touches nothing, where the directory holds files but no stage.json, or
    one that cannot be read; TypeError where config or result are not JSON; StoppedError before it
    begins where the deadline of `process.stop_after` has passed. `count` stands behind the stage's
    name on stderr.
    """
    directory = epath.Path(directory)
    name = "/".join(directory.parts[-2:]) + count
    wanted = {"format": FORMAT, "config": _json(config, "config"), "inputs": list(inputs)}
    found, private = _read(directory), directory / noise.FOLDER / _RECORD
    known = json.loads(private.read_text())["data"] if private.exists() else None
    unsure = "" if known else f" (cannot tell whether its data changed: no {private})"
    begun = wanted | {"status": "started", "result": None}
    why = found and _why(found, wanted, data_changed=known not in (None, data))

    if found is not None and not why and found["status"] == "done":
        _say(f"{name}: up to date{unsure}")
        return {**found["result"], "seconds": found.get("seconds"), "spent": found.get("spent")}
    if process.is_overdue():
        raise StoppedError(f"stopped by the deadline before {name}; the same call goes on")
    before: float | None = 0.0
    earlier: dict[str, Any] = {}
    if found is None:
        _say(f"{name}: starting")
    elif why:
        _say(f"{name}: redoing: {why}")
        # Cut short, it must pass neither as the old stage nor as the new.
        _write(directory, begun | {"status": "removing"})
        _empty(directory)
    else:
        _say(f"{name}: resuming{unsure}")
        before, earlier = found.get("seconds"), found.get("spent") or {}
    began = time.monotonic()

    def so_far() -> float | None:
        return None if before is None else round(before + time.monotonic() - began, 3)

    def spent(recorded: clock.Spent | None) -> dict[str, Any]:
        if recorded is None:
            return earlier
        seconds = {
            name: round(value + earlier.get("seconds", {}).get(name, 0.0), 3)
            for name, value in recorded.seconds.items()
        }
        return {"seconds": seconds, "speed": recorded.speed or earlier.get("speed", {})}

    _write(directory, begun)
    noise.write_private(private, {"data": data})
    recorded = None
    try:
        with clock.recorded() as recorded:
            result = _json(run(), "result")
    except BaseException:
        _write(directory, begun | {"seconds": so_far(), "spent": spent(recorded)})
        raise
    more = {"seconds": so_far(), "spent": spent(recorded)}
    _write(directory, begun | {"status": "done", "result": result, **more})
    return {**result, **more}


def _say(line: str):
    """On stderr, beside the table that goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def _read(directory: epath.Path) -> dict[str, Any] | None:
    """The stage's record, or None where nothing is there yet."""
    path = directory / _RECORD
    if path.exists():
        try:
            record = json.loads(path.read_text())
            known = {"format", "config", "inputs"}
            if record["status"] in ("started", "done", "removing") and known <= set(record):
                return record
        except (ValueError, KeyError, TypeError):
            pass
        raise InputError("workdir", str(path), "not a stage's record; remove its directory")
    if directory.exists():
        unfinished = directory / f".{_RECORD}.tmp"  # of a first write that was cut short
        if not directory.is_dir() or set(directory.iterdir()) - {unfinished}:
            allowed = "is no stage: there is no stage.json; empty it or choose another workdir"
            raise InputError("workdir", str(directory), allowed)
    return None


def _write(directory: epath.Path, record: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    integrity.write_atomically(directory / _RECORD, strict_json.encode(record, indent=2) + "\n")


def _empty(directory: epath.Path) -> None:
    """Removes all but the record; a link goes, what it points to stays."""
    for child in directory.iterdir():
        if child.name == _RECORD:
            continue
        if child.is_dir() and not os.path.islink(child):
            child.rmtree()
        else:
            child.unlink()


def _why(found: dict[str, Any], wanted: dict[str, Any], *, data_changed: bool) -> str:
    """Why a stage has to be redone; empty where it has not."""
    if found["status"] == "removing":
        return "its removal was interrupted"
    old, new = (_flat(record["config"]) for record in (found, wanted))
    changes = [
        f"{field} {_short(old.get(field))} → {_short(new.get(field))}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    ]
    if changes:
        more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
        return f"settings changed: {', '.join(changes[:4])}{more}"
    if data_changed:
        return "the data changed"
    if found["inputs"] != wanted["inputs"]:
        return "its input checkpoints changed"
    return "" if found["format"] == wanted["format"] else "made by another version"


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted field -> its value as JSON writes it, which tells 1, 1.0 and true apart."""
    if not (isinstance(value, dict) and value):
        return {prefix: json.dumps(value, sort_keys=True, ensure_ascii=False)}
    below = (_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
    return {field: text for each in below for field, text in each.items()}


def _short(text: str | None) -> str:
    text = "unset" if text is None else text.strip('"')
    return text if len(text) <= 40 else text[:37] + "…"


def _json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A copy in JSON's types, as it will be read back."""
    try:
        return json.loads(strict_json.encode(to_json(dict(value))))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what}: must be a mapping in JSON's types: {error}") from error
