"""Checkpoints: what is written comes back, what is damaged is noticed, what misses is named."""

import errno
import gc
import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_core import checkpoint
from distill_core.checkpoint import integrity, store
from distill_core.config import InputError
from distill_core.models.network import Network

NETWORK = Network(
    "cnn", 3, {"widths": (2,), "hidden": 4}, (4, 4, 1), (0.5,), (0.25,), ("a", "b", "c")
)
IMAGES = np.linspace(0, 1, 5 * 16, dtype=np.float32).reshape(5, 4, 4, 1)


def _parts(seed=0, *names):
    found = {}
    for i, name in enumerate(names or ("student",)):
        params, model_state = NETWORK.init(jax.random.key(seed + i))
        found[name] = {"params": params, "model_state": model_state}
    return found


def _train(seed=0):
    return {
        "step": jnp.int32(3),
        "opt_state": ({"mu": jnp.full((2, 3), 0.1, jnp.bfloat16)}, (), jnp.uint8(7)),
        "rng": jax.random.key(seed),
    }


def _save(workdir, step=3, *, parts=None, train=None, **metadata):
    parts = parts or _parts()
    metadata = {"method": "test", "parts": {name: NETWORK.to_json() for name in parts}, **metadata}
    return checkpoint.save(
        workdir, step, parts=parts, train=train or _train(), metadata=metadata
    ).wait()


def _assert_equal(found, wanted):
    found, wanted = checkpoint.to_host(found), checkpoint.to_host(wanted)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A workdir with the checkpoints 3 and 4, of different weights. Copy it before any change."""
    workdir = tmp_path_factory.mktemp("two_steps")
    _save(workdir, 3, parts=_parts(0))
    _save(workdir, 4, parts=_parts(1))
    return workdir


def test_restore_returns_what_was_saved_bit_by_bit(tmp_path):
    parts, train = _parts(5), _train(5)
    path = _save(tmp_path, parts=parts, train=train)
    shapes = jax.eval_shape(lambda: (parts, train))
    for template in ((_parts(6), _train(6)), shapes):
        found = checkpoint.restore(path, parts=template[0], train=template[1])
        _assert_equal(found, (parts, train))
    assert jnp.issubdtype(found[1]["rng"].dtype, jax.dtypes.prng_key)


def test_arrays_on_eight_devices_make_the_same_checkpoint(tmp_path):
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    replicated = jax.device_put(_parts(), NamedSharding(mesh, PartitionSpec()))
    assert len(jax.tree.leaves(replicated)[0].sharding.device_set) == 8
    path = _save(tmp_path / "eight", parts=replicated)
    _assert_equal(checkpoint.load_model(path).variables["params"], _parts()["student"]["params"])


def test_load_model_rebuilds_the_network(tmp_path):
    parts = _parts(2)
    _save(tmp_path, parts=parts)
    loaded = checkpoint.load_model(tmp_path)
    variables = {"params": parts["student"]["params"], **parts["student"]["model_state"]}
    assert "batch_stats" in loaded.variables
    _assert_equal(loaded.variables, variables)
    assert loaded.network == NETWORK
    assert loaded.metadata["step"] == 3
    wanted = NETWORK.apply(variables, IMAGES)
    np.testing.assert_array_equal(loaded.apply(loaded.variables, IMAGES), wanted)


def test_a_workdir_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts, train = _parts(2), _train(2)
    path = _save("runs/one", parts=parts, train=train)
    _assert_equal(checkpoint.restore(path, parts=parts, train=train), (parts, train))
    _assert_equal(checkpoint.load_model("runs/one").variables["params"], parts["student"]["params"])


def test_a_part_is_restored_alone(tmp_path, monkeypatch):
    parts = _parts(0, "student", "generator")
    _save(tmp_path, parts=parts)
    read = []
    orbax = store._orbax()

    def load(path, wanted):
        read.append(orbax.load_checkpointables(path, wanted))
        return read[-1]

    spy = type("Spy", (), {**vars(orbax), "load_checkpointables": staticmethod(load)})
    monkeypatch.setattr(store, "_orbax", lambda: spy)
    loaded = checkpoint.load_model(tmp_path, part="generator")
    _assert_equal(loaded.variables["params"], parts["generator"]["params"])
    [found] = read
    assert found.keys() == {"model"}  # neither optimiser nor key
    left_out = jax.tree.leaves(found["model"]["student"])
    assert left_out and not any(isinstance(leaf, np.ndarray | jax.Array) for leaf in left_out)


def test_of_several_parts_the_first_is_meant_and_unknown_ones_are_refused(tmp_path):
    _save(tmp_path, parts=_parts(1, "student", "generator"))
    _save(tmp_path, parts=_parts(0, "student", "generator"))  # replaces the step
    found = checkpoint.load_model(tmp_path).variables["params"]
    _assert_equal(found, _parts(0)["student"]["params"])
    with pytest.raises(InputError, match="^part: got 'teacher'; .*generator, student"):
        checkpoint.load_model(tmp_path, part="teacher")
    with pytest.raises(InputError, match="^checkpoint: .*step 9"):
        checkpoint.load_model(tmp_path, part="student", step=9)


def test_a_path_without_checkpoint_and_another_format_version_are_refused(tmp_path):
    for make in (lambda path: None, Path.touch):
        make(tmp_path / "run")
        with pytest.raises(InputError, match=f"^checkpoint: got '{tmp_path}/run'"):
            checkpoint.load_model(tmp_path / "run")
    path = _save(tmp_path, note="kept")
    integrity.amend(path, {"format_version": 99})
    assert json.loads((path / "metadata.json").read_text())["note"] == "kept"
    with pytest.raises(InputError, match=r"format version 99; this program reads 1$"):
        checkpoint.load_model(tmp_path)


def test_a_path_may_be_workdir_folder_or_checkpoint(two_steps):
    for path, step in (
        (two_steps, 4),
        (two_steps / "checkpoints", 4),
        (two_steps / "checkpoints" / "3", 3),
    ):
        assert checkpoint.find(path)[1]["step"] == step
    assert checkpoint.find(two_steps, step=3)[1]["step"] == 3
    assert checkpoint.load_model(str(two_steps), step=3).metadata["step"] == 3


# -- damage ------------------------------------------------------------------------------------


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _damages(data: bytes):
    """Ways to damage a file: name, what is left of it (None: nothing, not even a name)."""
    if data:
        yield "emptied", b""
        yield "cut", data[: len(data) // 2]
        yield "one byte short", data[:-1]
        for bit in {0, 4 * len(data) + 3, 8 * len(data) - 1}:
            yield f"bit {bit} flipped", _flip(data, bit)
    yield "one byte long", data + b"\n"


def test_every_damage_of_any_file_is_noticed_and_named(two_steps, tmp_path, caplog, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(two_steps, workdir)
    newest = workdir / "checkpoints" / "4"
    older = checkpoint.load_model(two_steps, step=3).variables
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) > 15
    for path in files:
        whole, name = path.read_bytes(), path.relative_to(newest).as_posix()
        damages = dict(_damages(whole))
        if name != "metadata.json":
            damages["deleted"] = None
        for how, left in damages.items():
            caplog.clear()
            path.unlink() if left is None else path.write_bytes(left)
            found, metadata = checkpoint.find(workdir)
            assert (found.name, metadata["step"]) == ("3", 3), f"{name} {how}"
            [warning] = caplog.messages
            assert f"skipping damaged checkpoint {newest}: {name} " in warning, how
        _assert_equal(checkpoint.load_model(workdir).variables, older)
        with pytest.raises(InputError, match=r"every checkpoint there is damaged \(4\)"):
            checkpoint.load_model(workdir, step=4)
        path.write_bytes(whole)
    gc.collect()  # forgotten asyncio tasks speak up when they are collected
    loud = {record.name for record in caplog.records if record.levelno >= logging.WARNING}
    assert loud == {"distill_core.checkpoint.integrity"}
    caplog.clear()
    assert checkpoint.find(workdir)[1]["step"] == 4
    assert not caplog.messages
    assert capfd.readouterr() == ("", "")


def test_any_flipped_bit_of_the_metadata_is_noticed(tmp_path):
    path = _save(tmp_path, note="ünïcode", values=[0.1, 1e-300, True, None, float("nan")])
    file = path / "metadata.json"
    whole = file.read_bytes()
    bits = np.random.default_rng(0).choice(8 * len(whole), 400, replace=False)
    for bit in bits.tolist():
        file.write_bytes(_flip(whole, bit))
        with pytest.raises(integrity.DamagedError, match=r"^metadata.json (was altered|cannot)"):
            integrity.read_metadata(path)
    file.write_bytes(whole)
    assert integrity.read_metadata(path)["note"] == "ünïcode"


# -- leaves that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_parts", "of_train", "named"),
    [
        ({"other": {"params": {"w": np.zeros(2)}}}, {}, "other/params/w; float64.2."),
        ({}, {"step": jnp.zeros(2, jnp.int32)}, "leaf step is int32.*int32.2."),
        ({}, {"step": jnp.float32(0)}, "leaf step is int32.*float32"),
        ({}, {"rng": jax.random.key(0, impl="rbg")}, "leaf rng is uint32.2.; uint32.4."),
        ({"student": {"params": {}}}, {}, "leaf student/.* has no place"),
    ],
    ids=["missing", "shape", "dtype", "key", "surplus"],
)
def test_a_leaf_that_does_not_fit_is_named(two_steps, of_parts, of_train, named):
    parts, train = {**_parts(), **of_parts}, {**_train(), **of_train}
    with pytest.raises(InputError, match=f"{two_steps}.*{named}"):
        checkpoint.restore(two_steps / "checkpoints" / "3", parts=parts, train=train)


# -- saving, deleting --------------------------------------------------------------------------


def test_a_save_that_fails_says_why_and_leaves_the_older_ones(tmp_path, monkeypatch, capfd):
    before = _save(tmp_path, 3)
    orbax = store._orbax()

    class FullDisk:
        Context = orbax.Context

        @staticmethod
        def save_checkpointables_async(path, tree):
            response = orbax.save_checkpointables_async(path, tree)
            return SimpleNamespace(result=lambda: fail(response))

    def fail(response):
        response.result()
        logging.getLogger("absl").error("a traceback of Orbax")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "_orbax", lambda: FullDisk)
    saving = checkpoint.save(tmp_path, 4, parts=_parts(), train=_train(), metadata={})
    with pytest.raises(checkpoint.CheckpointError) as failed:
        saving.wait()
    assert str(failed.value) == (
        f"could not write checkpoint {tmp_path}/checkpoints/4: No space left on device; "
        "earlier checkpoints are intact"
    )
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert integrity.read_metadata(before)["step"] == 3
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("absl").disabled


def test_an_interrupted_save_counts_for_nothing(two_steps, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    shutil.copytree(folder / "4", folder / "5")
    (folder / "5" / "metadata.json").unlink()
    (folder / "6.orbax-checkpoint-tmp").mkdir()
    (folder / "2.damaged").mkdir()
    (folder / "notes").mkdir()
    assert checkpoint.steps(tmp_path) == [3, 4]
    assert checkpoint.find(tmp_path)[1]["step"] == 4
    checkpoint.remove_unfinished(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["2.damaged", "3", "4", "notes"]


def test_an_interrupted_deletion_counts_for_nothing(two_steps, tmp_path, monkeypatch):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    path = next(iter(checkpoint.find(tmp_path, step=3)))
    with monkeypatch.context() as patch:
        patch.setattr(
            type(path), "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            checkpoint.prune(tmp_path, {4})
    assert checkpoint.steps(tmp_path) == [4]
    checkpoint.remove_unfinished(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_digest_is_of_names_and_contents():
    tree = {"a": np.arange(4, dtype=np.float32), "b": np.float32(1)}
    digests = [
        checkpoint.digest(changed)
        for changed in (
            tree,
            {**tree, "a": np.arange(4, dtype=np.int32)},
            {**tree, "a": tree["a"].reshape(2, 2)},
            {**tree, "a": tree["a"] + np.float32(1e-6)},
            {"c": tree["a"], "b": tree["b"]},
        )
    ]
    assert len(set(digests)) == len(digests)
    assert checkpoint.digest(jax.device_put(tree)) == digests[0]


def test_write_atomically_leaves_the_old_text_when_the_disk_is_full(tmp_path, monkeypatch):
    path = integrity.epath.Path(tmp_path / "card.json")
    integrity.write_atomically(path, "old")

    def half(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(type(path), "write_bytes", half)
        integrity.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]
