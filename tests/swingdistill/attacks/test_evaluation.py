"""The attacks by `swingdistill.evaluate`: what it prints, writes and refuses."""

import json

import pytest

from distill_core.runtime import cli
from swingdistill import evaluate
from swingdistill.attacks import evaluation


def test_the_binary_prints_what_it_writes(learnt, fresh, tmp_path, capsys):
    flags = ["--extract", "--membership", f"--reference={fresh}", "--num_continuations=15"]
    evaluate.main([f"--checkpoint={learnt}", *flags, f"--out={tmp_path}/found.json"])
    out = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "found.json").read_text())
    extraction, told = found["extraction"], found["membership"]
    counts = {"secrets": 2, "greedy": 1, "sampled": 2}
    reference = {"reference_greedy": 0, "reference_sampled": 0}
    assert extraction["canaries"] == {"20": counts | reference}
    assert extraction["num_continuations"] == 15
    assert out.pop().startswith("not measured: ")
    assert out[-4:-2] == [
        "extracted at 20 repetitions: of 2 secrets 1 greedily, 2 by 15 draws per secret (by the "
        "reference 0 and 0); chance 0.001 and 0.03 of each",
        "extracted of private spans: of 1 secrets 1 greedily, 1 by 15 draws per secret (by the "
        "reference 0 and 0)",
    ]
    roc = told["canaries"]["20"]["mean"]
    assert out[-2].startswith("TPR at 1% FPR 1.00 (chance 0.01; 95% interval 0.16 to 1.00; p ")
    assert out[-2].endswith(
        f"AUC {roc['auc']:.2f}: canaries at 20 repetitions against others like them, 2 against "
        f"{roc['non_members']}"
    )
    told = "training lines against test lines, 13 against 120 (which may differ for other "
    assert out[-1].endswith(f"{told}reasons, too)")


def test_only_what_is_asked_is_done(learnt, fresh, capsys):
    path = f"--checkpoint={fresh}"
    evaluate.main([path, "--extract", "--num_continuations=0"])
    out = capsys.readouterr().out
    assert "of 2 secrets 0 greedily; chance" in out and "TPR" not in out
    # Another's canaries and text are asked of any model.
    evaluate.main([path, "--membership", f"--canaries={learnt}"])
    out = capsys.readouterr().out
    assert "TPR at 1% FPR 0.00" in out and "extracted" not in out


def test_text_without_secrets_and_with_few_lines_says_so(untrained, tmp_path, capsys):
    path = untrained(tmp_path / "plain", 4, canaries_per_level=0)
    evaluate.main([f"--checkpoint={path}", "--extract", "--membership"])
    out = capsys.readouterr().out.splitlines()
    assert out[-3:-1] == [
        "extracted: nothing asked, as the text has no canaries and no private spans",
        "membership of lines: not measured, with fewer than 99 other test lines",
    ]


@pytest.mark.parametrize(
    ("field", "flags"),
    [
        ("reference", ["--reference=runs/x"]),
        ("num_continuations", ["--num_continuations=3"]),
        ("num_continuations", ["--num_continuations=3", "--membership"]),
        ("num_continuations", ["--num_continuations=-1", "--extract"]),
        ("num_continuations", ["--num_continuations=many", "--extract"]),
        ("reference", ["--extract", "--reference={place}/no"]),
        ("reference", ["--membership", "--reference={place}/fewer"]),
        ("canary_digits", ["--membership", "--canaries={place}/short"]),
    ],
)
def test_wrong_input_costs_one_line(untrained, tmp_path, capsys, field, flags):
    path = untrained(tmp_path / "model", 4)
    untrained(tmp_path / "fewer", 4, vocab_size=20)
    untrained(tmp_path / "short", 4, canary_digits=2)
    capsys.readouterr()
    given = [flag.format(place=tmp_path) for flag in flags]
    assert cli.exit_code(evaluate.main, [f"--checkpoint={path}", *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {field}: got ")


def test_a_classifier_says_no_secrets_but_its_losses_tell(untrained, folder, tmp_path, capsys):
    changes = {"task": "classification", "dataset": f"tsv:{folder}/labelled", "canary_digits": 3}
    path = untrained(tmp_path / "model", 4, **changes)
    flags = [f"--checkpoint={path}", "--num_samples=31"]
    assert cli.exit_code(evaluate.main, [*flags, "--extract"]) == 2
    assert capsys.readouterr().err.startswith("error: extract: got True; ")
    evaluate.main([*flags, "--membership"])
    assert (
        "canaries at 4 repetitions against others like them, 2 against" in capsys.readouterr().out
    )


def test_flags_that_ask_for_nothing_give_none():
    flags = cli.Flags("")
    evaluation.add_flags(flags)
    assert evaluation.asked(flags.read([])) is None
    asked = evaluation.asked(flags.read(["--extract"]))
    assert asked == evaluation.Asked(extract=True, membership=False)
