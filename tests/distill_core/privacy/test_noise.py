"""The root of a private run's noise: where it lies, when it is drawn anew, and what is charged."""

import json
import os
import stat

import jax
import jaxlib.version
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.privacy import noise
from distill_core.privacy.noise import open_noise

DECIDES = {"norm": 1.0, "teachers": ["abc"]}


def open_at(workdir, start=0, *, decides=DECIDES, mode="jit", seed=None):
    return open_noise(workdir, decides=decides, start=start, mode=mode, seed=seed)


def record_of(workdir):
    return json.loads((workdir / "private" / "noise.json").read_text())


def bits(opened):
    return np.asarray(jax.random.key_data(opened.key)).tolist()


@pytest.fixture
def elsewhere(monkeypatch):
    """`elsewhere(name)`: from here on the run is on another machine."""

    def move(name):
        monkeypatch.setattr(noise, "machine", lambda mode: [name, mode])

    return move


def test_a_root_is_64_bits_of_the_operating_system(tmp_path, monkeypatch):
    asked, drawn = [], bytes(range(8))
    monkeypatch.setattr(os, "urandom", lambda size: asked.append(size) or drawn[:size])
    found = open_at(tmp_path)
    assert asked == [8]
    words = np.frombuffer(drawn, np.uint32)
    expected = jax.random.fold_in(jax.random.wrap_key_data(words), 0)
    assert bits(found) == np.asarray(jax.random.key_data(expected)).tolist()
    assert record_of(tmp_path)["root"] == drawn.hex()


def test_two_runs_draw_two_roots_and_a_run_keeps_its_own(tmp_path):
    first, second = (bits(open_at(tmp_path / name)) for name in "ab")
    assert first != second
    assert bits(open_at(tmp_path / "a", 3)) == first


def test_a_seed_decides_the_noise_alone(tmp_path):
    first, second, third = (
        bits(open_at(tmp_path / str(i), seed=seed)) for i, seed in enumerate([4, 4, 5])
    )
    assert first == second != third
    assert record_of(tmp_path / "0")["root"] != record_of(tmp_path / "1")["root"]


def test_nobody_else_can_read_it(tmp_path):
    old = os.umask(0)
    try:
        open_at(tmp_path).reserve(0)
    finally:
        os.umask(old)
    modes = [
        stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "private/noise.json")
    ]
    assert modes == [0o700, 0o600]
    assert os.listdir(tmp_path / "private") == ["noise.json"]


def test_on_another_machine_other_noise_is_drawn_and_what_may_be_lost_is_charged(
    tmp_path, elsewhere
):
    elsewhere("a")
    first = open_at(tmp_path)
    first.reserve(0, 10)  # steps 0 to 9
    elsewhere("b")
    second = open_at(tmp_path, 4)
    assert (second.restarts, second.replayed) == (1, 6)
    # On disk before anything is drawn: a second crash does not charge less.
    found = record_of(tmp_path)
    assert (found["restarts"], found["replayed"], found["reserved"]) == (1, 6, 4)
    again = open_at(tmp_path, 4)
    assert (again.restarts, again.replayed) == (1, 6)
    second.reserve(4, 5)  # steps 4 to 8
    elsewhere("a")  # also back: b's steps are not a's
    third = open_at(tmp_path, 7)
    assert (third.restarts, third.replayed) == (2, 6 + 2)
    assert len({tuple(bits(each)) for each in (first, second, third)}) == 3
    # Neither a run that stopped where nothing was drawn beyond it, …
    elsewhere("b")
    assert (open_at(tmp_path, 7).restarts, open_at(tmp_path, 7).replayed) == (3, 8)


def test_a_machine_is_told_from_another_by_whatever_changes_last_bits(monkeypatch):
    here = noise.machine("jit")
    assert noise.machine("jit") == here
    assert json.loads(json.dumps(here)) == here, "it is compared after a file held it"
    others = [noise.machine("pmap")]
    for change in (
        lambda patch: patch.setattr(jax, "devices", lambda: jax.local_devices()[:1]),
        lambda patch: patch.setattr(jax, "process_count", lambda: 2),
        lambda patch: patch.setattr(jax, "__version__", "0.0"),
        lambda patch: patch.setattr(jaxlib.version, "__version__", "0.0"),
        lambda patch: patch.setattr(np, "__version__", "0.0"),
        lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        lambda patch: patch.setattr(noise, "_processor", lambda: "another"),
        lambda patch: patch.setattr(os, "sched_getaffinity", lambda _: range(96)),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            others.append(noise.machine("jit"))
    assert all(other != here for other in others)


@pytest.mark.parametrize(
    ("backend", "flags", "repeats"),
    [
        ("cpu", "", True),
        ("gpu", "", False),
        ("gpu", "--xla_gpu_deterministic_ops=false", False),
        ("gpu", "--xla_foo=1 --xla_gpu_deterministic_ops=true", True),
        ("gpu", "--xla_gpu_exclude_nondeterministic_ops", True),
        ("tpu", "--xla_gpu_deterministic_ops=true", False),
    ],
)
def test_where_operations_need_not_repeat_their_bits_every_resume_is_a_restart(
    backend, flags, repeats, tmp_path, monkeypatch, elsewhere
):
    elsewhere("the same")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("XLA_FLAGS", flags)
    first = open_at(tmp_path)
    first.reserve(0, 10)
    again = open_at(tmp_path, 4)
    assert (again.restarts, again.replayed) == ((0, 0) if repeats else (1, 6))
    assert (bits(again) == bits(first)) == repeats


def test_a_draw_is_written_down_before_it_and_not_at_every_step(tmp_path, monkeypatch):
    writes, write = [], noise.write_private
    monkeypatch.setattr(noise, "write_private", lambda *args: writes.append(1) or write(*args))
    opened = open_at(tmp_path)
    for step in range(64):
        opened.reserve(step, 16)
        assert record_of(tmp_path)["reserved"] > step
    assert len(writes) == 1 + 4
    exact = open_at(tmp_path / "exact")
    for step in range(5):
        exact.reserve(step, 1)
        assert record_of(tmp_path / "exact")["reserved"] == step + 1


def test_a_run_that_lost_its_root_does_not_go_on(tmp_path):
    open_at(tmp_path)
    (tmp_path / "private" / "noise.json").unlink()
    with pytest.raises(InputError, match="^workdir: got .*noise.json.*first 3 steps"):
        open_at(tmp_path, 3)
    assert not (tmp_path / "private" / "noise.json").exists()


def test_a_root_serves_one_run(tmp_path):
    open_at(tmp_path)
    before = record_of(tmp_path)
    for other in ({**DECIDES, "norm": 2.0}, {**DECIDES, "teachers": ["abd"]}, {"norm": 1.0}):
        with pytest.raises(InputError, match="^workdir: .*other settings, data or teachers"):
            open_at(tmp_path, decides=other)
    assert record_of(tmp_path) == before
    open_at(tmp_path, decides=dict(reversed(DECIDES.items())))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", "no machine", "short root"])
def test_a_damaged_record_is_refused_in_one_line_and_kept(tmp_path, text):
    open_at(tmp_path)
    path, record = tmp_path / "private" / "noise.json", record_of(tmp_path)
    if text == "no machine":
        text = json.dumps({name: value for name, value in record.items() if name != "machine"})
    elif text == "short root":
        text = json.dumps({**record, "root": record["root"][:8]})
    path.write_text(text)
    with pytest.raises(InputError, match="^workdir: "):
        open_at(tmp_path)
    assert path.read_text() == text
