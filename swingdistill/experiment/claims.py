"""The acceptance criteria of a comparison, judged from its runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_core.experiment.report import Gate, Results, decimals
from swingdistill.attacks import membership
from swingdistill.canaries.exposure import exposure_reduction, rank_test, worst_allowed
from swingdistill.experiment.arms import at_noise

# Least exposure of (teacher, plain student) before anything is claimed. A classifier gives away one
# label of a text, not its digits: there it has to be told from chance, a bar of ours.
LEAK_BITS = (18.0, 15.0)
SHORT_BITS = (1.9, 4.9)  # of what so few candidates show at most, where that asks for less
LEAK_P = 1e-3
# (least corrected, least raw) reduction: of a language model, and of the other tasks.
REDUCTION = {"language": (0.90, 0.85), "generation": (0.80, None), "classification": (0.80, None)}
ONCE_BITS = 2.5
PERPLEXITY, DIGIT_PERPLEXITY, POINTS = 1.01, 1.05, 0.01
DECOY_KD, DECOY_SWING = 6.0, 2.5
TPR_LEAK = 5 * membership.FPR
MASK_P = 0.01
_SANITY = "teacher and plain distillation leak, so that there is something to protect"


def bits(results: Results, arm: str, level: int) -> np.ndarray:
    """Exposure of every secret of one level, all seeds one after another."""
    found = [r["exposure"][str(level)] for (name, _), r in results.items() if name == arm]
    return np.concatenate([np.asarray(values, np.float64) for values in found])


def mean(results: Results, arm: str, metric: str) -> float:
    """A metric of an arm, averaged over its seeds; NaN where a run has none."""
    found = [r[metric] for (name, _), r in results.items() if name == arm]
    return float(np.mean([math.nan if value is None else value for value in found]))


def num_tokens(results: Results) -> int:
    """Of the test text, by which accuracies are measured; a classifier has one per text."""
    return min(result["num_tokens"] for result in results.values())


def told(results: Results, arm: str, level: int) -> dict[str, Any]:
    """Membership of the canaries of one level, all seeds together; see `membership.pooled`."""
    return membership.pooled([_roc(r, level) for (name, _), r in results.items() if name == arm])


def _roc(result: Mapping[str, Any], level: int) -> Mapping[str, Any]:
    return result["attacks"]["membership"]["canaries"][str(level)]["mean"]


def gates(
    results: Results,
    *,
    task: str,
    levels: Sequence[int],
    num_candidates: int,
    noise_scales: Sequence[float] = (),
) -> list[Gate]:
    """Every criterion with what was found and what was needed.

    The first is the sanity gate: a teacher and a plain student that do not leak show nothing. It
    does not count secrets planted once.

    Args:
      results: of the experiment, by (arm, seed).
      task: which thresholds apply.
      levels: repetitions of the canaries.
      num_candidates: that a rank is among.
      noise_scales: of the sweep; a trend needs at least two.
    """
    repeated, most = [n for n in levels if n > 1] or list(levels), max(levels)
    leak = _leak_beyond_chance if task == "classification" else _leak
    found = [leak(results, repeated, num_candidates)]
    found += [_reduction(results, level, *REDUCTION[task]) for level in repeated]
    if 1 in levels:
        once, name = bits(results, "swing", 1).mean(), "mean exposure of secrets planted once"
        needed = f"at most {ONCE_BITS} bits"
        found.append(Gate(name, bool(once <= ONCE_BITS), f"{once:.2f} bits", needed))
    found += _worst(results, levels, num_candidates)
    if any(arm == "mask" for arm, _ in results):
        found.append(_less_than_mask(results, most))
    found += _perplexities(results) if task == "language" else [_accuracy(results)]
    if any(arm == "swing_decoy" for arm, _ in results):
        found.append(_decoy(results, most))
    if len(noise_scales) > 1:
        found.append(_sweep(results, noise_scales, most))
    if all("attacks" in r for (arm, _), r in results.items() if arm in ("kd", "swing", "mask")):
        found.append(_membership_leak(results, most))
        found += [_membership_chance(results, arm, levels) for arm in ("swing", "mask")]
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


def _leak(results, levels, num_candidates) -> Gate:
    most = math.log2(num_candidates)
    teacher_bar, kd_bar = (
        min(bar, most - short) for bar, short in zip(LEAK_BITS, SHORT_BITS, strict=True)
    )
    teacher, kd = (min(bits(results, arm, n).mean() for n in levels) for arm in ("teacher", "kd"))
    listed = " and ".join(str(n) for n in levels)
    return Gate(
        _SANITY,
        bool(teacher >= teacher_bar and kd >= kd_bar),
        f"teacher {teacher:.1f}, kd {kd:.1f} bits (the lower of {listed} repetitions)",
        f"at least {teacher_bar:.1f} and {kd_bar:.1f} bits; else nothing can be claimed",
    )


def _reduction(results, level: int, least: float, least_raw: float | None) -> Gate:
    kd, swing = (bits(results, arm, level).mean() for arm in ("kd", "swing"))
    corrected = float(exposure_reduction(kd, swing))
    raw = float(exposure_reduction(kd, swing, corrected=False))
    return Gate(
        f"Swing reduces exposure at {level} repetitions",
        corrected >= least and (least_raw is None or raw >= least_raw),
        f"{corrected:.1%} floor-corrected, {raw:.1%} raw ({kd:.2f} to {swing:.2f} bits)",
        f"at least {least:.0%}" + (f" and {least_raw:.0%}" if least_raw else ""),
    )


def _worst(results, levels, num_candidates) -> list[Gate]:
    everything = [bits(results, "swing", level) for level in levels]
    worst, num = max(float(values.max()) for values in everything), sum(map(len, everything))
    allowed = worst_allowed(num)
    p = min(rank_test(values, num_candidates) for values in everything)
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


def _less_than_mask(results, level: int) -> Gate:
    """A one-sided test: between students that both leak nothing the means differ by chance."""
    from scipy import stats

    swing, mask = (bits(results, arm, level) for arm in ("swing", "mask"))
    found: Any = stats.mannwhitneyu(swing, mask, alternative="less")
    p = float(found.pvalue)
    return Gate(
        "Swing gives away less than leaving private tokens out (mask)",
        p < MASK_P,
        f"swing {swing.mean():.2f}, mask {mask.mean():.2f} bits at {level} repetitions (p {p:.2g})",
        f"p below {MASK_P:g} (Mann–Whitney, one-sided)",
    )


def _accuracy(results) -> Gate:
    lost = mean(results, "kd", "accuracy") - mean(results, "swing", "accuracy")
    places = decimals(num_tokens(results))
    name, value = "accuracy against plain distillation", f"{100 * lost:.{places}f} points lost"
    return Gate(name, lost <= POINTS, value, "at most 1 point")


def _perplexities(results) -> list[Gate]:
    """Of tokens that the test text has."""
    found = []
    for metric, tokens, other, bar in (
        ("public_perplexity", "public", "kd", PERPLEXITY),
        ("public_perplexity", "public", "ce_dropped", PERPLEXITY),
        ("public_digit_perplexity", "public digit", "kd", DIGIT_PERPLEXITY),
    ):
        if all(r[metric] is None for r in results.values()):
            continue
        ratio = mean(results, "swing", metric) / mean(results, other, metric)
        name, needed = f"{tokens} tokens' perplexity against {other}", 100 * (bar - 1)
        value = f"{100 * (ratio - 1):+.2f}%"
        found.append(Gate(name, bool(ratio <= bar), value, f"at most {needed:+.0f}%"))
    return found


def _decoy(results, level: int) -> Gate:
    kd, swing = (bits(results, arm, level).mean() for arm in ("kd_decoy", "swing_decoy"))
    return Gate(
        "decoys: the teacher's secrets do not leak through soft targets on other numbers",
        bool(kd >= DECOY_KD and swing <= DECOY_SWING),
        f"kd {kd:.2f}, swing {swing:.2f} bits at {level} repetitions",
        f"at least {DECOY_KD:g} and at most {DECOY_SWING:g}",
    )


def _membership_leak(results, level: int) -> Gate:
    """The lower end of the interval counts: of 8 secrets one is a hit by chance in 8 of 100 runs.

    3 hits of 8 meet it, or 9 of 72.
    """
    kd = told(results, "kd", level)
    return Gate(
        f"membership inference finds plain distillation's secrets of {level} repetitions",
        kd["interval"][0] >= TPR_LEAK,
        f"TPR at 1% FPR {kd['tpr']:.2f}, 95% interval from {kd['interval'][0]:.3f}",
        f"at least {TPR_LEAK:g} at the interval's lower end, 5 times chance",
    )


def _membership_chance(results, arm: str, levels) -> Gate:
    """Exact p-values per level, with 1% over all of them.

    What they can see depends on the number of secrets per level: with 8 they miss a true rate of
    0.2 every second time, with 72 one of 0.07 four times in ten. So the upper bound over all levels
    stands beside them.
    """
    by_level = [told(results, arm, level) for level in levels]
    p = min(each["p_value"] for each in by_level)
    every = [_roc(r, n) for (name, _), r in results.items() if name == arm for n in levels]
    everything = membership.pooled(every)
    return Gate(
        f"membership inference does not find the secrets of {arm}",
        p * len(levels) >= 0.01,
        f"lowest p {p:.3f} of {len(levels)} levels (TPR at 1% FPR {everything['tpr']:.3f}, at most "
        f"{everything['interval'][1]:.3f} with 97.5% confidence)",
        f"at least {0.01 / len(levels):.4f} (1% over all levels)",
    )


def trend(results: Results, kind: str, noise_scales: Sequence[float], level: int):
    """Bits of exposure per decade of budget, (mean, low, high): 95% interval of the mean slope.

    The budget grows as the noise falls: a slope above 0 means that less noise leaks more. Each seed
    has a least-squares slope of its mean exposure over log₁₀(1/noise scale); the t-interval is over
    the seeds, since secrets of one model rise and fall together. Without bounds for one seed.
    """
    from scipy import stats

    budget = -np.log10(np.asarray(noise_scales, np.float64))
    budget = budget - budget.mean()
    seeds = sorted({seed for arm, seed in results if arm == at_noise(kind, noise_scales[0])})
    exposures = [
        [np.mean(results[at_noise(kind, x), seed]["exposure"][str(level)]) for seed in seeds]
        for x in noise_scales
    ]
    slopes = budget @ np.asarray(exposures) / np.sum(budget**2)  # [seeds]
    mean_slope, count = float(slopes.mean()), len(seeds)
    half = math.inf
    if count > 1:
        error = float(slopes.std(ddof=1)) / math.sqrt(count)
        half = float(stats.t.ppf(0.975, count - 1)) * error
    return mean_slope, mean_slope - half, mean_slope + half


def _sweep(results, noise_scales, level: int) -> Gate:
    swing, constant = (trend(results, kind, noise_scales, level) for kind in ("swing", "constant"))

    def told(found):
        return f"{found[0]:+.2f} ({found[1]:+.2f} to {found[2]:+.2f})"

    return Gate(
        "a larger budget (less noise) raises what a constant temperature gives away, not what "
        "Swing does",
        swing[1] <= 0 < constant[1] and swing[2] < constant[1],
        f"bits per decade of noise, secrets planted {level} times, with 95% intervals: swing "
        f"{told(swing)}, constant temperature {told(constant)}",
        "an interval not above 0, and one above 0 and above that; else nothing is claimed about a "
        "budget",
    )
