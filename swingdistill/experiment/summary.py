"""An experiment's runs to rows and a report; what they have to show is in `claims`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_core import config
from distill_core.experiment import speed
from distill_core.experiment.report import Figure, Gate, Report, Results, Row, Table, by_arm
from swingdistill import evaluate
from swingdistill.attacks import evaluation
from swingdistill.experiment import arms, claims, figures, samples

_NOTES = (
    "Per-token temperatures and noise in the soft targets are the ideas of the abstract of Swing "
    "Distillation, Li et al., 2022. The formulas, the scorers, the baselines and this protocol are "
    "our reconstruction.",
    "Exposure is log₂ of the candidates less log₂ of the secret's rank among them; a secret that "
    "was not learnt has 1.44 bits on average. Reductions are given raw and measured from there. "
    "Perplexity is that of the test text, a token.",
    f"extracted: the share of secrets that are among {evaluation.NUM_CONTINUATIONS} draws per "
    "secret from the model, given what stands before them. tpr: the share of secrets whose line "
    "costs the model less, against the reference, than all but one in a hundred lines with numbers "
    "that nobody planted (chance: 0.01).",
)
OVER_FITTED = 1.5  # times the perplexity of the training text, on validation text
_NO_GUARANTEE = (
    "Exposure is what this attack finds, an empirical measure and no guarantee of privacy. No arm "
    "with a teacher has record-level differential privacy: "
)
_FORMAL = "the ε of the formal budget is for released vectors alone (see each arm's settings)."
_EMPIRICAL = "the noise scale is empirical, and no ε is claimed from it."


def _row(arm: str, runs: Sequence[Mapping[str, Any]], hp: Any) -> Row:
    """An arm over its seeds."""
    metrics = {"perplexity": [r["perplexity"] for r in runs]}
    for name in (f"{each}_perplexity" for each in evaluate.CLASSES):
        if all(r[name] is not None for r in runs):
            metrics[name] = [r[name] for r in runs]
    metrics["accuracy"] = [r["accuracy"] for r in runs]
    for level in sorted(runs[0]["exposure"], key=int):
        bits = [r["exposure"][level] for r in runs]
        metrics[f"exposure_{level}"] = [float(np.mean(values)) for values in bits]
        metrics[f"worst_exposure_{level}"] = [max(values) for values in bits]
    if all("attacks" in r for r in runs):
        metrics |= _attacked([r["attacks"] for r in runs])
    budgets = [r["budget"] or {} for r in runs]
    if arm == arms.PRIVATE and all("epsilon" in budget for budget in budgets):  # no given seed
        for name in ("epsilon", "replace_one_epsilon"):
            if all(name in budget for budget in budgets):  # else its noise was chosen
                metrics[name] = [budget[name] for budget in budgets]
    model = hp.model if arm in arms.LARGE else hp.student.model
    return Row(arm, {"model": model, **budgets[0]}, metrics, arms.about(arm, hp))


def _attacked(attacks: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Shares of secrets extracted by draws, and true positive rates at 1% false positives."""
    metrics: dict[str, list[float]] = {}
    for found in attacks:
        values = {}
        if (extraction := found["extraction"]) is not None:
            by_group = dict(extraction["canaries"])
            if extraction["private"]:
                by_group["private"] = extraction["private"]
            for name, counts in by_group.items():
                values[f"extracted_{name}"] = counts["sampled"] / counts["secrets"]
        by_group = dict(found["membership"]["canaries"])
        if found["membership"]["text"]:
            by_group["text"] = found["membership"]["text"]
        for name, rocs in by_group.items():
            values[f"tpr_{name}"] = rocs["mean"]["tpr"]
        for name, value in values.items():
            metrics.setdefault(name, []).append(value)
    return metrics


def report_of(
    hp: Any,
    results: Results,
    study: Mapping[int, Mapping[str, Any]],
    minutes: float,
) -> Report:
    """The experiment's report.

    Args:
      hp: its values.
      results: each run's result by (arm, seed).
      study: what `scorer_study.study` gave, by seed.
      minutes: that this call took.
    """
    levels, first = sorted(hp.canary_levels), study[hp.seeds[0]]
    among = max(found["exposure_among"] for found in results.values())
    rows = [_row(arm, runs, hp) for arm, runs in by_arm(results).items()]
    gates = claims.gates(
        results,
        task=hp.task,
        levels=levels,
        num_candidates=among,
        noise_scales=hp.sweep,
    )
    exposure, bounds = (
        {
            arm: {str(seed): r[field] for (name, seed), r in results.items() if name == arm}
            for arm in by_arm(results)
        }
        for field in ("exposure", "exposure_bounds")
    )
    nothing = "nothing can be claimed from this run: the first criterion is missed"
    return Report(
        method="swingdistill",
        dataset=hp.dataset,
        title=f"Swing distillation on {hp.dataset.rpartition('/')[2]} ({hp.task})",
        summary=_headline(results, gates, levels),
        rows=rows,
        num_test=claims.num_tokens(results),
        metrics=_shown(hp, rows, levels),
        gates=gates,
        settings=config.to_json(hp),
        minutes=minutes,
        notes=[*_notes(hp, results), *_fit(hp, results, first["fit"])],
        figures=_figures(hp, results, first["quality"], among),
        tables=[
            _scorer_table(first["quality"]),
            _recogniser_table(first["recognisers"]),
            speed.table(results),
        ],
        sections=[("Sample text as the scores see it", samples.shaded_html(first["samples"]))],
        fields={
            "exposure": exposure,
            "exposure_bounds": bounds,
            "attacks": {
                arm: {
                    str(seed): r["attacks"]
                    for (name, seed), r in results.items()
                    if name == arm and "attacks" in r
                }
                for arm in by_arm(results)
            },
            "scorers": {str(seed): found["quality"] for seed, found in study.items()},
            "recognisers": first["recognisers"],
        },
        warning="" if gates[0].passed else nothing,
    )


def _shown(hp, rows: Sequence[Row], levels: Sequence[int]) -> list[str]:
    private = any("private_perplexity" in row.metrics for row in rows)
    perplexities = ["perplexity", "public_perplexity" if private else "digit_perplexity"]
    return [
        *(perplexities if hp.task == "language" else ["accuracy"]),
        *(f"exposure_{n}" for n in levels),
        f"worst_exposure_{max(levels)}",
        f"extracted_{max(levels)}",
        f"tpr_{max(levels)}",
        "epsilon",
        "replace_one_epsilon",
    ]


def _headline(results: Results, gates: Sequence[Gate], levels: Sequence[int]) -> str:
    if not gates[0].passed:
        return (
            f"Nothing can be claimed: {gates[0].value}, and {gates[0].needed}. Train longer, plant "
            "more repetitions, or take less text."
        )
    most, present = max(levels), set(by_arm(results))

    def told(arm: str) -> str:
        return f"{claims.bits(results, arm, most).mean():.1f}"

    secrets = np.concatenate([claims.bits(results, "swing", level) for level in levels])
    cost = {arm: f"{claims.mean(results, arm, 'perplexity'):.2f}" for arm in present}
    said = [
        f"Of a secret that stood {most} times in its teacher's text a student of plain "
        f"distillation gives away {told('kd')} bits, one of Swing distillation {told('swing')}; a "
        f"number that nobody learnt has 1.4. Perplexity {cost['kd']} and {cost['swing']}.",
        f"The worst of Swing's {len(secrets)} secrets has {secrets.max():.1f} bits.",
    ]
    if "mask" in present:
        said.append(
            f"A student that leaves private tokens out (mask) gives away {told('mask')} bits, at "
            f"perplexity {cost['mask']}."
        )
    if "swing_decoy" in present:
        said.append(
            "On text with other numbers in place of the secrets plain distillation still gives "
            f"away {told('kd_decoy')} bits of them, Swing {told('swing_decoy')}."
        )
    missed = [gate.name for gate in gates if not gate.passed]
    said.append(f"Missed: {'; '.join(missed)}." if missed else "Everything asked for was shown.")
    return " ".join(said)


def _figures(hp, results: Results, quality, among: int) -> list[Figure]:
    levels = sorted(hp.canary_levels)
    curves = {
        label: {scale: _point(results, arms.at_noise(kind, scale), levels) for scale in hp.sweep}
        for kind, label in arms.SWEPT.items()
    }
    beside = {arms.at_noise(kind, scale) for kind in arms.SWEPT for scale in hp.sweep}
    exposures = {
        arm: {n: claims.bits(results, arm, n) for n in levels}
        for arm in by_arm(results)
        if arm != "reference" and arm not in beside
    }
    ceiling = math.log2(among)
    exposure = Figure(
        "Exposure by repetitions in the teacher's text, every secret a dot. Baselines that ran "
        "with the first seed only have fewer.",
        "figures/exposure.png",
        lambda path: figures.exposure_by_repetition(path, exposures, ceiling=ceiling),
    )
    budget = Figure(
        "Less and less noise: a constant temperature against one for each token.",
        "figures/budget.png",
        lambda path: figures.budget_curves(path, curves),
    )
    scorers = Figure(
        "How well each scorer finds the secrets of each number of repetitions.",
        "figures/scorers.png",
        lambda path: figures.scorer_quality(path, quality),
    )
    return [exposure, budget, scorers] if hp.sweep else [exposure, scorers]


def _point(results: Results, arm: str, levels: Sequence[int]) -> tuple[float, float]:
    bits = claims.bits(results, arm, max(levels))
    return float(bits.mean()), claims.mean(results, arm, "perplexity")


def _scorer_table(quality) -> Table:
    def shown(value):
        return None if value is None else f"{value:.3f}"

    return Table(
        "Scorers: secrets against all tokens outside canaries, called private at s > ½",
        ["scorer", "repetitions", "precision", "recall", "AUC"],
        [
            [scorer, level, shown(q["precision"]), shown(q["recall"]), shown(q["auc"])]
            for scorer, by_level in quality.items()
            for level, q in by_level.items()
        ],
        on_console=False,
    )


def _recogniser_table(quality) -> Table:
    def shown(value):
        return None if value is None else f"{value:.3f}"

    return Table(
        "Recognisers of the scorer rules on generated, labelled sentences, half of them without "
        "anything private. Recall: found whole, as whatever kind",
        ["kind", "stretches", "recall", "found as this kind", "precision"],
        [
            [kind, str(q["num"]), shown(q["recall"]), shown(q["named"]), shown(q["precision"])]
            for kind, q in quality.items()
        ],
        on_console=False,
    )


def _fit(hp, results: Results, fit: Mapping[str, Any]) -> list[str]:
    """Whether the teacher over-fits, and which of its steps counts."""
    notes = []
    train, held = fit["train_perplexity"], fit["validation_perplexity"]
    called = {name: share for name, share in fit["called_private"].items() if name in hp.scorers}
    listed = ", ".join(f"{name} {share:.1%}" for name, share in called.items())
    if held > OVER_FITTED * train:
        notes.append(
            f"The teacher over-fits: its perplexity is {train:.1f} on the text that it was trained "
            f"on and {held:.1f} on validation text. Scorers that compare it with the reference "
            f"then call ordinary tokens private ({listed})."
        )
    if hp.use == "best":
        steps = [r["step"] for (arm, _), r in results.items() if arm == "teacher"]
        notes.append(
            "Of every run the step with the lowest validation loss counts, not the last; of the "
            f"teachers step {', '.join(map(str, steps))} of {hp.num_steps:,}."
        )
    return notes


def _notes(hp, results: Results) -> list[str]:
    notes = [*_NOTES, _NO_GUARANTEE + (_FORMAL if hp.epsilon else _EMPIRICAL)]
    first = next(iter(results.values()))
    among, candidates = first["exposure_among"], first["exposure_candidates"]
    if among < candidates and hp.task != "classification":
        notes.append(
            f"Secrets are ranked among {among:,} of {candidates:,} candidates, by the likelihood "
            f"of their lines, so that {math.log2(among):.1f} bits are the most that can be seen; "
            "each has 95% bounds of its exposure among all in results.json."
        )
    if hp.dp:
        notes.append(
            "dp_sgd learns from labels alone; its ε is for a line of the text, zeroed out. A "
            "secret that stands 10 or 100 times is as many lines: for all of them together only "
            "group privacy holds, at 10 or 100 times ε and a larger δ. Lines are cut after "
            f"{hp.length} tokens. The vocabulary, which is the reference's, made of lines that "
            "no other run trains on, and the held-out text count as public."
        )
    if hp.task == "classification":
        notes.append(
            f"A classifier's secrets are ranked among {among:,} candidates by the loss of the "
            f"canary's label, so that {math.log2(among):.1f} bits are the most that can be seen. "
            "It gives away that label, not the secret; the first criterion asks that it can be "
            "told from chance, a bar of ours."
        )
    return notes
