"""Draws the figures of the documentation from the results in `docs/results/`.

    make figures

`docs/results/README.md` has the command of every file there.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np

from distill_core import data
from distill_core.experiment import plotting
from dpdfd.experiment import summary as dpdfd_summary
from nasty.experiment import summary as nasty_summary
from swingdistill.experiment import figures as swing_figures

DOCS = Path(__file__).parent
RESULTS, IMAGES = DOCS / "results", DOCS / "images"
# Arms of a Swing experiment in the order in which a reader compares them.
SWING_ARMS = ("teacher", "student_ce", "kd", "ce_dropped", "mask", "swing")


def load(name: str) -> dict:
    """A results file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def teachers_outputs(path: Path):
    """What a normal and a nasty teacher tell a student about the same images."""
    results = load("nasty_digits")
    nasty_summary.draw_responses(path, results["responses"], data.load_dataset(results["dataset"]))


def exposure_by_baseline(path: Path):
    """Exposure of every secret, by arm and number of repetitions."""
    results = load("swing_wikitext")
    exposures = {}
    for arm in SWING_ARMS:
        seeds = results["exposure"][arm].values()
        levels = sorted({int(level) for by_level in seeds for level in by_level})
        exposures[arm] = {
            level: np.concatenate([by_level[str(level)] for by_level in seeds]) for level in levels
        }
    ceiling = math.log2(10 ** results["settings"]["canary_digits"])
    swing_figures.exposure_by_repetition(path, exposures, ceiling=ceiling)


def privacy_and_utility(path: Path):
    """Accuracy of what protects records over ε, beside published generators that see the data."""
    curves = {  # (arm, metric): label
        ("dp_teacher", "accuracy"): "DP teacher",
        ("student", "accuracy"): "its data-free student",
        ("student", "fresh_classifier_accuracy"): "fresh classifier of drawn images",
        ("student_bought_prior", "fresh_classifier_accuracy"): "… with a bought prior",
        ("ensemble_mean_head", "accuracy"): "ensemble (replace-one)",
    }
    rows = load("dpdfd_front")["rows"]
    with plotting.drawing(path, 4.2) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, dataset in zip(axes, ("mnist", "fashion_mnist"), strict=True):
            styles = zip(curves.items(), plotting.PALETTE, plotting.MARKERS, strict=False)
            for ((arm, metric), label), color, marker in styles:
                mine = [row for row in rows if (row["arm"], row["dataset"]) == (arm, dataset)]
                epsilons = [row["settings"]["epsilon"] for row in mine]
                means = [100 * row["metrics"][metric]["mean"] for row in mine]
                spread = [100 * row["metrics"][metric]["std"] for row in mine]
                look = {"color": color, "marker": marker, "capsize": 2, "label": label}
                axis.errorbar(epsilons, means, spread, **look)
            published = dpdfd_summary.published(f"tfds:{dataset}")
            for (name, points), marker in zip(published.items(), "x+12", strict=True):
                values = [100 * each for each in points.values()]
                look = {"color": "black", "zorder": 5, "label": f"{name} †"}
                axis.plot(list(points), values, marker, **look)
            axis.set_xscale("log")
            axis.set_xticks([1, 10], ["1", "10"])
            axis.minorticks_off()
            axis.set_xlim(0.7, 14)
            axis.set_title({"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}[dataset])
            axis.set_xlabel("ε of a record (δ = 1e-5 but for †)")
            axis.grid(axis="y")
        axes[0].set_ylabel("accuracy on test, %")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)


def shaded_sentence(path: Path):
    """A canary and ordinary lines, shaded by privacy score; beneath, where it is not 1, the
    teacher's temperature."""
    from matplotlib.colors import LinearSegmentedColormap

    lines = [each["tokens"] for each in load("swing_records_samples")]
    canary, *ordinary = (tokens for tokens in lines if any(score for _, score, _ in tokens))
    shown = [canary, *(tokens for tokens in ordinary if tokens[0][0] != canary[0][0])][:3]
    shade = LinearSegmentedColormap.from_list("privacy", ["#FFFFFF", "#E69F00"])
    size, points = 8, 7.0 * 72  # of the text; across the figure
    with plotting.drawing(path, 0.55 * len(shown)) as figure:
        axis = figure.subplots()
        axis.set_axis_off()
        for row, tokens in enumerate(shown):
            left, places = 0.0, []
            for text, score, _ in tokens:
                width = 0.602 * size * len(text)  # DejaVu Sans Mono's characters
                box = {"boxstyle": "square,pad=0.25", "fc": shade(score), "ec": "none"}
                look = {"va": "center", "family": "DejaVu Sans Mono", "fontsize": size}
                axis.text(left, -row, text, bbox=box, **look)
                places.append((left, left + width))
                left += width + 0.9 * size
            runs = itertools.groupby(range(len(tokens)), key=lambda i: tokens[i][2])
            for temperature, run in ((t, list(each)) for t, each in runs):
                if temperature != 1:
                    middle = (places[run[0]][0] + places[run[-1]][1]) / 2
                    look = {"fontsize": 7, "color": plotting.DIM, "ha": "center", "va": "center"}
                    axis.text(middle, -row - 0.42, f"T = {temperature:.3g}", **look)
        axis.set_xlim(-2, points)
        axis.set_ylim(-len(shown) + 0.4, 0.4)


def checkpoints(path: Path):
    """How checkpoints connect the methods."""
    from matplotlib.patches import FancyBboxPatch

    wide = 2.5
    uses = "accuracy, exposure,\nε of the ledger;\n\nsafetensors,\nHugging Face, a card"
    boxes = (  # left, bottom, top, colour, what runs and what it leaves
        (0.0, 1.6, 4.4, 0, "distill_core.train", "any network, any data,\nwith or without DP"),
        (3.6, 3.6, 4.4, 5, "nasty.train", "a nasty teacher"),
        (3.6, 0.6, 1.4, 2, "dpdfd.ensemble", "teachers on partitions"),
        (7.2, 3.6, 4.4, 5, "distill_core.distill", "students, attacks"),
        (7.2, 2.6, 3.4, 1, "swingdistill.train", "a student\nwithout secrets"),
        (7.2, 0.6, 2.4, 2, "dpdfd.train", "a private student,\na generator"),
        (10.8, 0.6, 4.4, -1, "evaluate, release", uses),
    )
    arrows = (  # from, to, height, what the checkpoint is there
        (0.0, 3.6, 4.0, "adversary"),
        (3.6, 7.2, 4.0, "teacher"),
        (0.0, 7.2, 3.0, "teacher, reference"),
        (0.0, 7.2, 2.0, "private teacher"),
        (3.6, 7.2, 1.0, "teachers"),
        *((7.2, 10.8, height, "") for height in (4.0, 3.0, 2.0, 1.0)),
    )
    with plotting.drawing(path, 2.9) as figure:
        axis = figure.subplots()
        axis.set_axis_off()
        for left, bottom, top, color, name, leaves in boxes:
            edge = plotting.PALETTE[color] if color >= 0 else plotting.DIM
            look = {"boxstyle": "round,pad=0,rounding_size=0.1", "fc": "white", "ec": edge}
            axis.add_patch(FancyBboxPatch((left, bottom), wide, top - bottom, lw=1.4, **look))
            place, middle = {"ha": "center", "fontsize": 7}, (bottom + top) / 2
            axis.text(left + wide / 2, middle + 0.06, name, va="bottom", **place)
            axis.text(left + wide / 2, middle, leaves, va="top", color=plotting.DIM, **place)
        for start, end, height, label in arrows:
            arrow = {"arrowstyle": "-|>", "color": plotting.DIM, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", (end, height), (start + wide, height), arrowprops=arrow)
            middle = (start + wide + end) / 2
            axis.text(middle, height + 0.07, label, ha="center", va="bottom", fontsize=6.5)
        axis.set_xlim(-0.1, 13.4)
        axis.set_ylim(0.5, 4.5)


def main():
    """Draws all of them."""
    teachers_outputs(IMAGES / "logit_response.png")
    exposure_by_baseline(IMAGES / "exposure.png")
    privacy_and_utility(IMAGES / "dpdfd_front.png")
    shaded_sentence(IMAGES / "shaded_sentence.png")
    checkpoints(IMAGES / "checkpoints.png")


if __name__ == "__main__":
    main()
