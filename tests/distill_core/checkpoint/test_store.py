"""Checkpoints: what is written comes back, what is damaged is noticed, what misses is named."""

import errno
import gc
import json
import logging
import os
import shutil
import threading
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
from distill_core.runtime import parallel

NETWORK = Network(
    "cnn", 3, {"widths": (2,), "hidden": 4}, (4, 4, 1), (0.5,), (0.25,), ("a", "b", "c")
)
NO_TRAIN = {"step": np.int32(0)}
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
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    replicated = jax.device_put(_parts(), NamedSharding(mesh, PartitionSpec()))
    assert len(jax.tree.leaves(replicated)[0].sharding.device_set) == 8
    path = _save(tmp_path / "eight", parts=replicated)
    _assert_equal(checkpoint.load_model(path).variables["params"], _parts()["student"]["params"])


# -- many devices ------------------------------------------------------------------------------


def _sharding(count: int, *spec) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(jax.devices()[:count]), ("data",)), PartitionSpec(*spec))


def _large(count: int, rows: int = 16):
    """Parts and train of a state that is sharded over so many devices, but for key and step."""
    values = np.arange(rows * 6, dtype=np.float32).reshape(rows, 6)
    w, mu = (jax.device_put(values + i, _sharding(count, "data")) for i in (0, 0.5))
    key = jax.device_put(jax.random.key(3), _sharding(count))
    step = jax.device_put(jnp.int32(7), _sharding(count))
    return {"model": {"params": {"w": w}, "model_state": {}}}, {"mu": mu, "rng": key, "step": step}


@pytest.mark.parametrize("count", [8, 2, 1], ids=["eight", "two", "one"])
def test_a_sharded_state_is_restored_onto_any_mesh(tmp_path, count):
    parts, train = _large(8)
    path = checkpoint.save(tmp_path, 1, parts=parts, train=train, metadata={}).wait()
    target = _large(count)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target
    )
    for wanted in (target, shapes):
        found = checkpoint.restore(path, parts=wanted[0], train=wanted[1])
        _assert_equal(found, (parts, train))
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
            assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)
    parts_only, train_only = jax.eval_shape(lambda: target)  # without places
    found = checkpoint.restore(path, parts=parts_only, train=train_only)
    assert isinstance(found[0]["model"]["params"]["w"], np.ndarray)
    _assert_equal(found, (parts, train))


def test_every_shard_of_eight_is_written_once(tmp_path):
    """Two arrays of equal contents, one in shards and one replicated, take the same space."""
    values = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    sizes = []
    for i, spec in enumerate((("data",), ())):
        array = jax.device_put(values, _sharding(8, *spec))
        parts = {"model": {"params": {"w": array}, "model_state": {}}}
        path = checkpoint.save(tmp_path, i, parts=parts, train=NO_TRAIN, metadata={}).wait()
        sizes.append(sum(file.stat().st_size for file in Path(path).rglob("d/*")))
    assert 0.8 * values.nbytes < min(sizes) <= max(sizes) < 1.1 * values.nbytes


def test_a_shard_is_read_without_the_rest_of_its_array(tmp_path, monkeypatch):
    """Even of an array that was written whole: it is stored in chunks."""
    monkeypatch.setattr(store, "_CHUNK_BYTES", 1 << 16)
    values = np.random.default_rng(0).normal(size=(1024, 256)).astype(np.float32)
    parts = {"model": {"params": {"w": jnp.asarray(values)}, "model_state": {}}}
    path = checkpoint.save(tmp_path, 1, parts=parts, train=NO_TRAIN, metadata={}).wait()
    [stored] = jax.tree.leaves(store._orbax().metadata(path, "model").metadata)
    assert np.prod(stored.storage_metadata.chunk_shape) * 4 <= 1 << 16


def test_load_model_places_its_variables(tmp_path):
    parts = _parts(2, "student", "generator")
    _save(tmp_path, parts=parts)
    wanted = {"params": parts["generator"]["params"], **parts["generator"]["model_state"]}

    def by_rows(shapes):
        """Kernels of eight columns over eight devices; all else everywhere."""
        split = lambda x: x.ndim == 2 and x.shape[0] % 8 == 0  # noqa: E731
        return jax.tree.map(lambda x: _sharding(8, *["data"] * split(x)), shapes)

    for sharding in (by_rows, _sharding(4)):
        loaded = checkpoint.load_model(tmp_path, part="generator", sharding=sharding)
        _assert_equal(loaded.variables, wanted)
        expected = by_rows(wanted) if sharding is by_rows else None
        for name, leaf in checkpoint.by_name(loaded.variables).items():
            where = checkpoint.by_name(expected)[name] if expected else sharding
            assert leaf.sharding == where
    split = [x for x in jax.tree.leaves(by_rows(wanted)) if x.spec == PartitionSpec("data")]
    assert split  # some leaf is not replicated
    np.testing.assert_allclose(
        loaded.apply(loaded.variables, IMAGES), NETWORK.apply(wanted, IMAGES), rtol=1e-5
    )


@pytest.mark.parametrize("sharding", [None, "eight"])
def test_a_network_that_is_not_finite_is_refused_wherever_it_lies(tmp_path, sharding):
    parts = _parts(2)
    parts["student"]["params"]["Dense_0"]["bias"] = jnp.full(4, jnp.nan)
    _save(tmp_path, parts=parts)
    with pytest.raises(InputError, match="leaf params/Dense_0/bias holds NaN or infinity"):
        checkpoint.load_model(tmp_path, sharding=sharding and _sharding(8))


def test_leaves_that_are_not_finite_are_named_in_order():
    tree = {
        "a": np.array([0.0, np.inf]),
        "b": jnp.array([jnp.nan], jnp.bfloat16),
        "c": jax.device_put(np.ones(8, np.float32), _sharding(8, "data")),
        "d": np.array([1, 2]),
        "e": jax.device_put(np.full(8, -np.inf, np.float32), _sharding(8, "data")),
    }
    assert checkpoint.not_finite(tree) == ["a", "b", "e"]
    assert checkpoint.not_finite({"c": tree["c"], "d": tree["d"]}) == []


# -- in the background -------------------------------------------------------------------------


@pytest.fixture
def slow_orbax(monkeypatch):
    """Holds the writer back until it is released; returns (release, begun)."""
    from orbax.checkpoint._src.serialization import jax_array_handlers

    release, begun = threading.Event(), threading.Event()
    write = jax_array_handlers._async_serialize_replica_slices

    async def held(*args, **kwargs):
        begun.set()
        release.wait(60)
        return await write(*args, **kwargs)

    monkeypatch.setattr(jax_array_handlers, "_async_serialize_replica_slices", held)
    yield release, begun
    release.set()


@pytest.mark.parametrize("mode", ["jit", "pmap", "shard_map", "mesh"])
def test_a_step_that_donates_the_state_does_not_change_what_is_being_written(
    tmp_path, slow_orbax, mode
):
    release, begun = slow_orbax
    step = parallel.wrap(_add_one, mode, donate=True)
    values = np.arange(1 << 16, dtype=np.float32)  # small arrays might lie elsewhere
    state = parallel.place({"w": values}, mode)
    batch = np.zeros((8, 2), np.float32)
    state, _ = step(state, {}, parallel.feed(batch, mode))  # an output of a step, as in a run
    parts = {"model": {"params": state, "model_state": {}}}
    saving = checkpoint.save(tmp_path, 1, parts=parts, train=NO_TRAIN, metadata={})
    assert begun.wait(60)
    for _ in range(3):
        state, _ = step(state, {}, parallel.feed(batch, mode))
    assert checkpoint.steps(tmp_path) == []
    release.set()
    path = saving.wait()
    target = {"model": {"params": {"w": values}, "model_state": {}}}
    found, _ = checkpoint.restore(path, parts=target, train=NO_TRAIN)
    np.testing.assert_array_equal(found["model"]["params"]["w"], values + 1)
    np.testing.assert_array_equal(np.asarray(state["w"].addressable_data(0)), values + 4)


def _add_one(state, frozen, batch):
    return {"w": state["w"] + 1 + 0 * batch.sum()}, {}


def test_metadata_is_that_of_the_moment_of_the_save(tmp_path, slow_orbax):
    pending, (release, begun) = [1], slow_orbax
    metadata = {"pending": pending}
    saving = checkpoint.save(tmp_path, 1, parts=_parts(), train=_train(), metadata=metadata)
    assert begun.wait(60)
    pending.append(2)
    release.set()
    assert integrity.read_metadata(saving.wait())["pending"] == [1]


def test_a_save_waits_for_the_one_before(tmp_path, slow_orbax):
    release, begun = slow_orbax
    first = checkpoint.save(tmp_path, 1, parts=_parts(), train=_train(), metadata={})
    assert begun.wait(60)
    done = []
    second = threading.Thread(target=lambda: done.append(_save(tmp_path, 2)))
    second.start()
    second.join(0.2)
    assert not done and checkpoint.steps(tmp_path) == []
    release.set()
    first.wait()
    second.join()
    assert done and checkpoint.steps(tmp_path) == [1, 2]


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
        if name.startswith("train/"):  # is not read for the model
            assert checkpoint.load_model(workdir).metadata["step"] == 4
        else:
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
