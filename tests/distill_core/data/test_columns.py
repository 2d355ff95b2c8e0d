"""Arrays larger than memory: what is written is read, whole or after an interruption."""

import pickle

import numpy as np
import pytest

from distill_core.data import columns

VALUES = np.arange(70, dtype=np.float32).reshape(10, 7)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(columns, "_SHARD_BYTES", 3 * 7 * 4)  # three rows


def write(folder, values=VALUES, about=None):
    writer = columns.Writer(folder, values.shape[1:], values.dtype)
    writer.append(values[writer.start :])
    return writer.finish(about or {})


def test_rows_are_read_by_index_as_of_an_array(tmp_path):
    column = write(tmp_path / "a", about={"what": "numbers"})
    assert (column.shape, column.dtype, len(column)) == ((10, 7), np.float32, 10)
    assert column.about == {"what": "numbers"}
    for index in (slice(None), slice(2, 9, 3), slice(-2, None), np.array([9, 0, 3, 3, 8]), 4, []):
        index = np.array(index, int) if isinstance(index, list) else index
        np.testing.assert_array_equal(column[index], VALUES[index])
    index = np.array([[1, 2], [8, 1]])
    assert column[index].shape == (2, 2, 7)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(column))[index], VALUES[index])
    for wrong in (10, -1, np.array([3, 12])):
        with pytest.raises(IndexError, match="of 10"):
            column[wrong]


def test_no_more_shards_are_open_than_a_process_may_open(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_OPEN", 2)
    column = write(tmp_path / "a")
    for _ in range(3):
        np.testing.assert_array_equal(column[::-1], VALUES[::-1])
        assert len(column._readers) <= 2


def test_fields_of_a_row_are_read_together(tmp_path, monkeypatch):
    kind = np.dtype([("token", "<i4", (7,)), ("weight", "<f4", (7,)), ("known", "|b1", (7,))])
    records = np.zeros(10, kind)
    records["token"], records["weight"], records["known"] = VALUES, VALUES / 2, VALUES > 9
    column = write(tmp_path / "a", records)
    reads, read = [], columns.Column._reader
    monkeypatch.setattr(columns.Column, "_reader", lambda *a: reads.append(a[1]) or read(*a))
    fields, index = column.fields(), np.array([9, 0, 4])
    for name, field in fields.items():
        assert (field.shape, field.dtype) == ((10, 7), records[name].dtype)
        np.testing.assert_array_equal(field[index], records[name][index])
    assert len(fields) == 3
    assert len(reads) == len(set(reads)), "each shard is asked once, for all fields"


def test_a_writer_goes_on_after_the_last_whole_shard(tmp_path):
    writer = columns.Writer(tmp_path / "a", (7,), np.float32)
    writer.append(VALUES[:8])  # killed here: two shards are whole, two rows are lost
    assert not columns.is_whole(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        columns.Column(tmp_path / "a")
    again = columns.Writer(tmp_path / "a", (7,), np.float32)
    assert again.start == 6
    np.testing.assert_array_equal(list(again.last_rows()), VALUES[5::-1])
    again.append(VALUES[6:])
    np.testing.assert_array_equal(again.finish({})[:], VALUES)


@pytest.mark.parametrize("count", [0, 3, 4])
def test_the_last_shard_may_be_full_short_or_missing(tmp_path, count):
    column = write(tmp_path / "a", VALUES[:count])
    assert column[:].shape == (count, 7)
    np.testing.assert_array_equal(column[:], VALUES[:count])


def test_a_column_is_written_once(tmp_path):
    starts = []

    def make(writer):
        starts.append(writer.start)
        writer.append(VALUES[writer.start :])
        return {}

    for _ in range(2):
        column = columns.once(tmp_path / "private" / "a", (7,), np.float32, make)
        np.testing.assert_array_equal(column[:], VALUES)
    assert starts == [0]
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700


def test_what_is_derived_is_computed_of_the_rows_asked_for(tmp_path):
    column = write(tmp_path / "a")
    both = columns.derived(np.add, column, VALUES)
    assert (both.shape, len(both)) == ((10, 7), 10)
    np.testing.assert_array_equal(both[np.array([7, 2])], 2 * VALUES[[7, 2]])
    np.testing.assert_array_equal(columns.derived(np.add, VALUES, VALUES), 2 * VALUES)
    chunks = list(columns.in_chunks({"a": column, "b": VALUES}, ("a", "b"), 4))
    assert [len(chunk["a"]) for chunk in chunks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([chunk["a"] for chunk in chunks]), VALUES)


def test_rows_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match="^rows: "):
        columns.Writer(tmp_path / "a", (7,), np.float32).append(np.zeros((2, 6)))


def test_a_damaged_or_missing_shard_is_told_in_one_line(tmp_path):
    """With the directory's name, so that it can be deleted and written again."""
    column = columns.Writer(tmp_path / "c", (4,), np.int32)
    column.append(np.arange(40, dtype=np.int32).reshape(10, 4))
    column.finish({})
    shard = tmp_path / "c" / "00000.array_record"
    whole = shard.read_bytes()
    for left in (whole[: len(whole) // 2], None):
        shard.write_bytes(left) if left is not None else shard.unlink()
        with pytest.raises(OSError, match="is damaged; delete it") as raised:
            columns.Column(tmp_path / "c")[np.arange(10)]
        assert raised.value.filename == str(tmp_path / "c")
