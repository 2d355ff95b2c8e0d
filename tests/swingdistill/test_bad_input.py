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
from distill_core.models import spec
from distill_core.runtime import cli
from swingdistill import evaluate, train
from swingdistill.experiment import comparison as experiment

CONFIG = """
from ml_collections import config_dict

def get_config(arg=""):
    return config_dict.ConfigDict({settings!r}).lock()
"""
LONG = "the cat sat on the mat under the big old tree and ran to the dog on the mat ."


def run(binary, *arguments):
    if binary is evaluate:
        return cli.exit_code(evaluate.main, arguments)
    begin = experiment.run if binary is experiment else train.train_and_evaluate
    return cli.exit_code(lambda argv: cli.run_training(begin, binary.FIELDS, argv), arguments)


def save(path, network, params):
    """A checkpoint of some network, without a run."""
    metadata = {
        "method": "test",
        "parts": {"model": network},
        "config": {},
        "data_note": "",
        "ledger": {"mechanisms": [], "ancestors": []},
    }
    parts = {"model": {"params": params, "model_state": {}}}
    checkpoint.save(path, 0, parts=parts, train={"step": np.int32(0)}, metadata=metadata)


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


@pytest.fixture(scope="module")
def place(folder, settings, teacher, untrained, tmp_path_factory):
    """A folder with configs, and with texts and checkpoints that do not fit."""
    place = tmp_path_factory.mktemp("place")
    given = settings()
    (place / "config.py").write_text(CONFIG.format(settings=given))
    network = ("model", "model_kwargs", "learning_rate", "num_steps", "batch_size", "optimizer")
    compared = {**given, "seeds": (1,), **{f"student_{name}": given[name] for name in network}}
    (place / "experiment.py").write_text(CONFIG.format(settings=compared))
    for name, split, content in (
        ("empty", "train", b" \n"),
        ("latin", "valid", b"good\nna\xefve\n"),
        ("long_train", "train", LONG.encode()),
        ("long_valid", "valid", LONG.encode()),
        ("long_test", "test", LONG.encode()),
    ):
        shutil.copytree(folder, place / name, ignore=shutil.ignore_patterns("labelled"))
        (place / name / f"{split}.txt").write_bytes(content)
    shutil.copytree(folder, place / "two", ignore=shutil.ignore_patterns("labelled", "valid*"))
    many = "\n".join(f"{i % 11}\tthe cat" for i in range(40))
    (place / "eleven.tsv").write_text(many)

    untrained(place / "fewer", 6, vocab_size=20)
    shutil.copytree(teacher, place / "future")
    integrity.amend(place / "future" / "checkpoints" / "0", {"format_version": 99})
    image = {
        "model": "cnn",
        "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "none"},
        "num_classes": 3,
        "input_shape": [8, 8, 1],
        "mean": [0.5],
        "std": [0.5],
        "classes": ["a", "b", "c"],
    }
    shapes = spec.variable_shapes(image)["params"]
    save(place / "image", image, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    digits_together().save(str(place / "merges.json"))

    for name, tensors in (
        ("bert", {"bert.embeddings.weight": np.zeros((4, 4), np.float32)}),
        ("wide", gpt2(last=17)),
        ("silent", gpt2()),
        ("padded", gpt2(vocab=320)),
    ):
        (place / name).mkdir()
        save_file(tensors, place / name / "model.safetensors")
        (place / name / "config.json").write_text(json.dumps({"n_head": 2}))
    digits_together().save(str(place / "padded" / "tokenizer.json"))
    return place


TEACHER = ["--config.teacher={teacher}"]
BOTH = [*TEACHER, "--config.reference={reference}"]
ALONE = ["--config.scorers=()"]  # needs no reference
GENERATION = ["--config.task=generation", "--config.canaries_per_level=0"]
LONGER = "length: got 16; the line ' => the cat sat on the mat under the big"


def wrong(*arguments, message, binary=train):
    said = " ".join(a.removeprefix("--config.") for a in arguments) or "nothing given"
    return pytest.param(binary, arguments, message, id=said[:70])


CASES = [
    # names and types
    wrong("--config.alpah=1", message="alpah: got '1'; no such field; did you mean alpha?"),
    wrong("--config.task=translation", message="task: got 'translation'; must be one of langua"),
    wrong("--config.scorers=('ruels',)", message="scorers: got ('ruels',); must be a tuple"),
    wrong("--config.alpha=1.1", message="alpha: got 1.1; must be a number in [0, 1]"),
    wrong(
        "--config.batch_size=12",
        message="batch_size: got 12; must be divisible by the 8",
    ),
    wrong("--config.half=third", message="half: got 'third'; must be one of all, first, second"),
    # networks
    wrong("--config.model=gpt5", message="model: got 'gpt5'; must be one of cnn, "),
    wrong("--config.model=cnn", message="cnn refused: "),
    wrong("--config.model_kwargs.num_heads=3", message="must be divisible by num_heads, 3"),
    wrong("--config.model_kwargs.max_length=8", message="comes from the field length; leave it"),
    # text
    wrong("--config.dataset=wikitext", message="dataset: got 'wikitext'; must be one of records"),
    wrong("--config.dataset=text:{place}/no", message="must be an existing text file"),
    wrong("--config.dataset=text:{place}/empty", message="must hold text, and is empty"),
    wrong("--config.dataset=text:{place}/latin", message="must be UTF-8; line 2 is not (byte 3"),
    wrong("--config.dataset=text:{place}/two", message="valid or dev in its name; this one has 0"),
    wrong(*GENERATION, "--config.dataset=text:{place}/long_train", message=LONGER),
    wrong(*GENERATION, "--config.dataset=text:{place}/long_valid", message=LONGER),
    wrong(*GENERATION, "--config.dataset=text:{place}/long_test", message=LONGER),
    wrong(*GENERATION, "--config.length=8", message="length: got 8; the line '"),
    wrong(
        "--config.task=classification",
        "--config.canaries_per_level=0",
        message="task: got 'classification'; needs labelled text: records or tsv:PATH",
    ),
    wrong(
        "--config.task=classification",
        message="task: got 'classification'; needs labelled text: records or tsv:PATH",
    ),
    wrong(
        "--config.task=classification",
        "--config.dataset=tsv:{place}/eleven.tsv",
        message="task: got 'classification'; takes at most 10 classes, not class 10",
    ),
    # tokenizers
    wrong("--config.tokenizer={place}/no", message="tokenizer: got '{place}/no'; does not exist"),
    wrong("--config.tokenizer={place}/config.py", message="must be a tokenizer of `tokenizers`"),
    wrong("--config.tokenizer={place}/image", message="has no tokenizer: it must be a language m"),
    wrong("--config.tokenizer=byte_pairs", message="vocab_size: got 40; must be at least 260"),
    wrong("--config.tokenizer={place}/merges.json", message="does not write each digit of 'my id"),
    # canaries
    wrong(
        "--config.canary_digits=1",
        "--config.canaries_per_level=24",
        message="canaries_per_level: got 24; 2 levels need 48 different secrets",
    ),
    wrong(
        "--config.canary_levels=(3,3)",
        message="canary_levels: got (3, 3); must differ",
    ),
    wrong(
        "--config.canary_format=secret",
        message="canary_format: got 'secret'; must have exactly one {{}}",
    ),
    wrong("--config.length=8", message="length: got 8; "),
    wrong(
        "--config.transfer_set=decoy",
        "--config.canary_digits=1",
        "--config.canaries_per_level=5",
        message="num_decoys: got 10; every number is a secret",
    ),
    # teachers and references
    wrong(
        *ALONE, "--config.teacher={place}/no", message="teacher: got '{place}/no'; does not exist"
    ),
    wrong(
        *ALONE, "--config.teacher={place}", message="teacher: got '{place}'; holds no checkpoint"
    ),
    wrong(
        *ALONE,
        "--config.teacher={place}/future",
        message="teacher: got '{place}/future'; has format v",
    ),
    wrong(
        *ALONE,
        "--config.teacher={place}/image",
        message="teacher: got '{place}/image'; must be a language model's checkpoint, not of imag",
    ),
    wrong(
        *ALONE,
        "--config.teacher={place}/fewer",
        "--config.tokenizer={teacher}",
        message="teacher: got '{place}/fewer'; has another vocabulary (20 tokens) than the student",
    ),
    wrong(
        *TEACHER,
        "--config.reference={place}/fewer",
        message="reference: got '{place}/fewer'; has another vocabulary (20 tokens) than the st",
    ),
    wrong(
        *TEACHER,
        "--config.reference={place}/image",
        message="reference: got '{place}/image'; must be a language model's checkpoint, not of im",
    ),
    wrong(*BOTH, "--config.length=17", message="length: got 17; must be at most 16, the teacher's"),
    wrong(
        *ALONE,
        "--config.teacher={place}/bert/model.safetensors",
        message="teacher: got '{place}/bert/model.safetensors'; has no tensor wte.weight, which G",
    ),
    wrong(
        *ALONE,
        "--config.teacher={place}/wide/model.safetensors",
        message="teacher: got '{place}/wide/model.safetensors'; tensor ln_f.bias is [17]; [16] is",
    ),
    wrong(
        *ALONE,
        "--config.teacher={place}/silent/model.safetensors",
        message="teacher: got '{place}/silent/model.safetensors'; has no tokenizer",
    ),
    wrong(
        *ALONE,
        "--config.teacher={place}/padded/model.safetensors",
        "--config.canaries_per_level=0",
        message="teacher: got '{place}/padded/model.safetensors'; ",
    ),
    wrong(
        "--config.init_from={place}/fewer",
        message="init_from: got '{place}/fewer'; has another vocabulary (20 tokens) than the run",
    ),
    # the method
    wrong(*TEACHER, message="reference: got None; divergence needs one: a checkpoint on public te"),
    wrong(
        *TEACHER,
        "--config.scorers=('rules',)",
        "--config.variant=anchored",
        message="reference: got None; anchored needs one",
    ),
    wrong("--config.t_min=20", message="t_max: got 16.0; must be at least t_min, 20.0"),
    wrong("--config.quantiles=0.9,0.5", message="quantiles: got (0.9, 0.5); must be two in ascen"),
    wrong("--config.quantiles=(0.9,)", message="quantiles: got (0.9,); must be two in ascending"),
    wrong(*BOTH, "--config.epsilon=2", message="entries: got 0; a formal budget needs the number"),
    wrong(
        *BOTH,
        "--config.entries=1000",
        message="entries: got 1000; must be",
    ),
    wrong(
        *TEACHER,
        "--config.scorers=('oracle',)",
        "--config.canaries_per_level=0",
        message="scorers: got 'oracle'; needs text whose private spans are known",
    ),
    wrong(
        *TEACHER,
        "--config.scorers=('rules',)",
        "--config.expressions=('(',)",
        message="expressions: got ",
    ),
    wrong("--config.expressions=('(',)", message="expressions: got "),
    # the comparison
    wrong("--config.seeds=()", message="seeds: got (); must name at least one", binary=experiment),
    wrong("--config.dataset=text:{place}/empty", message="is empty", binary=experiment),
    wrong("--config.t_min=20", message="t_max: got 16.0; must be", binary=experiment),
    wrong("--config.teacher=x", message="teacher: got 'x'; no such field", binary=experiment),
]


@pytest.mark.parametrize(("binary", "arguments", "message"), CASES)
def test_wrong_input_costs_one_line_and_leaves_no_workdir(
    place, teacher, reference, tmp_path, capsys, binary, arguments, message
):
    names = {"place": place, "teacher": teacher, "reference": reference}
    given = [argument.format(**names) for argument in arguments]
    config = place / ("experiment.py" if binary is experiment else "config.py")
    capsys.readouterr()
    code = run(binary, f"--config={config}", f"--workdir={tmp_path}/run", *given)
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.format(**names) in err
    assert (code, out) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint: got None; --checkpoint is required"),
        (["--checkpoint={place}/no"], "checkpoint: got '{place}/no'; does not exist"),
        (["--checkpoint={place}"], "checkpoint: got '{place}'; holds no checkpoint"),
        (["--checkpoint={place}/future"], "has format version 99"),
        (["--checkpoint={place}/image"], "image'; must be a run of swingdistill.train; its conf"),
        (["--checkpoint={place}/silent/model.safetensors"], "must be a run of swingdistill.train"),
        (["--checkpoint={teacher}", "--canaries={place}/no"], "canaries: got '{place}/no'; does"),
        (["--checkpoint={teacher}", "--canaries={place}/image"], "canaries: got '{place}/image'; "),
        (["--checkpoint={teacher}", "--estimator=exakt"], "estimator: got 'exakt'; invalid choi"),
        (["--checkpoint={teacher}", "--estimator=sampled", "--num_samples=0"], "num_samples: got"),
        (["--chekpoint=x"], "chekpoint: got 'x'; no such flag; did you mean checkpoint?"),
    ],
)
def test_wrong_input_of_evaluate_costs_one_line(place, teacher, capsys, arguments, message):
    names = {"place": place, "teacher": teacher}
    capsys.readouterr()
    assert run(evaluate, *(argument.format(**names) for argument in arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message.format(**names) in err


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
