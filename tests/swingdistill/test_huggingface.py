"""A student of a Hugging Face directory: over its tokens, without its padding, and back again."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from distill_core import checkpoint, release
from distill_core.config import InputError
from distill_core.runtime import config_file
from swingdistill import train

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "distill_core" / "models" / "foreign"))
import directories

_SIZES = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "width": 16, "mlp_width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher's directory and, beside it, text."""
    at = tmp_path_factory.mktemp("huggingface")
    settings = directories.config_of("llama")
    directories.write(at / "teacher", settings, directories.tensors_of(settings))
    (at / "lines.txt").write_text("\n".join(directories.LINES[:60]))
    return at


def _run(folder, workdir, **changes):
    given = {
        "dataset": f"text:{folder / 'lines.txt'}",
        "length": 40,
        "model": "decoder",
        "model_kwargs": _SIZES,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "batch_size": 8,
        "num_steps": 3,
        "scorers": ("rules",),
        **changes,
    }
    train.train_and_evaluate(given, workdir)
    return checkpoint.load_model(workdir)


def test_a_run_of_no_steps_gives_the_weights_back_bit_by_bit(folder, tmp_path):
    start = {"model": "init_from", "model_kwargs": {}, "init_from": str(folder / "teacher")}
    loaded = _run(folder, tmp_path / "run", num_steps=0, **start)
    first = checkpoint.load_model(folder / "teacher")
    assert jax.tree.all(jax.tree.map(np.array_equal, first.variables, loaded.variables))
    assert (loaded.network.max_length, loaded.network.num_tokens) == (64, 300)
    release.release(tmp_path / "run", tmp_path / "out", format="hf")
    before, after = (
        load_file(path / "model.safetensors") for path in (folder / "teacher", tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_student_learns_over_the_tokens_of_a_teacher_with_padding(folder, tmp_path):
    teacher = str(folder / "teacher")
    student = _run(folder, tmp_path / "run", teacher=teacher, init_from=None)
    assert student.network.num_classes == student.tokenizer.vocab_size == 300
    release.release(tmp_path / "run", tmp_path / "out", format="hf")
    again = checkpoint.load_model(tmp_path / "out")
    tokens = np.arange(20, dtype=np.int32)[None]
    same = student.apply(student.variables, tokens) == again.apply(again.variables, tokens)
    assert np.all(same)
    assert "decoder" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("from_teacher", [True, False])
def test_a_student_keeps_the_chat_template_and_all_ends_of_the_tokenizers_source(
    folder, tmp_path, capsys, from_teacher
):
    source = tmp_path / "source"
    shutil.copytree(folder / "teacher", source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages[0]['content'] }}{{ eos_token }}"
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 260]}))
    start = {"model": "init_from", "model_kwargs": {}, "init_from": str(source)}
    _run(folder, tmp_path / "run", **({"teacher": str(source)} if from_teacher else start))
    told = "its chat template is not used; text is taken as it stands"
    assert (told in capsys.readouterr().out) == from_teacher
    release.release(tmp_path / "run", tmp_path / "out", format="hf")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["chat_template"] == settings["chat_template"]
    for name in ("generation_config.json", "config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [1, 260]


def test_added_tokens_may_differ_where_the_text_holds_none_of_them(folder, tmp_path):
    other = tmp_path / "reference"
    settings = directories.config_of("llama")
    directories.write(other, settings, directories.tensors_of(settings))
    directories.byte_pairs(added=("<|tool|>",)).save(str(other / "tokenizer.json"))
    models = {"teacher": str(folder / "teacher"), "reference": str(other)}
    _run(folder, tmp_path / "run", **models, variant="anchored", scorers=("divergence",))
    (tmp_path / "lines.txt").write_text("\n".join(["a <|tool|> call", *directories.LINES[:60]]))
    with pytest.raises(InputError, match=r"holds the token '<\|tool\|>' \(300\)") as caught:
        _run(tmp_path, tmp_path / "more", **models, tokenizer=str(other), scorers=("divergence",))
    assert caught.value.field == "dataset"


def test_tokenizers_that_differ_are_refused_with_the_first_token_that_does(folder, tmp_path):
    other = tmp_path / "reference"
    settings = directories.config_of("llama")
    directories.write(other, settings, directories.tensors_of(settings))
    table = json.loads((other / "tokenizer.json").read_text())
    vocab = table["model"]["vocab"]
    names = {i: token for token, i in vocab.items()}
    vocab[names[40]], vocab[names[41]] = 41, 40
    (other / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(InputError) as caught:
        _run(folder, tmp_path / "run", teacher=str(folder / "teacher"), reference=str(other))
    assert caught.value.field == "reference"
    assert f"token 40 is {names[41]!r} and {names[40]!r}" in str(caught.value)
    assert "tokenizer=" in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "init_from", "model_kwargs": {}}, "model: .*needs init_from"),
        ({"model": "init_from", "init_from": "TEACHER"}, "model: .*no model_kwargs"),
        ({"model_kwargs": {"num_kv_heads": 3}}, "num_kv_heads: got 3; must divide 4"),
        ({"model_kwargs": {"rope_scaling": {"type": "wave"}}}, "rope_scaling: .*must be one of"),
        ({"init_from": "TEACHER", "tokenizer": "TEACHER"}, "init_from: .*needed"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(folder, tmp_path, changes, says):
    teacher = str(folder / "teacher")
    given = {k: teacher if v == "TEACHER" else v for k, v in changes.items()}
    with pytest.raises(InputError, match=says):
        _run(folder, tmp_path / "run", **given)


def test_the_worked_example_distils_a_directory_on_json_lines_with_spans(folder, tmp_path, capsys):
    items = []
    for line in directories.LINES[:60]:
        start = line.index("555-")
        items.append(json.dumps({"text": line, "spans": [[start, start + 8, 0.9, "telephone"]]}))
    (tmp_path / "private.jsonl").write_text("\n".join(items))
    given = [
        ("teacher", str(folder / "teacher")),
        ("dataset", f"jsonl:{tmp_path / 'private.jsonl'}"),
    ]
    path = pathlib.Path(__file__).parents[2] / "configs" / "swingdistill" / "huggingface.py"
    settings = config_file.read(f"{path}:smoke", given, train.Settings)
    train.train_and_evaluate(settings, tmp_path / "run")
    assert "private by spans and rules" in capsys.readouterr().out
    student = checkpoint.load_model(tmp_path / "run").network
    assert student.model == "decoder" and student.model_kwargs["num_layers"] == 1
    assert student.model_kwargs["num_kv_heads"] == 2, "all else is the teacher's"
    release.release(tmp_path / "run", tmp_path / "out", format="hf")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
