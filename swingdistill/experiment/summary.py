"""An experiment's runs to table, gates, figures, results.json and report.html."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_core.experiment import console, report
from distill_core.experiment.plotting import attempt
from swingdistill import evaluate
from swingdistill.experiment import arms, claims, figures, samples

Results = Mapping[tuple[str, int], Mapping[str, Any]]


def rows_of(hp: Mapping[str, Any], results: Results) -> list[report.Row]:
    """One row an arm over its seeds."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for (arm, _), result in results.items():
        by_arm.setdefault(arm, []).append(result)
    rows = []
    for arm, found in by_arm.items():
        metrics = {"perplexity": [r["perplexity"] for r in found]}
        for name in (f"{each}_perplexity" for each in evaluate.CLASSES):
            if all(r[name] is not None for r in found):
                metrics[name] = [r[name] for r in found]
        metrics["accuracy"] = [r["accuracy"] for r in found]
        each = [evaluate.summarize({int(n): v for n, v in r["exposure"].items()}) for r in found]
        metrics |= {name: [values[name] for values in each] for name in each[0]}
        settings = {"model": hp["model" if arm in ("teacher", "reference") else "student_model"]}
        budget = found[0]["budget"]
        if arm == arms.PRIVATE and all("epsilon" in r["budget"] for r in found):  # no given seed
            for name in ("epsilon", "replace_one_epsilon"):
                if all(name in r["budget"] for r in found):  # else its noise was chosen
                    metrics[name] = [r["budget"][name] for r in found]
        rows.append(report.Row(arm, settings | (budget or {}), metrics))
    return rows


def write(
    workdir: epath.Path,
    hp: Mapping[str, Any],
    results: Results,
    study: Mapping[int, Mapping[str, Any]],
    minutes: float,
):
    """results.json, the table and gates on the console, then the figures and report.html.

    Args:
      workdir: the experiment's.
      hp: its values.
      results: each run's result by (arm, seed).
      study: what `scorer_study.study` gave, by seed.
      minutes: that this call took.
    """
    levels = sorted(hp["canary_levels"])
    rows = rows_of(hp, results)
    gates = claims.gates(
        results,
        task=hp["task"],
        levels=levels,
        num_candidates=_num_candidates(hp),
        noise_scales=hp["sweep"],
    )
    metrics = _shown(hp, rows, levels)
    environment = report.environment()
    settings = json.loads(json.dumps(dict(hp)))
    everything = {
        arm: {str(seed): r["exposure"] for (name, seed), r in results.items() if name == arm}
        for arm in dict.fromkeys(arm for arm, _ in results)
    }
    title = f"Swing distillation on {hp['dataset'].rpartition('/')[2]} ({hp['task']})"
    try:
        report.write_results(
            workdir / "results.json",
            method="swingdistill",
            dataset=hp["dataset"],
            rows=rows,
            gates=gates,
            environment=environment,
            extra={
                "settings": settings,
                "minutes": minutes,
                "exposure": everything,
                "scorers": {str(seed): found["quality"] for seed, found in study.items()},
            },
        )
    finally:  # a full disk does not cost the table
        console.conclude(rows, metrics, gates, title)
    if not gates[0].passed:
        print("nothing can be claimed from this run: the first gate is missed", flush=True)
    first = study[hp["seeds"][0]]
    report.write_html(
        workdir / "report.html",
        title=title,
        summary=_headline(results, gates, levels),
        rows=rows,
        metrics=metrics,
        gates=gates,
        figures=_figures(workdir, hp, results, first, levels),
        notes=_notes(hp, minutes),
        environment=environment,
        command=" ".join(["python -m swingdistill.experiment", *sys.argv[1:]]),
        extra_tables=[_scorer_table(first["quality"])],
        sections=[("Sample text as the scores see it", samples.shaded_html(first["samples"]))],
    )
    console.say_report(workdir / "report.html")


def _num_candidates(hp) -> int:
    """How many candidates a rank is among; every secret leaves out the other planted ones."""
    total = 10 ** hp["canary_digits"]
    if hp["task"] == "classification":
        return min(total, 10_001)
    return total


def _shown(hp, rows, levels) -> list[str]:
    private = any("private_perplexity" in row.metrics for row in rows)
    perplexities = ["public_perplexity" if private else "digit_perplexity"]
    task = ["perplexity", *perplexities] if hp["task"] == "language" else ["accuracy"]
    metrics = [*task, *(f"exposure_{n}" for n in levels), f"worst_exposure_{max(levels)}"]
    metrics += ["epsilon", "replace_one_epsilon"]
    return [name for name in metrics if any(name in row.metrics for row in rows)]


def _headline(results, gates, levels) -> str:
    if not gates[0].passed:
        return (
            f"Nothing can be claimed: {gates[0].value}, and {gates[0].needed}. Train longer, plant "
            "more repetitions, or take less text."
        )
    most = max(levels)
    kd, swing = (claims.bits(results, arm, most).mean() for arm in ("kd", "swing"))
    missed = [gate.name for gate in gates if not gate.passed]
    return (
        f"Of a secret that stood {most} times in its teacher's text a student of plain "
        f"distillation gives away {kd:.1f} bits, one of Swing distillation {swing:.1f}; a number "
        f"that nobody learnt has 1.4. Perplexity {claims.mean(results, 'kd', 'perplexity'):.2f} "
        f"and {claims.mean(results, 'swing', 'perplexity'):.2f}. "
        + (f"Missed: {'; '.join(missed)}." if missed else "Everything asked for was shown.")
    )


def _figures(workdir, hp, results, first, levels):
    folder = workdir / "figures"
    hidden = {"reference", *arms.sweep(hp["sweep"], hp["t_min"])}
    by_arm = {
        arm: {n: claims.bits(results, arm, n).tolist() for n in levels}
        for arm in dict.fromkeys(arm for arm, _ in results)
        if arm not in hidden
    }
    made = [
        (
            "Exposure by repetitions in the teacher's text, every secret a dot. Baselines that ran "
            "with the first seed only have fewer.",
            attempt(
                figures.exposure_by_repetition,
                folder / "exposure.png",
                by_arm,
                ceiling=math.log2(_num_candidates(hp)),
            ),
        ),
        (
            "How well each scorer finds the secrets of each number of repetitions.",
            attempt(figures.scorer_quality, folder / "scorers.png", first["quality"]),
        ),
    ]
    if hp["sweep"]:
        curves = {
            name: [
                (
                    scale,
                    float(claims.bits(results, f"{arm}_noise{scale:g}", max(levels)).mean()),
                    claims.mean(results, f"{arm}_noise{scale:g}", "perplexity"),
                )
                for scale in sorted(hp["sweep"])
            ]
            for name, arm in (("constant temperature", "constant"), ("swing", "swing"))
        }
        caption = "Less and less noise: a constant temperature against one for each token."
        made.insert(1, (caption, attempt(figures.budget_curves, folder / "budget.png", curves)))
    return made


def _scorer_table(quality) -> tuple[str, list[str], list[list[str]]]:
    def shown(value):
        return "–" if value is None else f"{value:.3f}"

    head = ["scorer", "repetitions", "precision", "recall", "AUC"]
    body = [
        [scorer, level, shown(q["precision"]), shown(q["recall"]), shown(q["auc"])]
        for scorer, by_level in quality.items()
        for level, q in by_level.items()
    ]
    caption = "Scorers: secrets against all tokens outside canaries, called private at s > ½"
    return caption, head, body


def _notes(hp, minutes: float) -> list[str]:
    notes = [
        "Per-token temperatures and noise in the soft targets are the ideas of the abstract of "
        "Swing Distillation, Li et al., 2022. The formulas, the scorers, the baselines and this "
        "protocol are our reconstruction.",
        "Exposure is log₂ of the candidates less log₂ of the secret's rank among them; a secret "
        "that was not learnt has 1.44 bits on average. Reductions are given raw and measured from "
        "there. Perplexity is that of the test text, a token.",
        "Exposure is what this attack finds, an empirical measure and no guarantee of privacy. "
        "No arm with a teacher has record-level differential privacy: "
        + (
            "the ε of the formal budget is for released vectors alone (see each arm's settings)."
            if hp["epsilon"]
            else "the noise scale is empirical, and no ε is claimed from it."
        ),
        f"This call took {minutes:.1f} minutes; stages finished before it are not counted.",
    ]
    if hp["dp"]:
        notes.append(
            "dp_sgd learns from labels alone; its ε is for a line of the text, zeroed out. A "
            "secret that stands 10 or 100 times is as many lines: for all of them together only "
            "group privacy holds, at 10 or 100 times ε and a larger δ. Lines are cut after "
            f"{hp['length']} tokens. The vocabulary, which is the reference's, made of lines that "
            "no other run trains on, and the held-out text count as public."
        )
    if hp["task"] == "classification":
        notes.append(
            "A classifier's secrets are ranked among 10,000 sampled numbers by the loss of the "
            "canary's label, so that 13.3 bits are the most that can be seen. It gives away that "
            "label, not digits; the first gate asks that it can be told from chance, a bar of ours."
        )
    return notes
