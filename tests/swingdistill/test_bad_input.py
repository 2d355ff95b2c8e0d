"""What a user gets wrong costs one line on stderr and exit code 2, before anything is written."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from distill_core import checkpoint
from distill_core.checkpoint import integrity
from distill_core.data.text.tokenizers import SPECIALS
from distill_core.models.network import Network
from distill_core.runtime import cli
from swingdistill import evaluate, train
from swingdistill.experiment import comparison as experiment

CONFIG = """
from ml_collections import config_dict

def get_config(arg=""):
    return config_dict.ConfigDict({settings!r}).lock()
"""


def run(binary, *arguments):
    if binary is evaluate:
        return cli.exit_code(evaluate.main, arguments)
    begin = experiment.run if binary is experiment else train.train_and_evaluate
    return cli.exit_code(lambda argv: cli.run_training(begin, binary.Settings, argv), arguments)


def save(path, network, params):
    """A checkpoint of some network, without a run."""
    metadata = {
        "method": "test",
        "parts": {"model": network.to_json()},
        "config": {},
        "data_note": "",
        "ledger": {"mechanisms": [], "ancestors": []},
    }
    parts = {"model": {"params": params, "model_state": {}}}
    checkpoint.save(path, 0, parts=parts, train={"step": np.int32(0)}, metadata=metadata).wait()


def digits_together():
    """Byte pairs that take several digits for one token."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=SPECIALS[1]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=list(SPECIALS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["281 281 281 00 11"] * 9, trainer)
    return inner


def gpt2(*, vocab=300, last=16):
    """Tensors of a GPT-2 of one layer, 16 wide; `last` is the width of its last bias."""
    shapes = {"wte.weight": (vocab, 16), "wpe.weight": (16, 16), "ln_f.weight": (16,)}
    for name, outputs in (("attn.c_attn", 48), ("attn.c_proj", 16), ("mlp.c_fc", 64)):
        shapes |= {f"h.0.{name}.weight": (16, outputs), f"h.0.{name}.bias": (outputs,)}
    shapes |= {"h.0.mlp.c_proj.weight": (64, 16), "h.0.mlp.c_proj.bias": (16,)}
    for name in ("ln_1", "ln_2"):
        shapes |= {f"h.0.{name}.weight": (16,), f"h.0.{name}.bias": (16,)}
    shapes["ln_f.bias"] = (last,)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


JSON_LINES = {
    "no_json": "the cat",
    "no_object": "[]",
    "no_text": '{"label": "b"}',
    "empty_text": '{"text": "", "label": "b"}',
    "unlabelled": '{"text": "the dog"}',
    "outside": '{"text": "the dog", "label": "b", "spans": [[4, 8]]}',
    "backwards": '{"text": "the dog", "label": "b", "spans": [[4, 2]]}',
    "too_sure": '{"text": "the dog", "label": "b", "spans": [[4, 7, 2]]}',
    "at_odds": '{"text": "the dog", "label": "b", "spans": [[0, 5, 0.5], [4, 7]]}',
    "planted": '{"text": "the dog", "label": "b", "spans": [[4, 7, 1, "canary"]]}',
}
SPANS = {
    "fine": '{"line": 2, "spans": []}',
    "no_json": "the cat",
    "no_line": '{"spans": [[0, 1]]}',
    "beyond": '{"line": 61, "spans": [[0, 1]]}',
    "outside": '{"line": 2, "spans": [[0, 999]]}',
    "other_text": '{"line": 2, "spans": [], "text": "the cats"}',
}


@pytest.fixture(scope="module")
def place(folder, settings, teacher, untrained, tmp_path_factory):
    """A folder with configs, and with texts and checkpoints that do not fit."""
    place = tmp_path_factory.mktemp("place")
    given = settings()
    (place / "config.py").write_text(CONFIG.format(settings=given))
    network = ("model", "model_kwargs", "learning_rate", "num_steps", "batch_size", "optimizer")
    compared = {**given, "seeds": (1,), "student": {name: given[name] for name in network}}
    (place / "experiment.py").write_text(CONFIG.format(settings=compared))
    for name, split, content in (
        ("empty", "train", b" \n"),
        ("latin", "valid", b"good\nna\xefve\n"),
    ):
        shutil.copytree(folder, place / name, ignore=shutil.ignore_patterns("labelled"))
        (place / name / f"{split}.txt").write_bytes(content)
    shutil.copytree(folder, place / "two", ignore=shutil.ignore_patterns("labelled", "valid*"))
    fine = json.dumps({"text": "the cat sat", "label": "a", "spans": [[4, 7]]})
    for name, line in JSON_LINES.items():
        (place / f"{name}.jsonl").write_text("\n".join([*[fine] * 29, line, *[fine] * 9]))
    for name, line in SPANS.items():
        (place / f"{name}.spans").write_text(f'{{"line": 1, "spans": [[0, 1]]}}\n{line}')
    (place / "spans").mkdir()
    (place / "spans" / "test").write_text(SPANS["outside"])
    many = "\n".join(f"{i % 11}\tthe cat" for i in range(40))
    (place / "eleven.tsv").write_text(many)

    untrained(place / "fewer", 6, vocab_size=20)
    shutil.copytree(teacher, place / "future")
    integrity.amend(place / "future" / "checkpoints" / "0", {"format_version": 99})
    kwargs = {"widths": (4,), "hidden": 8, "norm": "none"}
    image = Network("cnn", 3, kwargs, (8, 8, 1), (0.5,), (0.5,), ("a", "b", "c"))
    shapes = image.shapes()["params"]
    save(place / "image", image, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    for name, content in (
        ("one_name", b"Ann\n"),
        ("two_names", b"Ann\nBo\n"),
        ("names", b"Ann\nBo\nEve\n"),
        ("same_names", b"Ann\nBo\nAnn\n"),
        ("latin_names", b"Ann\nZo\xeb\n"),
        ("none.jsonl", b"\n"),
        ("text.jsonl", b'{"secret": "281"}\n{"secret"'),
        ("list.jsonl", b'["281"]'),
        ("empty.jsonl", b'{"prefix": "my id is ", "secret": ""}'),
        ("number.jsonl", b'{"prefix": "my id is ", "secret": 281}'),
        ("key.jsonl", b'{"prefx": "my id is ", "secret": "281"}'),
        ("name.jsonl", b'{"prefix": "my id is ", "secret": "Ann"}'),
        (
            "long.jsonl",
            b'{"prefix": "the the the the the the the the the the the ", "secret": "281281"}',
        ),
        ("many_digits.jsonl", b'{"secret": "1234567890123456789"}'),
        ("unknown.jsonl", b'{"prefix": "zebra ", "secret": "281"}'),
        ("digits.jsonl", b'{"prefix": "my id is ", "secret": "281"}'),
    ):
        (place / name).write_bytes(content)

    for name, tensors in (
        ("bert", {"bert.embeddings.weight": np.zeros((4, 4), np.float32)}),
        ("wide", gpt2(last=17)),
        ("silent", gpt2()),
    ):
        (place / name).mkdir()
        save_file(tensors, place / name / "model.safetensors")
        (place / name / "config.json").write_text(json.dumps({"n_head": 2}))
    return place


TEACHER = ["--config.teacher={teacher}"]
BOTH = [*TEACHER, "--config.reference={reference}"]
ALONE = ["--config.scorers=()"]  # needs no reference
RULES = [*TEACHER, "--config.scorers=('rules',)"]
GENERATION = ["--config.task=generation", "--config.canaries_per_level=0"]
TEXTS = ("no", "empty", "latin", "two")
SPLITS = ("train", "valid", "test")
LISTS = ("", "/no", "/one_name", "/same_names", "/latin_names")  # of candidates
TOKENIZERS = ("no", "config.py", "image", "merges.json")
CLASSIFICATION = "--config.task=classification"


def wrong(field, *arguments, binary=train):
    said = " ".join(a.removeprefix("--config.") for a in arguments)
    return pytest.param(field, binary, arguments, id=said[:70])


def alone(field, name):
    """A checkpoint in the folder that is none for this field."""
    return wrong(field, *ALONE, f"--config.{field}={{place}}{name}")


CASES = [
    # names and types
    wrong("alpah", "--config.alpah=1"),
    wrong("task", "--config.task=translation"),
    wrong("scorers", "--config.scorers=('ruels',)"),
    wrong("alpha", "--config.alpha=1.1"),
    wrong("batch_size", "--config.batch_size=12"),
    wrong("half", "--config.half=third"),
    # what only a student has
    wrong("epsilon", "--config.epsilon=1", "--config.entries=5"),
    wrong("variant", "--config.variant=anchored"),
    # networks
    wrong("model", "--config.model=gpt5"),
    wrong("model", "--config.model=cnn"),
    wrong("model_kwargs", "--config.model_kwargs.num_heads=3"),
    wrong("model_kwargs.max_length", "--config.model_kwargs.max_length=8"),
    # text
    wrong("dataset", "--config.dataset=wikitext"),
    *(wrong("dataset", f"--config.dataset=text:{{place}}/{n}") for n in TEXTS),
    *(wrong("dataset", f"--config.dataset=jsonl:{{place}}/{n}.jsonl") for n in JSON_LINES),
    *(wrong("spans", f"--config.spans={{place}}/{n}.spans") for n in SPANS if n != "fine"),
    wrong("spans", "--config.spans={place}/none.spans"),
    wrong("spans", "--config.spans={place}/spans"),
    wrong("spans", "--config.spans={place}/fine.spans", "--config.dataset=records"),
    wrong("length", *GENERATION, "--config.dataset=records", "--config.length=8"),
    wrong(
        "length",
        CLASSIFICATION,
        "--config.dataset=tsv:{labelled}",
        "--config.length=3",
        "--config.canaries_per_level=0",
    ),
    wrong("task", CLASSIFICATION, "--config.canaries_per_level=0"),
    wrong("task", CLASSIFICATION),
    wrong("task", CLASSIFICATION, "--config.dataset=tsv:{place}/eleven.tsv"),
    # tokenizers
    *(wrong("tokenizer", f"--config.tokenizer={{place}}/{name}") for name in TOKENIZERS),
    wrong("vocab_size", "--config.tokenizer=byte_pairs"),
    # canaries
    wrong("canaries_per_level", "--config.canary_digits=1", "--config.canaries_per_level=24"),
    wrong("canary_levels", "--config.canary_levels=(3,3)"),
    wrong("canary_format", "--config.canary_format=secret"),
    *(wrong("canary_candidates", f"--config.canary_candidates={{place}}{n}") for n in LISTS),
    wrong("canaries_per_level", "--config.canary_candidates={place}/two_names"),
    wrong(
        "num_decoys",
        "--config.transfer_set=decoy",
        "--config.canary_candidates={place}/two_names",
        "--config.canaries_per_level=1",
    ),
    wrong(  # neither word is in the text that the vocabulary is made of
        "tokenizer",
        "--config.canary_candidates={place}/names",
        "--config.canaries_per_level=1",
    ),
    wrong("length", "--config.length=8"),
    wrong(
        "num_decoys",
        "--config.transfer_set=decoy",
        "--config.canary_digits=1",
        "--config.canaries_per_level=5",
    ),
    # teachers and references
    *(alone("teacher", name) for name in ("", "/no", "/future", "/image")),
    *(alone("teacher", f"/{name}/model.safetensors") for name in ("bert", "wide", "silent")),
    wrong("teacher", *ALONE, "--config.teacher={place}/fewer", "--config.tokenizer={teacher}"),
    wrong("reference", *TEACHER, "--config.reference={place}/fewer"),
    wrong("reference", *TEACHER, "--config.reference={place}/image"),
    wrong("length", *BOTH, "--config.length=17"),
    wrong("init_from", "--config.init_from={place}/fewer"),
    # the method
    wrong("reference", *TEACHER),
    wrong("reference", *RULES, "--config.variant=anchored"),
    wrong("t_max", "--config.t_min=20"),
    wrong("quantiles", "--config.quantiles=0.9,0.5"),
    wrong("quantiles", "--config.quantiles=(0.9,)"),
    wrong("entries", *BOTH, "--config.epsilon=2"),
    wrong("entries", *BOTH, "--config.entries=1000"),
    wrong("scorers", *TEACHER, "--config.scorers=('oracle',)", "--config.canaries_per_level=0"),
    wrong("scorers", *TEACHER, "--config.scorers=('spans',)"),
    wrong("expressions", *RULES, "--config.expressions=('(',)"),
    wrong("expressions", "--config.expressions=('(',)"),
    # the comparison
    wrong("dataset", "--config.dataset=text:{place}/empty", binary=experiment),
    wrong("student.t_max", "--config.student.t_max=20", binary=experiment),
]


@pytest.mark.parametrize(("field", "binary", "arguments"), CASES)
def test_wrong_input_costs_one_line_and_leaves_no_workdir(
    place, folder, teacher, reference, tmp_path, capsys, field, binary, arguments
):
    names = {"place": place, "teacher": teacher, "reference": reference}
    names["labelled"] = folder / "labelled"
    given = [argument.format(**names) for argument in arguments]
    config = place / ("experiment.py" if binary is experiment else "config.py")
    capsys.readouterr()
    code = run(binary, f"--config={config}", f"--workdir={tmp_path}/run", *given)
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {field}: got ")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


OWN = ["--checkpoint={teacher}", "--secrets={place}/digits.jsonl"]


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("checkpoint", []),
        *(
            ("checkpoint", [f"--checkpoint={{place}}{name}"])
            for name in ("", "/no", "/future", "/image", "/silent/model.safetensors")
        ),
        ("canaries", ["--checkpoint={teacher}", "--canaries={place}/no"]),
        ("canaries", ["--checkpoint={teacher}", "--canaries={place}/image"]),
        *(
            ("secrets", ["--checkpoint={teacher}", f"--secrets={{place}}/{name}.jsonl"])
            for name in (
                *("no", "none", "text", "list", "empty", "number", "key", "name", "long"),
                *("many_digits", "unknown"),
            )
        ),
        *(
            ("candidates", [*OWN, f"--candidates={{place}}/{name}"])
            for name in ("no", "one_name", "same_names", "latin_names")
        ),
        ("candidates", ["--checkpoint={teacher}", "--candidates={place}/names"]),
        ("tokenizer", [*OWN, "--candidates={place}/names"]),
        ("num_samples", [*OWN, "--estimator=sampled", "--num_samples=0"]),
        ("checkpoint", ["--checkpoint={place}/image", "--secrets={place}/digits.jsonl"]),
        ("estimator", ["--checkpoint={teacher}", "--estimator=exakt"]),
        ("num_samples", ["--checkpoint={teacher}", "--estimator=sampled", "--num_samples=0"]),
        ("chekpoint", ["--chekpoint=x"]),
    ],
)
def test_wrong_input_of_evaluate_costs_one_line(place, teacher, capsys, field, arguments):
    names = {"place": place, "teacher": teacher}
    capsys.readouterr()
    assert run(evaluate, *(argument.format(**names) for argument in arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {field}: got ")


def test_a_run_is_not_resumed_under_other_settings(settings, place, tmp_path, monkeypatch, capsys):
    """Nor on other text, teachers or secrets; and a refusal changes nothing."""
    train.train_and_evaluate(settings(), tmp_path / "run")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    same = [f"--config={place}/config.py", f"--workdir={tmp_path}/run"]
    for change, field in (
        ("--config.alpha=0.5", "alpha"),
        ("--config.canary_seed=3", "canary_seed"),
        ("--config.vocab_size=41", "vocab_size"),
        ("--config.length=17", "length"),
    ):
        capsys.readouterr()
        assert run(train, *same, change) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert re.match(rf"error: {field}: got .*; this run was started with", err)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert run(train, *same, "--config.log_every=2") == 0
    assert "finished at step 4, nothing to do" in capsys.readouterr().err
