"""A stage runs once, again when what decides it changed, and never over someone else's files."""

import json

import pytest
from etils import epath

from distill_core.config import InputError
from distill_core.experiment import stages
from distill_core.runtime import process
from distill_core.training.loop import StoppedError

CONFIG = {"omega": 0.04, "seed": 1}


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

    def __call__(self, config=CONFIG, data="these", inputs=("aa",), **how):
        """What became of it: "starting", "up to date", "resuming" or "redoing: why"."""
        self.result = stages.run_stage(
            epath.Path(self.directory),
            config=config,
            data=data,
            inputs=inputs,
            run=lambda: self.run(**how),
        )
        return self.said[-1].removeprefix("teacher_normal/seed1: ")

    def record(self):
        return json.loads((self.directory / "stage.json").read_text())


@pytest.fixture
def stage(tmp_path, monkeypatch):
    made = Stage(tmp_path / "teacher_normal" / "seed1")
    monkeypatch.setattr(stages, "_say", made.said.append)
    return made


def test_a_finished_stage_is_skipped_whatever_the_order_of_its_fields(stage):
    config = {"omega": 0.04, "adversary": {"model": "cnn", "sizes": (1, 2)}}
    assert stage(config, result={"sizes": (1, 2), 3: 4}) == "starting"
    first = stage.result
    assert first["spent"]["speed"] == {} and sum(first["spent"]["seconds"].values()) >= 0
    known = {name: first[name] for name in ("seconds", "spent")}
    assert first == {"sizes": [1, 2], "3": 4, **known}
    config = {"adversary": {"sizes": [1, 2], "model": "cnn"}, "omega": 0.04}
    assert stage(config) == "up to date"
    assert stage.result == first
    assert (stage.runs, stage.record()["status"]) == (1, "done")


def test_a_plan_is_completed_in_order_and_each_run_is_told_where_its_inputs_lie(
    tmp_path, monkeypatch
):
    calls, said = [], []
    monkeypatch.setattr(stages, "_say", said.append)

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
    assert runner.complete_all(each for each in (often, student)) == found
    order = ("teacher/seed1 (1 of 2)", "student/seed1 (2 of 2)")
    statuses = ("starting", "up to date")
    assert said == [f"{name}: {status}" for status in statuses for name in order]
    assert runner.complete(teacher._replace(data="others"))["accuracy"] == 3
    assert len(calls) == 3
    assert said[-1] == "teacher/seed1: redoing: the data changed"


def test_a_changed_field_is_named_and_redoes_this_stage_from_nothing(stage, tmp_path):
    stage()
    target = tmp_path / "data"
    target.mkdir()
    (target / "images").write_text("pixels")
    (stage.directory / "data").symlink_to(target)
    (stage.directory / "checkpoints").mkdir()
    (stage.directory / "checkpoints" / "1").write_text("")
    changed = CONFIG | {"omega": 0.05}
    assert stage(changed) == "redoing: settings changed: omega 0.04 → 0.05"
    assert (stage.runs, stage.result["run"]) == (2, 2)
    assert stage.left == ["private", "stage.json"]
    assert (target / "images").read_text() == "pixels", "a link goes, its target stays"
    assert stage(changed) == "up to date"


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (
            {"a": 1, "adversary": {"model": "cnn", "steps": 3}, "gone": None},
            {"a": 1, "adversary": {"model": "vit", "steps": 3}, "new": True},
            "adversary.model cnn → vit, gone null → unset, new unset → true",
        ),
        ({"a": 1}, {"a": 1} | {f"x{i}": i for i in range(6)}, "x3 unset → 3 and 2 more"),
        ({"a": 1}, {"a": True}, "a 1 → true"),
    ],
)
def test_nested_new_and_many_changes_are_named(stage, old, new, changes):
    stage(old)
    assert stage(new).endswith(changes)


@pytest.mark.parametrize("inputs", [("bb",), ("aa", "bb"), ()])
def test_changed_input_checkpoints_redo_a_stage(stage, inputs):
    stage()
    assert stage(inputs=inputs) == "redoing: its input checkpoints changed"


def test_changed_data_redoes_and_is_remembered_in_private_alone(stage):
    stage()
    assert stage(data="others") == "redoing: the data changed"
    assert stage(data="others") == "up to date"
    (place,) = (p for p in stage.directory.rglob("*") if p.is_file() and "others" in p.read_text())
    assert place == stage.directory / "private" / "stage.json"
    assert place.stat().st_mode & 0o777 == 0o600
    place.unlink()
    assert stage().startswith("up to date (cannot tell whether its data changed: no /")


def test_another_format_redoes(stage, monkeypatch):
    stage()
    monkeypatch.setattr(stages, "FORMAT", stages.FORMAT + 1)
    assert stage().startswith("redoing")


def test_a_crash_leaves_a_stage_begun_which_the_same_call_resumes_and_another_redoes(stage):
    with pytest.raises(RuntimeError, match="out of memory"):
        stage(fails=True)
    assert stage.record()["status"] == "started"
    assert stage() == "resuming"
    assert stage.left == ["file1", "private", "stage.json"]
    assert stage() == "up to date"
    with pytest.raises(RuntimeError):
        stage({"omega": 1}, fails=True)
    assert stage({"omega": 2}).startswith("redoing")
    assert stage.left == ["private", "stage.json"]


def test_the_time_of_several_goes_is_added_up_unless_one_was_killed(stage, monkeypatch):
    clock = iter([0.0, 5.0, 100.0, 103.0, 0.0, 1.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    with pytest.raises(RuntimeError):
        stage(fails=True)
    begun = stage.record()
    assert begun["seconds"] == 5.0
    for _ in "done", "skipped":
        stage()
        assert stage.result["seconds"] == 8.0
    del begun["seconds"]  # as a kill leaves it, which writes nothing
    (stage.directory / "stage.json").write_text(json.dumps(begun))
    stage()
    assert stage.result["seconds"] is None


def test_no_stage_begins_after_the_deadline_and_nothing_is_touched(stage, monkeypatch):
    stage()
    before = {path.name for path in stage.directory.iterdir()}
    monkeypatch.setattr(process, "is_overdue", lambda: True)
    assert stage() == "up to date"
    with pytest.raises(StoppedError, match="by the deadline before teacher_normal/seed1; the same"):
        stage({"omega": 1})
    assert {path.name for path in stage.directory.iterdir()} == before and stage.runs == 1


def test_an_interrupted_removal_passes_neither_as_old_nor_as_new(stage, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    stage()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_empty", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stage({"omega": 0.05})
    (stage.directory / "half").write_text("")
    assert stage().startswith("redoing")  # the settings of before, but its files may be gone
    assert stage.left == ["private", "stage.json"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("thesis.tex", "years of work"),
        *(
            ("stage.json", content)
            for content in ("", "{", "[]", '{"status": "other"}', '{"status": "done"}')
        ),
    ],
)
def test_what_is_no_stage_is_refused_and_untouched(stage, file, content):
    stage.directory.mkdir(parents=True)
    (stage.directory / file).write_text(content)
    with pytest.raises(InputError, match=r"^workdir: "):
        stage()
    assert [path.name for path in stage.directory.iterdir()] == [file]
    assert (stage.directory / file).read_text() == content
    assert stage.runs == 0


def test_a_file_in_the_way_is_refused(stage):
    stage.directory.parent.mkdir()
    stage.directory.write_text("")
    with pytest.raises(InputError, match=r"^workdir: "):
        stage()


def test_an_empty_directory_and_a_cut_short_first_write_are_no_obstacle(stage):
    stage.directory.mkdir(parents=True)
    (stage.directory / ".stage.json.tmp").write_text('{"dig')
    assert stage() == "starting"


@pytest.mark.parametrize("result", [{"a": object()}, 3, {"a": {1, 2}}])
def test_a_result_that_is_not_json_leaves_the_stage_started(stage, result):
    with pytest.raises(TypeError, match="result: must be"):
        stage(result=result)
    assert stage.record()["status"] == "started"


def test_a_config_that_is_not_json_is_refused_before_anything(stage):
    with pytest.raises(TypeError, match="config: must be"):
        stage({"a": object()})
    assert not stage.directory.exists()
