"""From a teacher to private students: all privacy units in one table.

    python -m dpdfd.experiment --config configs/dpdfd/digits.py --workdir runs/dpdfd_demo

The report is for the owner of the data: it shows teachers without privacy, and audits; a table in
it says what may be published.

Per seed: the teachers (plain, DP-SGD, ensembles), trained on data with planted canaries; then every
arm's student, what it makes of the generator, and what an audit finds. Every run is a stage in
`<workdir>/runs/`: a finished one is skipped while its settings, data and input checkpoints stay the
same.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from distill_core import checkpoint, config, data, train
from distill_core.config import InputError
from distill_core.experiment import report, stages
from distill_core.experiment.stages import Run, run_directory
from distill_core.models import checks, trust
from distill_core.models.network import image_network
from distill_core.training import classification, dp_settings
from dpdfd import evaluate, settings
from dpdfd import train as conversion
from dpdfd.ensemble import partitions
from dpdfd.ensemble import training as ensemble
from dpdfd.experiment import audit, summary
from dpdfd.fresh import SOURCES, Recipe
from dpdfd.privacy.units import UNITS


@config.settings
class Fresh:
    """The classifier that learns from what an arm's generator draws."""

    model: str | None = config.text(default=None, help="its network; by default the student's")
    model_kwargs: Mapping[str, Any] = config.mapping(default={}, help="the network's own settings")
    source: str = config.choice(*SOURCES, default="generator", help="who draws the images")
    num_samples: int = config.integer(1, default=2000, help="images to draw")
    num_steps: int = config.integer(1, default=400, help="updates in all")
    temperature: float = config.number(
        0.0, above=True, default=1.0, help="of labels and network in the loss"
    )


@config.settings
class Settings:
    """Of the comparison."""

    dataset: str = config.text(help="digits, tfds:NAME, npz:PATH or folder:PATH")
    data_dir: str | None = config.text(default=None, help="where tfds:NAME was prepared")
    seeds: tuple[int, ...] = config.sequence(config.integer(0), help="one comparison each")
    delta: float = config.number(0.0, 1.0, default=1e-5, above=True, help="of every claim")
    num_canaries: int = config.integer(0, default=0, help="images with wrong labels, to audit")
    configurations_tried: int | None = config.integer(
        0, default=None, help="on the private data, for the report"
    )
    teachers: Mapping[str, Any] = config.mapping(
        help="NAME: settings of the binary that trains it; an ensemble has num_teachers"
    )
    student: Mapping[str, Any] = config.mapping(help="what the arms' settings have in common")
    arms: Mapping[str, Any] = config.mapping(
        help="NAME: teacher, settings of dpdfd.train, and fresh, where that is another"
    )
    once: tuple[str, ...] = config.sequence(
        config.text(), default=(), help="teachers and arms that run with the first seed alone"
    )
    fresh: Fresh = config.group(Fresh, default={}, help="who learns from the generators' images")
    bars: Mapping[str, Any] = config.mapping(default={}, help="arm: metric: at least")


_COMMON = ("dataset", "data_dir", "seed", "delta")  # the same in all runs, or made from `seeds`


@trust.config_allows
def run(
    given: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs or completes the experiment; writes results.json, report.html and the figures.

    Args:
      given: a config or mapping with the fields of `Settings`.
      workdir: where the run lives, local or `gs://…`.
      parallel: how a step is spread over devices, as `--parallel` or `--mesh`.

    Returns:
      Each run's result by (teacher or arm, seed).
    """
    hp = config.validate(given, Settings)
    workdir, began = epath.Path(workdir), time.monotonic()
    dataset = data.load_dataset(hp.dataset, data_dir=hp.data_dir)
    _check(hp, dataset)
    planted = _planted(hp, workdir, dataset)
    runner = stages.Runner(workdir, dataset.fingerprint(), parallel)
    results: dict[tuple[str, int], dict[str, Any]] = {}
    # What runs once comes last: it is slow.
    for seed, once in [*((seed, False) for seed in hp.seeds), (hp.seeds[0], True)]:
        taught = teachers(hp, planted, seed)
        for each in taught.values():
            if (each.arm in hp.once) == once:
                found = runner.complete(each)
                _, metadata = checkpoint.find(runner.directory(each))
                results[each.arm, seed] = {**found, "ledger": metadata["ledger"]}
        for each in students(hp, taught, planted, seed):
            if (each.arm in hp.once) == once:
                found = runner.complete(each)
                results[each.arm, seed] = found | runner.complete(_evaluation(hp, each))
    for name, absent in _audited(hp).items():
        bound = _audit(hp, workdir, planted, name, absent)
        results[name, hp.seeds[0]] |= bound
    minutes = (time.monotonic() - began) / 60
    report.publish(summary.report_of(hp, dataset, results, minutes), workdir)
    return results


class Planted(NamedTuple):
    """A data set with canaries: its name, the file of the canaries, and its fingerprint."""

    dataset: str
    canaries: str
    fingerprint: str


def teachers(hp: Settings, planted: Mapping[str, Planted], seed: int) -> dict[str, Run]:
    """The runs of one seed's teachers by name; `planted` has what stands for an absent canary."""
    found = {}
    for k, (name, mine) in enumerate(hp.teachers.items()):
        binary = ensemble if "num_teachers" in mine else train
        own: dict[str, Any] = {"dataset": hp.dataset, "data_dir": hp.data_dir}
        saw = planted.get(_absent(mine))
        if saw is not None:
            own = {"dataset": saw.dataset}
            if mine.get("dp"):
                own["dp"] = {**mine["dp"], "masked": str(audit.masked_file(saw.canaries))}
        settings = {**mine, **own, "seed": 100 * seed + k}
        fingerprint = None if saw is None else saw.fingerprint
        found[name] = Run(name, seed, binary.train_and_evaluate, settings, {}, fingerprint)
    return found


def students(
    hp: Settings, taught: Mapping[str, Run], planted: Mapping[str, Planted], seed: int
) -> list[Run]:
    """The conversions of one seed's teachers; `planted` as for `teachers`."""
    found = []
    arms = {arm: {**hp.student, **mine} for arm, mine in hp.arms.items()}
    for arm, own in sorted(arms.items(), key=_place):
        teacher = taught[own.pop("teacher")]
        own.pop("fresh", None)
        own |= {
            "dataset": hp.dataset,
            "data_dir": hp.data_dir,
            "seed": 100 * seed + 50,
            "delta": hp.delta,
        }
        if own.get("moments") and (saw := planted.get("masked")):  # of the teacher's own records
            masked = str(audit.masked_file(saw.canaries))
            own |= {"dataset": saw.dataset, "moments": {**own["moments"], "masked": masked}}
        found.append(Run(arm, seed, conversion.train_and_evaluate, own, {"teacher": teacher}))
    return found


def _place(arm: tuple[str, Mapping[str, Any]]) -> tuple[int, str]:
    """Arms in the order of their units: configs do not keep one."""
    return ("none", *UNITS).index(arm[1]["privacy_unit"]), arm[0]


def _absent(teacher: Mapping[str, Any]) -> str:
    """What stands for a canary that is not in the data: as the teacher's adjacency has it."""
    return "masked" if teacher.get("dp") else "replaced"


def _planted(hp: Settings, workdir: epath.Path, dataset: data.Dataset) -> dict[str, Planted]:
    """What stands for an absent canary -> the data set."""
    found, count = {}, hp.num_canaries
    if not count:
        return found
    for absent in sorted({_absent(mine) for mine in hp.teachers.values()}):
        planted = audit.plant(
            dataset.train.images,
            dataset.train.labels,
            num_canaries=count,
            num_classes=dataset.num_classes,
            seed=0,
            absent=absent,
        )
        name, canaries = audit.write(workdir / "data" / absent, dataset, planted)
        found[absent] = Planted(name, canaries, data.load_dataset(name).fingerprint())
    return found


def _evaluation(hp: Settings, student: Run) -> Run:
    """What a fresh classifier learns from an arm's generator."""
    fresh = {**config.to_json(hp.fresh), **hp.arms[student.arm].get("fresh", {})}
    own = {**fresh, "seed": 100 * student.seed + 51}
    own |= {"dataset": hp.dataset, "data_dir": hp.data_dir}
    arm = f"{student.arm}_evaluated"
    return Run(arm, student.seed, evaluate_generator, own, {"conversion": student})


def evaluate_generator(
    settings: Mapping[str, Any], workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """`dpdfd.evaluate` of the checkpoint `conversion`, its files in the workdir."""
    del parallel  # one device
    own = dict(settings)
    source, dataset, data_dir = (own.pop(name) for name in ("conversion", "dataset", "data_dir"))
    return evaluate.evaluate(source, dataset, data_dir=data_dir, out=workdir, recipe=Recipe(**own))


def _audited(hp: Settings) -> dict[str, str]:
    """Teacher or arm -> the kind of canaries that its training data had."""
    if not hp.num_canaries:
        return {}
    of = {name: _absent(mine) for name, mine in hp.teachers.items()}
    named = {name: absent for name, absent in of.items() if absent == "masked"}
    control = summary.control(hp)
    named |= {name: of[name] for name in (control,) if name}
    return named | {arm: of[mine["teacher"]] for arm, mine in hp.arms.items()}


def _audit(hp, workdir, planted, name: str, absent: str) -> dict[str, Any]:
    loaded = checkpoint.load_model(run_directory(workdir, name, hp.seeds[0]))
    canaries = planted[absent].canaries
    return audit.audit(loaded, canaries, delta=hp.delta, comparisons=len(_audited(hp)))


def _check(hp: Settings, dataset: data.Dataset):
    stages.check_seeds(hp.seeds)
    if hp.delta * len(dataset.train) >= 1:
        allowed = f"must be below 1/N = {1 / len(dataset.train):.3g}"
        raise InputError("delta", hp.delta, allowed)
    if hp.num_canaries and (dataset.train.record != dataset.train.index).any():
        # The data set with canaries is stored by places: nothing would keep such files together.
        allowed = "has files of one name in several classes; rename them, or take num_canaries=0"
        raise InputError("dataset", hp.dataset, allowed)
    for group in ("teachers", "arms", "bars"):
        for name, mine in getattr(hp, group).items():
            if not isinstance(mine, Mapping):
                raise InputError(f"{group}.{name}", mine, config.mapping().allowed)
    runs = {**hp.teachers, **hp.arms}
    for name in hp.once:
        if name not in runs:
            raise InputError("once", name, config.suggest(name, runs))
    for name, mine in hp.teachers.items():
        if name in hp.arms:
            raise InputError(f"arms.{name}", name, "must be named otherwise: a teacher is")
        with config.within(f"teachers.{name}"):
            _check_teacher(mine, dataset)
    with config.within("fresh"):
        _check_fresh(hp.fresh, dataset)
    with config.within("student"):
        config.check_names(hp.student, config.fields(settings.Settings))
    for arm, mine in hp.arms.items():
        with config.within(f"arms.{arm}"):
            _check_arm(mine, hp, dataset)
        if mine["teacher"] in hp.once and arm not in hp.once:
            allowed = f"must have {arm}, too: its teacher runs with the first seed alone"
            raise InputError("once", hp.once, allowed)
    rates = {name: config.number(0.0, 1.0, default=None) for name in summary.RATES}
    for name, wanted in hp.bars.items():
        if name not in runs:
            raise InputError(f"bars.{name}", dict(wanted), config.suggest(name, runs))
        with config.within(f"bars.{name}"):
            config.validate(wanted, rates)


def _check_teacher(mine: Mapping[str, Any], dataset: data.Dataset):
    _check_common(mine, ("dataset", "data_dir", "seed"))
    given = {"dataset": "given", **mine}
    if "num_teachers" in mine:
        several = config.validate(given, ensemble.Settings)
        _check_network(several, dataset)
        partitions.check_public(dataset)
        partitions.members_of(dataset.train.record, several.num_teachers)
        return
    hp = config.validate(given, train.Settings)
    network = classification.check(hp, dataset, private=hp.dp is not None)
    if hp.dp:
        dp_settings.check(hp, hp.dp, network, len(dataset.train))


def _check_arm(mine: Mapping[str, Any], hp: Settings, dataset: data.Dataset):
    own = {**hp.student, **mine}
    _check_common(own, _COMMON)
    if not isinstance(changes := own.pop("fresh", {}), Mapping):
        raise InputError("fresh", changes, config.mapping().allowed)
    fresh = {**config.to_json(hp.fresh), **changes}
    with config.within("fresh"):
        asked = config.validate(fresh, Fresh)
        _check_fresh(asked, dataset)
        if asked.source == "prior" and not any(dict(own.get("prior", {})).values()):
            raise InputError("source", asked.source, "the arm has no prior; must be 'generator'")
    teachers = hp.teachers
    if (name := str(mine.get("teacher"))) not in teachers:
        raise InputError("teacher", mine.get("teacher"), f"is one of {', '.join(teachers)}")
    filled = settings.validate({"dataset": hp.dataset, **own, "delta": hp.delta})
    ensemble_wanted = filled.privacy_unit == "record_ensemble"
    if ensemble_wanted and "num_teachers" not in teachers[name]:
        raise InputError("teacher", name, "is a single network; num_teachers of them are needed")
    if filled.privacy_unit == "record_dp_teacher" and not teachers[name].get("dp"):
        raise InputError("teacher", name, "is not trained privately; it needs a group dp")
    _check_network(filled, dataset)


def _check_fresh(fresh: Fresh, dataset: data.Dataset):
    Recipe(**config.to_json(fresh))
    if fresh.model:
        _check_network(fresh, dataset)


def _check_common(mine: Mapping[str, Any], fields: tuple[str, ...]):
    for field in fields:
        if field in mine:
            raise InputError(field, mine[field], "is what the experiment makes it for all runs")


def _check_network(mine: Any, dataset: data.Dataset):
    own = {"model": mine.model, "model_kwargs": mine.model_kwargs}
    checks.check(image_network(dataset, **own))
