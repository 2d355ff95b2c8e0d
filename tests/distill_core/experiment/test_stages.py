"""A stage runs once, again when what decides it changed, and never over someone else's files."""

import json

import pytest
from etils import epath

from distill_core.config import InputError
from distill_core.experiment import stages
from distill_core.runtime import process
from distill_core.training.loop import StoppedError


class Stage:
    """A stage which counts its runs and leaves a file, and what was said about it."""

    def __init__(self, directory):
        self.directory = directory
        self.runs = 0
        self.said = []
        self.left = None  # the files that the last run found

    def run(self, *, fails=False, result=None):
        self.runs += 1
        self.left = sorted(path.name for path in self.directory.iterdir())
        (self.directory / f"file{self.runs}").write_text("weights")
        if fails:
            raise RuntimeError("out of memory")
        return {"accuracy": 0.5, "run": self.runs} if result is None else result

    def __call__(self, config=None, data="these", inputs=("aa",), **how):
        return stages.run_stage(
            epath.Path(self.directory),
            config={"omega": 0.04, "seed": 1} if config is None else config,
            data=data,
            inputs=inputs,
            run=lambda: self.run(**how),
        )

    def record(self):
        return json.loads((self.directory / "stage.json").read_text())


@pytest.fixture
def stage(tmp_path, monkeypatch):
    made = Stage(tmp_path / "teacher_normal" / "seed1")
    monkeypatch.setattr(stages, "_say", made.said.append)
    return made


def test_finished_stage_is_skipped(stage):
    first, second = stage(), stage()
    assert (first.status, second.status) == ("done", "skipped")
    assert stage.runs == 1
    assert second.result == first.result == {"accuracy": 0.5, "run": 1}
    assert stage.record()["status"] == "done"
    assert stage.said == ["teacher_normal/seed1: starting", "teacher_normal/seed1: up to date"]


def test_a_plan_is_completed_in_order_and_each_run_is_told_where_its_inputs_lie(
    tmp_path, monkeypatch
):
    calls = []

    def binary(settings, directory, *, parallel):
        calls.append((settings, directory, parallel))
        return {"accuracy": len(calls)}

    monkeypatch.setattr(stages.integrity, "find", lambda path: (path, {"id": "one"}))
    teacher = stages.Run("teacher", 1, binary, {"omega": 1.0, "log_every": 5}, {})
    student = stages.Run("student", 1, binary, {"alpha": 0.5}, {"teacher": teacher})
    runner = stages.Runner(epath.Path(tmp_path), "these images", "mesh")
    found = runner.complete_all([teacher, student])
    place = tmp_path / "runs" / "teacher" / "seed1"
    assert [call[0] for call in calls] == [
        {"omega": 1.0, "log_every": 5},
        {"alpha": 0.5, "teacher": str(place)},
    ]
    assert {call[2] for call in calls} == {"mesh"} and calls[0][1] == place
    assert {key: each["accuracy"] for key, each in found.items()} == {
        ("teacher", 1): 1,
        ("student", 1): 2,
    }
    often = teacher._replace(settings={"omega": 1.0, "log_every": 6})
    assert runner.complete_all([often, student]) == found
    assert runner.complete(teacher._replace(data="others"))["accuracy"] == 3
    assert len(calls) == 3


def test_order_of_fields_does_not_matter(stage):
    stage({"omega": 0.04, "adversary": {"model": "cnn", "steps": 3}})
    again = stage({"adversary": {"steps": 3, "model": "cnn"}, "omega": 0.04})
    assert again.status == "skipped"


def test_changed_field_is_named_and_redoes_this_stage_only(stage, tmp_path):
    other = Stage(tmp_path / "student_alone" / "seed1")
    stage(), other()
    (stage.directory / "checkpoints").mkdir()
    (stage.directory / "checkpoints" / "1").write_text("")
    again = stage({"omega": 0.05, "seed": 1})
    assert (again.status, stage.runs, again.result["run"]) == ("redone", 2, 2)
    assert stage.left == ["private", "stage.json"]  # nothing of the old settings is resumed from
    assert stage.said[-1] == ("teacher_normal/seed1: redoing: settings changed: omega 0.04 → 0.05")
    assert (other().status, other.runs) == ("skipped", 1)
    assert stage({"omega": 0.05, "seed": 1}).status == "skipped"


def test_nested_new_and_many_changes_are_named(stage):
    stage({"a": 1, "adversary": {"model": "cnn", "steps": 3}, "gone": None})
    stage({"a": 1, "adversary": {"model": "vit", "steps": 3}, "new": True})
    assert stage.said[-1].endswith(
        "settings changed: adversary.model cnn → vit, gone null → unset, new unset → true"
    )
    stage({f"x{i}": i for i in range(3)} | {"a": 1})
    assert stage.said[-1].endswith(", x0 unset → 0 and 2 more")


def test_changed_input_redoes(stage):
    stage()
    assert stage(inputs=("bb",)).status == "redone"
    assert stage.said[-1].endswith("redoing: its input checkpoints changed")
    assert stage(inputs=("bb", "aa")).status == "redone"
    assert stage.runs == 3


def test_changed_data_redoes_and_is_remembered_in_private_alone(stage):
    stage()
    assert stage(data="others").status == "redone"
    assert stage.said[-1].endswith("redoing: the data changed")
    assert stage(data="others").status == "skipped"
    (place,) = (p for p in stage.directory.rglob("*") if p.is_file() and "others" in p.read_text())
    assert place == stage.directory / "private" / "stage.json"
    assert place.stat().st_mode & 0o777 == 0o600


def test_without_what_was_remembered_of_its_data_a_stage_is_kept_with_a_word(stage):
    stage()
    (stage.directory / "private" / "stage.json").unlink()
    assert stage(data="others").status == "skipped"
    assert "up to date (cannot tell whether its data changed: no /" in stage.said[-1]


def test_another_format_redoes(stage, monkeypatch):
    stage()
    monkeypatch.setattr(stages, "FORMAT", stages.FORMAT + 1)
    assert stage().status == "redone"


def test_crash_leaves_started_and_the_next_call_resumes(stage):
    with pytest.raises(RuntimeError, match="out of memory"):
        stage(fails=True)
    assert stage.record()["status"] == "started"
    again = stage()
    assert (again.status, stage.runs) == ("resumed", 2)
    assert stage.left == ["file1", "private", "stage.json"]  # what the crashed run left is there
    assert stage.said[-1] == "teacher_normal/seed1: resuming"
    assert stage().status == "skipped"


def test_the_time_of_several_goes_is_added_up(stage, monkeypatch):
    clock = iter([0.0, 5.0, 100.0, 103.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    with pytest.raises(RuntimeError):
        stage(fails=True)
    assert stage.record()["seconds"] == 5.0
    assert stage().seconds == 8.0
    assert stage().seconds == 8.0  # skipped: as remembered


def test_the_time_of_a_go_that_was_killed_is_not_known(stage):
    with pytest.raises(RuntimeError):
        stage(fails=True)
    record = stage.record()
    del record["seconds"]  # as a kill leaves it, which writes nothing
    (stage.directory / "stage.json").write_text(json.dumps(record))
    assert stage().seconds is None


def test_no_stage_begins_after_the_deadline_and_nothing_is_touched(stage, monkeypatch):
    stage()
    before = {path.name for path in stage.directory.iterdir()}
    monkeypatch.setattr(process, "is_overdue", lambda: True)
    assert stage().status == "skipped"
    with pytest.raises(StoppedError, match="by the deadline before teacher_normal/seed1; the same"):
        stage({"omega": 1})
    assert {path.name for path in stage.directory.iterdir()} == before and stage.runs == 1


def test_crash_then_other_settings_redoes(stage):
    with pytest.raises(RuntimeError):
        stage(fails=True)
    assert stage({"omega": 1}).status == "redone"
    assert stage.left == ["private", "stage.json"]


def test_interrupted_removal_passes_neither_as_old_nor_as_new(stage, monkeypatch):
    stage()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_empty", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            stage({"omega": 0.05})
    (stage.directory / "half").write_text("")
    assert stage().status == "redone"  # the settings of before, but its files may be gone
    assert stage.left == ["private", "stage.json"]


def _interrupt(_):
    raise KeyboardInterrupt


def test_foreign_directory_is_refused_and_untouched(stage):
    stage.directory.mkdir(parents=True)
    (stage.directory / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"^workdir: .*seed1'; holds files but no stage\.json"):
        stage()
    assert [path.name for path in stage.directory.iterdir()] == ["thesis.tex"]
    assert (stage.directory / "thesis.tex").read_text() == "years of work"
    assert stage.runs == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "other"}', '{"status": "done"}'])
def test_unreadable_record_is_refused_and_untouched(stage, content):
    stage.directory.mkdir(parents=True)
    (stage.directory / "stage.json").write_text(content)
    (stage.directory / "model").write_text("")
    with pytest.raises(InputError, match="workdir"):
        stage()
    assert (stage.directory / "model").exists() and stage.runs == 0


def test_a_file_in_the_way_is_refused(stage):
    stage.directory.parent.mkdir()
    stage.directory.write_text("")
    with pytest.raises(InputError, match="must be a directory"):
        stage()


def test_empty_directory_and_a_cut_short_first_write_are_no_obstacle(stage):
    stage.directory.mkdir(parents=True)
    (stage.directory / ".stage.json.tmp").write_text('{"dig')
    assert stage().status == "done"


def test_a_link_is_removed_and_its_target_kept(stage, tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    (target / "images").write_text("pixels")
    stage()
    (stage.directory / "data").symlink_to(target)
    stage({"omega": 0.05})
    assert stage.left == ["private", "stage.json"]
    assert (target / "images").read_text() == "pixels"


def test_result_is_what_a_skipped_call_gives(stage):
    assert stage(result={"sizes": (1, 2), 3: 4}).result == {"sizes": [1, 2], "3": 4}
    assert stage().result == {"sizes": [1, 2], "3": 4}


@pytest.mark.parametrize("result", [{"a": object()}, 3, {"a": {1, 2}}])
def test_result_that_is_not_json_leaves_the_stage_started(stage, result):
    with pytest.raises(TypeError, match="result: must be"):
        stage(result=result)
    assert stage.record()["status"] == "started"


def test_config_that_is_not_json_is_refused_before_anything(stage):
    with pytest.raises(TypeError, match="config: must be"):
        stage({"a": object()})
    assert not stage.directory.exists()
