"""What stands in tables, figures and JSON beside the comparison."""

import numpy as np
import pytest

from nasty.experiment import further_results, sweep_figures, throughput
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
    empty = {"sweeps": {}, "fought": None, "inverted": None, "targets": {}}
    return further_results.collect(RESULTS, **{**empty, **given})


def draw(folder, *, sweeps=None, fought=None, inverted=False):
    return further_results.draw_figures(folder, RESULTS, sweeps or {}, fought, inverted)


def test_without_extras_there_is_nothing(tmp_path):
    assert collect() == ([], {})
    assert draw(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_an_ablation_is_a_table_a_figure_and_a_judged_trend(tmp_path):
    found = collect(sweeps={"omega": OMEGA})
    (trends, table), ((caption, path),) = found.tables, draw(tmp_path, sweeps={"omega": OMEGA})
    assert table[2] == [
        ["0", "97.00 ± 1.41", "94.00 ± 1.41"],
        ["0.04", "96.00 ± 1.41", "55.00 ± 7.07"],
    ]
    assert "The paper: students fall as ω grows" in caption
    assert path.read_bytes().startswith(b"\x89PNG")
    by_axis = {row[0]: row for row in trends[2]}
    assert by_axis["ω"][1] == "yes"
    assert by_axis["student"][1] == "yes"
    assert "35.0 points (student) and 2.0" in by_axis["student"][3]
    assert by_axis["data free"][1::2] == ["yes", "10.0 points below the normal teacher's"]
    assert found.fields["trends"]["omega"]["agrees"] is True
    points = found.fields["ablations"]["omega"]
    assert [point["value"] for point in points] == ["0", "0.04"]
    assert points[1]["student"]["values"] == [0.6, 0.5]


def test_a_trend_of_ours_that_is_another_than_the_papers_says_no():
    rising = [Point(0.0, OMEGA[1].accuracies), Point(0.04, OMEGA[0].accuracies)]
    found = collect(sweeps={"omega": rising})
    assert {row[0]: row[1] for row in found.tables[0][2]}["ω"] == "no"
    assert found.fields["trends"]["omega"]["agrees"] is False


def test_attacks_and_defences_are_one_table_with_teachers_and_times(tmp_path):
    found = collect(fought=FOUGHT)
    ((caption, head, rows),) = found.tables
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
    ((_, path),) = draw(tmp_path, fought=FOUGHT)
    assert path == tmp_path / "figures" / "contest.png" and path.is_file()


def test_a_time_that_is_not_known_is_not_shown():
    unknown = FOUGHT._replace(seconds={"none": 9.0, "nasty": None})
    ((_, _, rows),) = collect(fought=unknown).tables
    assert rows[-1] == ["making it, seconds", "9.0", None]


def test_targets_stand_beside_the_arms_that_were_run():
    found = collect(targets={"student_of_nasty": 0.8246, "resnetc20_alone": 0.9})
    ((_, _, rows),) = found.tables
    assert rows == [["student_of_nasty", "60.00", "82.46"]]


def test_reconstructed_images_are_shown_beside_their_numbers(tmp_path):
    place = tmp_path / "runs" / "inversion" / "seed1"
    place.mkdir(parents=True)
    (place / "inversion.png").write_bytes(b"png")
    numbers = {"confidence": 0.99, "noisiness": 0.4, "judge_accuracy": 0.43}
    found = collect(inverted={"normal": numbers, "nasty": numbers, "seconds": 3.0})
    assert found.tables[0][2][1] == ["nasty teacher", "99.0%", "0.400", "43.0%"]
    ((_, path),) = draw(tmp_path, inverted=True)
    assert path == place / "inversion.png"
    assert found.fields["inversion"] == {"normal": numbers, "nasty": numbers}


def test_a_series_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a: got 1 entries; need one a value, 2"):
        sweep_figures.sweep(tmp_path / "x.png", "ω", ["0", "1"], {"a": [[0.5]]}, 0.9)


def test_speed_counts_every_pass_of_every_network(monkeypatch):
    teacher, student = (type("Model", (), {"spec": {"input_shape": (8, 8, 1)}})() for _ in "ab")
    monkeypatch.setattr(throughput, "forward_flops", lambda m, _: 100.0 if m is teacher else 10.0)
    hp = {"num_steps": 50, "batch_size": 10, "student_num_steps": 20, "student_batch_size": 10}
    seconds = {"teacher_normal": [10.0, None], "teacher_nasty": [20.0], "student_alone": [None]}
    results = {(a, i): {"seconds": s} for a, each in seconds.items() for i, s in enumerate(each)}
    _, _, rows = throughput.table(results, hp, teacher, student, peak=1e6)
    assert rows == [
        ["teacher_normal", "10", "50", f"{50 * 300 / 1e6:.1%}"],
        ["teacher_nasty", "20", "25", f"{25 * 400 / 1e6:.1%}"],
    ]
    assert throughput.peak("NVIDIA H200") == 989e12
    assert throughput.peak("NVIDIA H100 PCIe") == 756e12  # not the other H100's
    assert throughput.peak("TPU v5 lite") == 197e12
    assert throughput.peak("AMD EPYC") is None
    assert np.isfinite(list(throughput.PEAKS.values())).all()
