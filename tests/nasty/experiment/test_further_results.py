"""What stands in tables, figures and JSON beside the comparison."""

import contextlib

import pytest

from distill_core.experiment import plotting
from nasty.experiment import further_results
from nasty.experiment.ablations import Point
from nasty.experiment.contest import Contest

MEANS = {
    "teacher_normal": 0.98,
    "teacher_nasty": 0.97,
    "student_alone": 0.9,
    "student_of_normal": 0.95,
    "student_of_nasty": 0.6,
    "self_of_normal": 0.98,
    "self_of_nasty": 0.96,
    "data_free_of_normal": 0.9,
    "data_free_of_nasty": 0.8,
}
OMEGA = [
    Point(0.0, {"teacher": [0.98, 0.96], "student": [0.95, 0.93]}),
    Point(0.04, {"teacher": [0.97, 0.95], "student": [0.6, 0.5]}),
]
FOUGHT = Contest(
    attacked={
        ("kd", "none"): [0.95],
        ("kd", "nasty"): [0.6],
        ("htc", "none"): [0.94],
        ("htc", "nasty"): [0.93],
    },
    teachers={"none": [0.98], "nasty": [0.97]},
    seconds={"none": 9.0, "nasty": 12.0},
    alone=[0.9],
)
RESULTS = {(arm, 1): {"accuracy": mean} for arm, mean in MEANS.items()}


def collect(**given):
    empty = {"seed": 1, "sweeps": {}, "fought": None, "inverted": None, "targets": {}}
    empty["num_test"] = 10_000
    return further_results.collect(RESULTS, **{**empty, **given})


def test_without_extras_there_is_nothing():
    assert collect() == ([], [], {}, [], [])


def test_an_ablation_is_a_table_a_figure_and_a_judged_trend(tmp_path):
    found = collect(sweeps={"omega": OMEGA})
    (trends, table), (figure,) = found.tables, found.figures
    assert table.rows == [
        ["0", "97.0 ± 1.4", "94.0 ± 1.4"],
        ["0.04", "96.0 ± 1.4", "55.0 ± 7.1"],
    ]
    assert "The paper †: students fall as ω grows" in figure.caption
    path = figure.draw(tmp_path / figure.path)
    assert path == tmp_path / "figures" / "ablation_omega.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    by_axis = {row[0]: row for row in trends.rows}
    assert by_axis["ω"][1] == "yes"
    assert by_axis["student"][1] == "yes"
    assert "35.0 points (student) and 2.0" in by_axis["student"][3]
    assert by_axis["data free"][1::2] == ["yes", "10.0 points below the normal teacher's"]
    assert found.fields["trends"]["omega"]["agrees"] is True
    points = found.fields["ablations"]["omega"]
    assert [point["value"] for point in points] == ["0", "0.04"]
    assert points[1]["student"]["values"] == [0.6, 0.5]


def test_attacks_and_defences_are_one_table_with_teachers_and_times(tmp_path):
    found = collect(fought=FOUGHT)
    ((caption, head, rows, _, about),) = found.tables
    assert about.keys() == {"kd", "htc", "none", "nasty"} and all(about.values())
    assert "alone it has 90.00" in caption
    assert head == ["attack", "none", "nasty"]
    assert rows == [
        ["kd", "95.00", "60.00"],
        ["htc", "94.00", "93.00"],
        ["the teacher itself", "98.00", "97.00"],
        ["making it, seconds", "9.0", "12.0"],
        ["… of the nasty one's", "75%", "100%"],
    ]
    fields = found.fields["attacks_and_defences"]
    assert fields["attacked"][1]["accuracy"]["mean"] == 0.6
    (figure,) = found.figures
    assert figure.draw(tmp_path / figure.path).read_bytes().startswith(b"\x89PNG")
    unknown = FOUGHT._replace(seconds={"none": 9.0, "nasty": None})
    (table,) = collect(fought=unknown).tables
    assert table.rows[-1] == ["making it, seconds", "9.0", None]


def test_all_ablations_are_drawn_on_one_scale_that_holds_every_run(tmp_path, monkeypatch):
    drawn = []
    draw = plotting.drawing

    @contextlib.contextmanager
    def drawing(path, height):
        with draw(path, height) as figure:
            yield figure
            drawn.append(figure.axes[0].get_ylim())

    monkeypatch.setattr(plotting, "drawing", drawing)
    alphas = [Point(a, {"normal": [0.95], "nasty": [0.31]}) for a in (0.1, 0.9)]
    for figure in collect(sweeps={"omega": OMEGA, "alpha": alphas}).figures:
        figure.draw(tmp_path / figure.path)
    assert len(drawn) == 2 and len({*drawn}) == 1
    low, high = drawn[0]
    assert low < 31 and high > 98


@pytest.mark.parametrize(("best", "passed"), [(0.93, False), (0.901, False), (0.899, True)])
def test_the_best_attack_is_in_the_lead_and_among_the_criteria(best, passed):
    attacked = FOUGHT.attacked | {("htc", "nasty"): [best - 0.005, best + 0.005]}
    found = collect(fought=FOUGHT._replace(attacked=attacked), num_test=360)
    (gate,), (said,) = found.gates, found.lead
    assert gate.passed is passed and gate.name.endswith("(a known weakness)")
    reached = f"{100 * best:.1f}%"
    assert (gate.value, gate.needed) == (f"{reached} by the best, htc", "below 90.0%")
    assert said == f"The best of 2 attacks on the nasty teacher, htc, reaches {reached}."
    kept = {pair: values for pair, values in attacked.items() if pair[1] == "none"}
    alone = FOUGHT._replace(attacked=kept, teachers={"none": [0.98]}, seconds={"none": 9.0})
    found = collect(fought=alone)
    assert found.gates == found.lead == []


def test_targets_stand_beside_the_arms_that_were_run():
    found = collect(targets={"student_of_nasty": 0.8246, "resnetc20_alone": 0.9})
    (table,) = found.tables
    assert table.rows == [["student_of_nasty", "60.00", "82.46"]]


def test_reconstructed_images_are_shown_beside_their_numbers():
    numbers = {"confidence": 0.99, "noisiness": 0.4, "judge_accuracy": 0.43}
    found = collect(inverted={"normal": numbers, "nasty": numbers, "seconds": 3.0})
    assert found.tables[0].rows[1] == ["nasty teacher", "99.0%", "0.400", "43.0%"]
    assert found.figures[0].path == "runs/inversion/seed1/inversion.png"
    assert found.fields["inversion"] == {"normal": numbers, "nasty": numbers}
