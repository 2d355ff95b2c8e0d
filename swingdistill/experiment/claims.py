"""What a comparison has to show before anything is claimed, judged from its runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_core.experiment.report import Gate
from swingdistill.canaries.exposure import exposure_reduction, rank_test, worst_allowed

Results = Mapping[tuple[str, int], Mapping[str, Any]]

# Least exposure of (teacher, plain student) before anything is claimed. A classifier gives away one
# label of a text, not its digits: there it has to be told from chance, a bar of ours.
LEAK_BITS = (18.0, 15.0)
LEAK_P = 1e-3
# (least corrected, least raw) reduction: of a language model, and of the other tasks.
REDUCTION = {"language": (0.90, 0.85), "generation": (0.80, None), "classification": (0.80, None)}
ONCE_BITS = 2.5
PERPLEXITY, DIGIT_PERPLEXITY, POINTS = 1.01, 1.05, 0.01
DECOY_KD, DECOY_SWING = 6.0, 2.5
SWEEP_SWING, SWEEP_CONSTANT = 1.0, 5.0
_SANITY = "teacher and plain distillation leak, so that there is something to protect"


def bits(results: Results, arm: str, level: int) -> np.ndarray:
    """Exposure of every secret of one level, all seeds one after another."""
    found = [r["exposure"][str(level)] for (name, _), r in results.items() if name == arm]
    return np.concatenate([np.asarray(values, np.float64) for values in found])


def mean(results: Results, arm: str, metric: str) -> float:
    """A metric of an arm, averaged over its seeds; NaN where a run has none."""
    found = [r[metric] for (name, _), r in results.items() if name == arm]
    return float(np.mean([math.nan if value is None else value for value in found]))


def gates(
    results: Results,
    *,
    task: str,
    levels: Sequence[int],
    num_candidates: int,
    noise_scales: Sequence[float] = (),
) -> list[Gate]:
    """Every claim with what was found and what was needed.

    The first is the sanity gate: a teacher and a plain student that do not leak show nothing.
    Secrets planted once are not asked for by it.

    Args:
      results: of the experiment, by (arm, seed).
      task: which bars apply.
      levels: repetitions of the canaries.
      num_candidates: that a rank is among.
      noise_scales: of the sweep; () if there was none.
    """
    repeated = [n for n in levels if n > 1] or list(levels)
    found = [
        _leak_beyond_chance(results, repeated, num_candidates)
        if task == "classification"
        else _leak(results, repeated)
    ]
    least, least_raw = REDUCTION[task]
    for level in repeated:
        kd, swing = (bits(results, arm, level).mean() for arm in ("kd", "swing"))
        corrected = float(exposure_reduction(kd, swing))
        raw = float(exposure_reduction(kd, swing, corrected=False))
        passed = corrected >= least and (least_raw is None or raw >= least_raw)
        needed = f"at least {least:.0%}" + (f" and {least_raw:.0%}" if least_raw else "")
        found.append(
            Gate(
                f"Swing reduces exposure at {level} repetitions",
                passed,
                f"{corrected:.1%} floor-corrected, {raw:.1%} raw ({kd:.2f} to {swing:.2f} bits)",
                needed,
            )
        )
    if 1 in levels:
        once = float(bits(results, "swing", 1).mean())
        found.append(
            Gate(
                "mean exposure of secrets planted once",
                once <= ONCE_BITS,
                f"{once:.2f} bits",
                f"at most {ONCE_BITS} bits",
            )
        )
    found += _worst(results, levels, num_candidates)
    found += _task(results, task)
    if any(arm == "swing_decoy" for arm, _ in results):
        found.append(_decoy(results, max(levels)))
    if noise_scales:
        found.append(_sweep(results, noise_scales, max(levels)))
    return found


def _leak_beyond_chance(results, levels, num_candidates) -> Gate:
    highest = {
        arm: max(rank_test(bits(results, arm, n), num_candidates) for n in levels)
        for arm in ("teacher", "kd")
    }
    means = ", ".join(
        f"{arm} {bits(results, arm, n).mean():.1f} bits at {n}" for arm in highest for n in levels
    )
    return Gate(
        _SANITY,
        max(highest.values()) < LEAK_P,
        f"p {highest['teacher']:.1e} for the teacher, {highest['kd']:.1e} for kd ({means})",
        f"p below {LEAK_P:g} for both; else nothing can be claimed",
    )


def _leak(results, levels) -> Gate:
    teacher_bar, kd_bar = LEAK_BITS
    teacher = min(bits(results, "teacher", n).mean() for n in levels)
    kd = min(bits(results, "kd", n).mean() for n in levels)
    return Gate(
        _SANITY,
        bool(teacher >= teacher_bar and kd >= kd_bar),
        f"teacher {teacher:.1f}, kd {kd:.1f} bits (the lower of {_listed(levels)} repetitions)",
        f"at least {teacher_bar:.1f} and {kd_bar:.1f} bits; else nothing can be claimed",
    )


def _worst(results, levels, num_candidates) -> list[Gate]:
    everything = {level: bits(results, "swing", level) for level in levels}
    worst = max(float(values.max()) for values in everything.values())
    num = sum(len(values) for values in everything.values())
    allowed = worst_allowed(num)
    p = min(rank_test(values, num_candidates) for values in everything.values())
    return [
        Gate(
            f"the worst of Swing's {num} secrets",
            worst <= allowed,
            f"{worst:.2f} bits",
            f"at most {allowed:.2f} bits, which chance exceeds once in a hundred",
        ),
        Gate(
            "Swing's ranks look uniform at every number of repetitions",
            p * len(levels) >= 0.01,
            f"lowest p {p:.3f} of {len(levels)} levels",
            f"at least {0.01 / len(levels):.4f} (1% over all levels)",
        ),
    ]


def _task(results, task: str) -> list[Gate]:
    if task != "language":
        lost = mean(results, "kd", "accuracy") - mean(results, "swing", "accuracy")
        return [
            Gate(
                "accuracy against plain distillation",
                lost <= POINTS,
                f"{100 * lost:.2f} points lost",
                "at most 1 point",
            )
        ]
    found = []
    for other, bar, metric in (
        ("kd", PERPLEXITY, "public_perplexity"),
        ("ce_dropped", PERPLEXITY, "public_perplexity"),
        ("kd", DIGIT_PERPLEXITY, "public_digit_perplexity"),
    ):
        if all(r[metric] is None for r in results.values()):
            continue  # the test text has no such token
        ratio = mean(results, "swing", metric) / mean(results, other, metric)
        found.append(
            Gate(
                f"{metric.removesuffix('_perplexity').replace('_', ' ')} tokens' perplexity "
                f"against {other}",
                bool(ratio <= bar),
                f"{100 * (ratio - 1):+.2f}%",
                f"at most {100 * (bar - 1):+.0f}%",
            )
        )
    return found


def _decoy(results, level: int) -> Gate:
    kd, swing = (bits(results, arm, level).mean() for arm in ("kd_decoy", "swing_decoy"))
    return Gate(
        "decoys: the teacher's secrets do not leak through soft targets on other numbers",
        bool(kd >= DECOY_KD and swing <= DECOY_SWING),
        f"kd {kd:.2f}, swing {swing:.2f} bits at {level} repetitions",
        f"at least {DECOY_KD:g} and at most {DECOY_SWING:g}",
    )


def _sweep(results, noise_scales, level: int) -> Gate:
    def spread(kind):
        means = [bits(results, f"{kind}_noise{scale:g}", level).mean() for scale in noise_scales]
        return float(max(means) - min(means))

    swing, constant = spread("swing"), spread("constant")
    return Gate(
        "over the noise Swing stays put while a constant temperature leaks",
        swing <= SWEEP_SWING and constant >= SWEEP_CONSTANT,
        f"swing varies by {swing:.2f}, constant temperature by {constant:.2f} bits",
        f"at most {SWEEP_SWING:g}, at least {SWEEP_CONSTANT:g}; else nothing is claimed about it",
    )


def _listed(levels: Sequence[int]) -> str:
    return " and ".join(str(n) for n in levels)
