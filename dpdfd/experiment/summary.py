"""An experiment's runs to rows, criteria and a report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_core import config
from distill_core.config import InputError
from distill_core.data import Dataset
from distill_core.experiment import plotting, speed
from distill_core.experiment.report import (
    Figure,
    Gate,
    Report,
    Results,
    Row,
    Table,
    by_arm,
    decimals,
    percent,
)
from distill_core.experiment.stages import run_directory
from distill_core.privacy import ledger
from distill_core.privacy.ledger import ZERO_OUT
from dpdfd.experiment import figures
from dpdfd.privacy.units import privacy_spent

METRICS = (
    "accuracy",
    "epsilon",
    "replace_one_epsilon",
    "dpimagebench_epsilon",
    "record_epsilon",
    "total_epsilon",
    "fresh_classifier_accuracy",
    "audit_epsilon_lower",
)
RATES = ("accuracy", "fresh_classifier_accuracy")
AUDIENCE = (
    "For the owner of the data alone: it shows accuracies of teachers without privacy and audits "
    "that know the canaries. A separate table says what may be published."
)
LEAST_CONTROL = 1.0  # what the audit has to find in a teacher trained without privacy
NO_POWER = ", so that audits below an ε say nothing"
LEAST_SHARE = 0.5  # of its teacher's accuracy, for a student to be of use
LEAST_CHANCES = 2  # times chance, likewise, unless its teacher has less
MOST_BEHIND = 0.02  # of a fresh classifier, behind the student
# Accuracy of classifiers trained on private synthetic data, by methods that see the data:
# DPImageBench's figures, percent at ε = 1 and 10.
_NOTES = (
    "The idea is that of Liu et al., IJCAI 2023, as its abstract and introduction state it. "
    "Formulas, accounting, procedural priors, answers bought in rounds, ensembles and the audit "
    "are our reconstruction. The priors were shaped while looking at training images of MNIST and "
    "Fashion-MNIST, which no ε counts.",
    "Accuracies are fractions of all test examples at the last step; how settings were chosen "
    "stands in the config.",
    "ε per query counts one query replaced in every step; record epsilon is what the same noise is "
    "worth for one record of the training set.",
    "Conversions of one teacher compose: total epsilon is for a training record, of all that were "
    "charged to the arm's teacher when the arm (last) began, itself among them. Teachers of the "
    "same records, one per seed for example, compose on top of that.",
    "DPImageBench states ε at δ = 1/(N ln N), N training images: dpimagebench epsilon is the run's "
    "at that δ. Published figures of generators are classifiers trained on their samples, so that "
    "only the fresh classifiers compare with them like for like, and these learn from soft labels.",
    "private data says how often the training set was used: once, for the teacher, or twice, where "
    "a prior's moments were bought of it, too.",
    "An audit's lower bound stands beside the accountant's ε, never instead of it.",
)
_PUBLISHED = {
    "mnist": [
        ("DP-MERF", 80.3, 81.3),
        ("GS-WGAN", 72.4, 75.3),
        ("DPDM", 89.2, 97.7),
        ("DP-FETA", 95.6, 98.1),
    ],
    "fashion_mnist": [
        ("DP-MERF", 62.2, 62.2),
        ("GS-WGAN", 52.7, 56.7),
        ("DPDM", 76.4, 85.6),
        ("DP-FETA", 81.7, 87.3),
    ],
}


def rows_and_gates(
    results: Results, hp: Any, num_test: int, num_classes: int
) -> tuple[list[Row], list[Gate]]:
    """One row per teacher or arm over its seeds, and the acceptance criteria.

    Args:
      results: each run's result by (teacher or arm, seed); accuracies are on the test split.
      hp: the experiment's values.
      num_test: examples of that split.
      num_classes: of the data set; a guess is right on one in as many.
    """
    rows = [_row(arm, runs, hp) for arm, runs in by_arm(results).items()]
    named = {row.arm: row for row in rows}
    gates = [*_weaknesses(named, hp, num_test, num_classes), *_budget_gate(rows, hp)]
    gates += _audit_gates(rows, control(hp))
    for arm, wanted in hp.bars.items():
        for metric, least in wanted.items():
            gates.append(_bar(metric, least, named[arm], num_test))
    return rows, gates


def control(hp: Any) -> str | None:
    """The audit's positive control: a single teacher trained without privacy, if there is one.

    It is the one called `teacher_control`, else the first by name.
    """
    single = (name for name, mine in hp.teachers.items() if "num_teachers" not in mine)
    plain = sorted(name for name in single if not hp.teachers[name].get("dp"))
    return "teacher_control" if "teacher_control" in plain else next(iter(plain), None)


def _row(arm: str, runs: Sequence[Mapping[str, Any]], hp: Any) -> Row:
    conversion = arm in hp.arms
    own = {**hp.student, **hp.arms[arm]} if conversion else hp.teachers[arm]
    about = {name: own[name] for name in ("teacher", "model", "mechanism") if name in own}
    about |= {name: own[name] for name in ("num_teachers",) if name in own}
    metrics: dict[str, list[float]] = {}
    for name in ("accuracy", "fresh_classifier_accuracy", "audit_epsilon_lower"):
        found = [run[name] for run in runs if run.get(name) is not None]
        if found:
            metrics[name] = found
    spent = [_spent(run, hp) for run in runs]
    claims = [each for each in spent if each is not None]
    if claims:
        told = claims[0].report()
        names = ("privacy_unit", "adjacency", "delta", "batch_size", "assumptions", "claim")
        about |= {name: told[name] for name in names}
        metrics["epsilon"] = [each.epsilon for each in claims]
        if claims[0].adjacency == ZERO_OUT:
            metrics["replace_one_epsilon"] = [each.replace_one_epsilon for each in claims]
        metrics["record_epsilon"] = [each.record_epsilon for each in claims]
        totals = [each.total.epsilon for each in claims if each.total is not None]
        if totals:
            metrics["total_epsilon"] = totals
        if claims[0].unit == "record":
            about["private_data"] = _touched(own, hp)
            if (strict := _dpimagebench_delta(runs[0]["ledger"])) is not None:
                about["dpimagebench_delta"] = strict
                metrics["dpimagebench_epsilon"] = [
                    ledger.epsilon(run["ledger"], strict) for run in runs
                ]
    elif conversion:
        about["privacy"] = "no claim"
    return Row(arm, about, metrics, _about(arm, own, hp))


def _about(arm: str, own: Mapping[str, Any], hp: Any) -> str:
    """What a teacher or an arm is, in one line, by its settings."""
    if arm in hp.arms:
        prior = "; its prior is bought of the records" if own.get("moments") else ""
        return f"student of {own['teacher']}, {_STUDENTS[own['privacy_unit']]}{prior}"
    if "num_teachers" in own:
        return f"{own['num_teachers']} networks on disjoint parts of the records, no noise yet"
    if (dp := own.get("dp")) is None:
        return "one network, trained without privacy"
    share = f"; spends {dp['share']:.0%} of the budget" if dp.get("share", 1.0) < 1 else ""
    return f"one network, trained with noise on its gradients{share}"


_STUDENTS = {  # by privacy unit
    "none": "without privacy",
    "query": "whose ε is for one query in every step, not for a record",
    "record_single": "with noise for a whole record on every answer",
    "record_ensemble": "whose shared answer is noised for a record",
    "record_dp_teacher": "which protects its records already",
}


def _touched(own: Mapping[str, Any], hp: Any) -> str:
    """How often a run's private data were used."""
    teachers = "the teachers" if "num_teachers" in hp.teachers.get(own.get("teacher"), own) else ""
    once = teachers or "the teacher"
    return f"twice: {once}, and the prior's moments" if own.get("moments") else f"once: {once}"


def _dpimagebench_delta(found: Mapping[str, Any]) -> float | None:
    """δ = 1/(N ln N), at which DPImageBench states its methods' ε; None where N is not known."""
    sizes = [entry.num_examples for entry in ledger.charged(found) if entry.num_examples]
    return 1 / (max(sizes) * math.log(max(sizes))) if sizes else None


def _spent(run: Mapping[str, Any], hp: Any):
    """The report of a run's ledger, or None where it makes no claim."""
    if "ledger" not in run:
        return None
    tried = hp.configurations_tried
    try:
        return privacy_spent(run["ledger"], delta=hp.delta, configurations_tried=tried)
    except InputError:
        return None


def _budget_gate(rows: Sequence[Row], hp: Any) -> list[Gate]:
    """One criterion for all arms; its value is that of the arm nearest its limit."""
    spent = []
    for row in rows:
        asked = {**hp.student, **hp.arms.get(row.arm, {})}.get("epsilon")
        # There is no ε where, for example, the noise's seed was given.
        if row.arm in hp.arms and asked is not None and "epsilon" in row.metrics:
            most = max(row.metrics["epsilon"])
            spent.append((most / asked, most, asked, row.arm))
    if not spent:
        return []
    share, most, asked, arm = max(spent, key=lambda each: each[0])
    name = "every arm spends no more than its ε"
    return [Gate(name, share <= 1 + 1e-6, f"{most:.4g} by {arm}", f"at most {asked:g}")]


def _audit_gates(rows: Sequence[Row], control: str | None) -> list[Gate]:
    """Each audit's criterion; where the control is missed, none of them counts as passed."""
    gates, has_power = [], True
    for row in rows:
        if "audit_epsilon_lower" not in row.metrics:
            continue
        found = max(row.metrics["audit_epsilon_lower"])
        if row.arm == control:
            has_power = found > LEAST_CONTROL
            value = f"{found:.2f}" + NO_POWER * (not has_power)
            name = f"the audit sees that {row.arm} is not private"
            gates.append(Gate(name, has_power, value, f"above {LEAST_CONTROL:g}"))
        elif "record_epsilon" in row.metrics:
            bound = min(row.metrics["record_epsilon"])
            name = f"the audit of {row.arm} stays below its ε for a record"
            gates.append(Gate(name, found <= bound, f"{found:.2f}", f"at most {bound:,.4g}"))
    return [gate for gate in gates if has_power or not gate.passed]


def _bar(metric: str, least: float, row: Row, num_test: int) -> Gate:
    values = row.metrics.get(metric, [float("nan")])
    passed = sum(values) / len(values) >= least
    name = f"{metric.replace('_', ' ')} of {row.arm}"
    return Gate(name, passed, f"{percent(values, num_test)[0]}%", f"at least {100 * least:g}%")


def _weaknesses(rows: Mapping[str, Row], hp: Any, num_test: int, num_classes: int) -> list[Gate]:
    """What speaks against the method, as criteria."""
    gates = []
    for row in _claiming(rows.values(), hp, "query"):
        spent, record = max(row.metrics["epsilon"]), max(row.metrics["record_epsilon"])
        name = f"the ε of {row.arm} protects a training record, too"
        gates.append(
            Gate(name, record <= spent, f"ε = {record:,.4g} for a record", f"at most {spent:.4g}")
        )
    for row in _claiming(rows.values(), hp, "record_single"):
        teacher = float(np.mean(rows[row.settings["teacher"]].metrics["accuracy"]))
        least, why = _least_of_use(teacher, 1 / num_classes)
        gates.append(
            Gate(
                f"one given teacher makes a student of use that protects records ({row.arm})",
                bool(np.mean(row.metrics["accuracy"]) >= least),
                f"accuracy {percent(row.metrics['accuracy'], num_test)[0]}%",
                f"at least {percent([least], num_test)[0]}%, {why}",
            )
        )
    best = _best(rows.values(), hp)
    if best is not None and (fresh := best.metrics.get("fresh_classifier_accuracy")):
        behind = float(np.mean(best.metrics["accuracy"]) - np.mean(fresh))
        gates.append(
            Gate(
                f"drawn samples of {best.arm} make a classifier as good as the student",
                behind <= MOST_BEHIND,
                f"{100 * behind:.{decimals(num_test)}f} points behind",
                f"at most {100 * MOST_BEHIND:g}",
            )
        )
    return gates


def _least_of_use(teacher: float, chance: float) -> tuple[float, str]:
    """(the least accuracy of a student of use, in words), by its teacher's and by chance."""
    least = min(LEAST_CHANCES * chance, teacher)
    if LEAST_SHARE * teacher >= least:
        return LEAST_SHARE * teacher, f"{LEAST_SHARE:.0%} of its teacher's"
    return least, "its teacher's" if least == teacher else f"{LEAST_CHANCES} times chance"


def _claiming(rows: Iterable[Row], hp: Any, *claims: str) -> list[Row]:
    """The arms whose ε is of one of the claims, or of any."""
    found = [row for row in rows if row.arm in hp.arms and "claim" in row.settings]
    return [row for row in found if not claims or row.settings["claim"] in claims]


def _best(rows: Iterable[Row], hp: Any) -> Row | None:
    """The arm that protects records and is right most often."""
    private = [row for row in _claiming(rows, hp) if row.settings["privacy_unit"] == "record"]
    return max(private, key=lambda row: np.mean(row.metrics["accuracy"]), default=None)


def report_of(hp: Any, dataset: Dataset, results: Results, minutes: float) -> Report:
    """The experiment's report; `results` are each run's by (teacher or arm, seed)."""
    num_test = len(dataset.test)
    rows, gates = rows_and_gates(results, hp, num_test, dataset.num_classes)
    return Report(
        method="dpdfd",
        dataset=dataset.name,
        title=f"Data-free conversion of a teacher on {dataset.name}, for the data's owner",
        summary=f"{_summary(rows, hp, num_test)} {AUDIENCE}",
        rows=rows,
        num_test=num_test,
        metrics=METRICS,
        gates=gates,
        settings=config.to_json(hp),
        minutes=minutes,
        notes=_notes(hp, dataset),
        figures=_figures(hp, dataset, rows),
        tables=[
            *(_publishable(rows, hp), _assumptions(rows), *_published(dataset)),
            speed.table(results),
        ],
        fields={"audience": AUDIENCE},
    )


def _summary(rows: Sequence[Row], hp: Any, num_test: int) -> str:
    """What was found, for the claim and against it."""

    def right(values: Sequence[float]) -> str:
        return f"{percent(values, num_test)[0]}%"

    said, named = [], {row.arm: row for row in rows}
    for row in _claiming(rows, hp, "query"):
        spent, record = (max(row.metrics[name]) for name in ("epsilon", "record_epsilon"))
        said.append(
            f"The ε = {spent:.3g} of {row.arm} is about one query in every step; it protects no "
            f"record, for which the noise is worth ε = {record:,.3g}. Its student is right on "
            f"{right(row.metrics['accuracy'])} of the test images."
        )
    for row in _claiming(rows, hp, "record_single"):
        spent, teacher = max(row.metrics["epsilon"]), named[row.settings["teacher"]]
        said.append(
            f"From one given teacher, right on {right(teacher.metrics['accuracy'])}, a student "
            f"that protects records ({row.arm}, ε = {spent:.3g}) is right on "
            f"{right(row.metrics['accuracy'])}."
        )
    best = _best(rows, hp)
    if best is None:
        return " ".join([*said, "No arm protects records."])
    said.append(
        f"Of the students that protect records, {best.arm} is right on "
        f"{right(best.metrics['accuracy'])} of the test images at ε = "
        f"{max(best.metrics['epsilon']):.3g}, {best.settings['adjacency']}; the training set was "
        f"used {best.settings['private_data'].partition(':')[0]} for it."
    )
    if fresh := best.metrics.get("fresh_classifier_accuracy"):
        said.append(
            f"A fresh classifier that learns from its drawn samples alone is right on "
            f"{right(fresh)}."
        )
    return " ".join(said)


def _publishable(rows: Sequence[Row], hp: Any) -> Table:
    """The runs whose ε is about records, and what of them may be published."""
    lines = []
    for row in rows:
        if row.settings.get("privacy_unit") != "record":
            continue
        what = "the network, by distill_core.release"
        if row.arm in hp.arms:
            what = "student and generator, by distill_core.release; samples, by dpdfd.evaluate"
        spent = f"{max(row.metrics['epsilon']):.4g} per record, {row.settings['adjacency']}"
        lines.append((f"runs/{row.arm}, one seed", what, f"{spent}; δ = {row.settings['delta']:g}"))
    lines.append(("all else", "nothing: this report, results.json, checkpoints, data", "no ε"))
    caption = "What may be published: one of these, for the ε of several add up to more"
    return Table(caption, ("run", "what of it", "ε"), lines)


def _assumptions(rows: Sequence[Row]) -> Table:
    lines = [
        (row.arm, f"{row.settings['claim']}: " + " ".join(row.settings["assumptions"]))
        for row in rows
        if "assumptions" in row.settings
    ]
    caption = "What each ε says, and under which assumptions"
    return Table(caption, ("arm", "assumptions"), lines, on_console=False)


def _published(dataset: Dataset) -> list[Table]:
    """Published results on the same data."""
    head = ("method", "accuracy at ε = 1, %", "at ε = 10, %")
    caption = "Methods that see the data (DPImageBench, downstream classifiers)"
    return [
        Table(caption, head, [(m, f"{one:.1f}", f"{ten:.1f}") for m, one, ten in lines], False)
        for name, lines in _PUBLISHED.items()
        if dataset.name.endswith(f":{name}")
    ]


def curves(hp: Any, rows: Sequence[Row]) -> dict[str, dict[float, list[float]]]:
    """What is released -> ε -> accuracies, of what protects records at more than one ε.

    A teacher that spends a share of a budget is left out: the whole budget is its student's.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        shared = (hp.teachers.get(row.arm, {}).get("dp") or {}).get("share", 1.0) < 1
        if row.settings.get("privacy_unit") != "record" or shared:
            continue
        own = {**hp.student, **hp.arms[row.arm]} if row.arm in hp.arms else {}
        teacher = hp.teachers.get(own.get("teacher"), {})
        what = "a DP teacher" if teacher.get("dp") else "one teacher"
        what = "an ensemble" if "num_teachers" in teacher else what
        prior = " with a bought prior" if own.get("moments") else ""
        names = {"accuracy": f"{own['model']} student of {what}{prior}" if own else "DP teacher"}
        names["fresh_classifier_accuracy"] = f"fresh classifier, {names['accuracy']}"
        for metric, name in names.items():
            if metric in row.metrics:
                epsilon = float(f"{max(row.metrics['epsilon']):.3g}")  # as it was asked for
                found.setdefault(name, {}).setdefault(epsilon, []).extend(row.metrics[metric])
    return {name: curve for name, curve in found.items() if len(curve) > 1}


def published(dataset: str) -> dict[str, dict[float, float]]:
    """Published accuracies on a data set, method -> ε -> fraction."""
    lines = next((v for k, v in _PUBLISHED.items() if dataset.endswith(f":{k}")), [])
    return {name: {1.0: one / 100, 10.0: ten / 100} for name, one, ten in lines}


def _figures(hp: Any, dataset: Dataset, rows: Sequence[Row]) -> list[Figure]:
    students = {
        "the student": [row.metrics.get("accuracy", ()) for row in rows],
        "a fresh classifier, of generated samples": [
            row.metrics.get("fresh_classifier_accuracy", ()) for row in rows
        ],
    }
    made = [
        Figure(
            "Accuracy of every arm's student, and of a fresh classifier trained on what its "
            "generator makes; one dot per seed.",
            "figures/arms.png",
            lambda path: plotting.accuracies(
                path, [_label(row) for row in rows], students, label="accuracy on test images, %"
            ),
        )
    ]
    if drawn := curves(hp, rows):
        made.append(
            Figure(
                "Accuracy over ε of what protects records: the teacher or the vote, its student, "
                "and fresh classifiers trained on generated samples. Only the latter compare with "
                "the published figures like for like.",
                "figures/epsilon.png",
                lambda path: figures.over_epsilon(path, drawn, published(dataset.name)),
            )
        )
    first = next(iter(hp.arms))
    for arm in hp.arms:  # what their evaluation has drawn
        folder = run_directory("", f"{arm}_evaluated", hp.seeds[0])
        made.append(Figure(f"What the generator makes, arm {arm}.", str(folder / "samples.png")))
        if arm == first:
            made.append(Figure(f"The run, arm {arm}.", str(folder / "convergence.png")))
    return made


def _label(row: Row) -> str:
    name = row.arm.replace("_", " ")
    if "epsilon" not in row.metrics:
        return name
    about = row.settings["privacy_unit"]
    return f"{name} (ε = {max(row.metrics['epsilon']):.3g} per {about})"


def _notes(hp: Any, dataset: Dataset) -> list[str]:
    canaries = (
        f"{hp.num_canaries} training images were given a wrong label, each with probability ½, "
        "in all teachers' data: the audit's canaries."
    )
    return [*_NOTES, *([canaries] if hp.num_canaries else []), *filter(None, [dataset.note])]
