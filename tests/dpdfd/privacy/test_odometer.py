"""The account of a teacher's conversions: who is charged, once, and what it adds up to."""

import json
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from distill_core import checkpoint, data, release
from distill_core.config import InputError
from distill_core.models.network import image_network
from distill_core.privacy import composition
from distill_core.privacy.ledger import Ledger
from distill_core.runtime import parallel
from dpdfd import evaluate, privacy_spent, train
from dpdfd.ensemble import provenance
from dpdfd.ensemble import training as ensemble
from dpdfd.privacy import exact_noise, odometer
from dpdfd.privacy.releases import Release
from dpdfd.privacy.units import calibrate

DELTA, QUERIES = 1e-5, 64
SETTINGS = {
    "model": "cnn", "model_kwargs": {"widths": [2], "hidden": 4, "norm": "none"},
    "learning_rate": 0.05, "batch_size": 32, "num_steps": 2, "num_rounds": 1,
    "num_queries": QUERIES, "delta": DELTA, "epsilon": 1.0, "privacy_unit": "record_ensemble",
    "mechanism": "answers", "prior": {"noise": 1.0},
    "generator": {"width": 2, "latent_size": 4, "every": 0},
}  # fmt: skip


def entry(epsilon=1.0, unit="record_ensemble"):
    """All that a conversion releases which spends that much."""
    if unit == "record_ensemble":
        released = Release(unit, "mean_answer", 32, num_teachers=20)
    else:
        released = Release(unit, "query_gradients", 32, norm=1.0)
    multiplier = calibrate(released, epsilon=epsilon, delta=DELTA, steps=2)
    return released.charge(multiplier).times(2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An ensemble of random weights."""
    folder = tmp_path_factory.mktemp("saved") / "ensemble"
    member = {"member": "cnn", "member_kwargs": SETTINGS["model_kwargs"]}
    described = image_network(
        data.load_dataset("digits"),
        model=ensemble.MODEL,
        model_kwargs={"num_teachers": 20, **member},
    )
    params, _ = described.init(jax.random.key(0))
    metadata = {
        "method": "dpdfd.ensemble", "parts": {"model": described.to_json()}, "config": {},
        "data_note": "", "ledger": Ledger().to_json(), "num_examples": 1437,
        "ensemble": provenance.describe(1437, 20, 3),
    }  # fmt: skip
    parts = {"model": {"params": params, "model_state": {}}}
    checkpoint.save(folder, 3, parts=parts, train={"step": np.int32(0)}, metadata=metadata).wait()
    return folder


@pytest.fixture
def teacher(saved, tmp_path):
    """With its own account."""
    return shutil.copytree(saved, tmp_path / "teacher")


@pytest.fixture
def convert(teacher, tmp_path, monkeypatch):
    """`convert(name, …)`: a conversion in the folder of that name."""
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: "jit")

    def run(name, **changes):
        settings = {"teacher": str(teacher), **SETTINGS, **changes}
        return train.train_and_evaluate(settings, tmp_path / name)

    return run


def test_ten_conversions_at_epsilon_1_are_3_62_on_the_tenths_card(
    convert, teacher, tmp_path, capfd
):
    first = convert("first")
    assert "so far, including this one: 1; together they spend ε = 1 " in capfd.readouterr().out
    for number in range(8):
        odometer.charge(teacher, f"other{number}", entry())
    tenth = convert("tenth")
    assert "including this one: 10; together they spend ε = 3.619" in capfd.readouterr().out
    for told, count, total in ((first, 1, 1.0), (tenth, 10, 3.62)):
        report = privacy_spent(told["ledger"], delta=DELTA)
        assert report.epsilon == pytest.approx(1.0, rel=1e-4)
        assert json.loads(json.dumps(told["ledger"])) == told["ledger"]
        assert report.total.conversions == count
        assert report.total.epsilon == pytest.approx(total, abs=0.005)
        assert any(f"including this one: {count};" in each for each in report.assumptions)
    card = release.release(tmp_path / "tenth", tmp_path / "card")["privacy"]
    assert (card["epsilon"], card["conversions"]) == (pytest.approx(1.0, rel=1e-4), 10)
    assert card["total_epsilon"] == pytest.approx(3.62, abs=0.005)
    assert "including this one: 10; together they spend ε = 3.619" in " ".join(card["assumptions"])
    said = evaluate.describe(evaluate.privacy(checkpoint.find(tmp_path / "tenth")[1]))
    assert "same teacher: 10; together epsilon 3.619 for a training record" in said


def test_a_conversion_is_charged_before_it_asks_and_once(convert, teacher, monkeypatch):
    """Killed while it asks, it stays charged; resumed, it is not charged again."""
    real = exact_noise.noisy_answers

    def killed(*_, **__):
        assert len(odometer.read(teacher)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(exact_noise, "noisy_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        convert("run")
    (before,) = odometer.read(teacher)
    assert before[1].count == QUERIES
    monkeypatch.setattr(exact_noise, "noisy_answers", real)
    # Its answers may have been drawn, and there was budget for one round alone.
    with pytest.raises(InputError, match="epsilon: got 1.0; is spent: what it buys was drawn and"):
        convert("run")
    assert odometer.read(teacher) == (before,)
    convert("another")
    assert len(odometer.read(teacher)) == 2


def test_what_claims_nothing_is_not_counted(convert, teacher):
    convert("seeded", noise_seed=3)
    convert("bare", privacy_unit="none", mechanism="none", epsilon=None)
    assert odometer.read(teacher) == ()


def test_charges_at_once_are_all_kept_one_after_another(teacher):
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda n: odometer.charge(teacher, f"run{n}", entry()), range(40)))
    assert sorted(map(len, seen)) == list(range(1, 41))
    assert len(odometer.read(teacher)) == 40
    assert len(odometer.charge(teacher, "run7", entry())) == 40  # again


def test_any_path_to_a_teacher_leads_to_one_account(teacher, tmp_path):
    (tmp_path / "link").symlink_to(teacher)
    paths = [teacher, teacher / "checkpoints", teacher / "checkpoints" / "3", tmp_path / "link",
             f"{teacher}/../teacher"]  # fmt: skip
    for number, path in enumerate(paths):
        assert len(odometer.charge(path, str(number), entry())) == number + 1
    account = teacher / "private" / "odometer"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in account.glob("*.json")}
    assert (modes, stat.S_IMODE(account.stat().st_mode)) == ({0o600}, 0o700)


def test_a_copy_and_a_single_file_have_accounts_of_their_own(teacher, tmp_path):
    odometer.charge(teacher, "run", entry())
    copied = shutil.copytree(teacher / "checkpoints" / "3", tmp_path / "elsewhere" / "best")
    assert odometer.read(copied) == ()
    odometer.charge(copied, "run", entry())
    assert odometer.folder(copied) == tmp_path / "elsewhere" / "private" / "best.odometer"
    weights = tmp_path / "elsewhere" / "net.safetensors"
    assert odometer.read(weights) == ()
    odometer.charge(weights, "run", entry(unit="record_single"))
    assert len(odometer.read(weights)) == len(odometer.read(copied)) == 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("before", "teacher: got .*odometer, the account of its conver.*be w"),
        ("charging", "teacher: got .*odometer, the account of its conver.*be w"),
        ("damaged", "teacher: got .*cannot be read: run.json is damaged"),
        ("noise", "epsilon: got 1e-06; needs noise above 6e\\+07 sens"),
    ],
)
def test_what_cannot_be_charged_is_not_converted(
    convert, teacher, tmp_path, monkeypatch, what, said
):
    changes = {}
    if what == "damaged":
        odometer.charge(teacher, "run", entry())
        (teacher / "private" / "odometer" / "run.json").write_text('{"id": "run"}')
    elif what == "noise":  # more than can be sampled
        changes = {"epsilon": 1e-6, "delta": 1e-12, "num_queries": 640}
    else:  # a file stands where the folder should be: as root, everything can be written
        (teacher / "private").write_text("")
    if what == "charging":
        monkeypatch.setattr(odometer, "check", lambda teacher: None)
    with pytest.raises(InputError, match=said):
        convert("run", **changes)
    assert not (tmp_path / "run" / "checkpoints").exists()


# -- what it adds up to ------------------------------------------------------------------------


def test_claims_about_queries_count_as_what_they_are_for_a_record():
    query, record = entry(unit="query"), entry(unit="record_single")
    found = composition.total(Ledger(conversions=(("a", query), ("b", record))), DELTA)
    assert found is not None
    assert found.conversions == 2
    alone = privacy_spent(Ledger().charge(query), delta=DELTA)
    assert found.epsilon > alone.record_epsilon > 5 * alone.epsilon


def test_what_inherits_a_claim_inherits_its_account_and_each_conversion_counts_once():
    first, second, third = (("a", entry()), ("b", entry(2.0)), ("other", entry()))
    early = Ledger(mechanisms=(entry(),), conversions=(first,))
    late = Ledger(mechanisms=(entry(),), conversions=(first, second))
    heir = Ledger(public=True).descend("early", early).descend("late", late)
    found = composition.total(heir, DELTA)
    assert found == composition.total(late, DELTA)
    other = heir.descend("other", Ledger(mechanisms=(entry(),), conversions=(third,)))
    assert composition.total(other, DELTA).conversions == 3
    behind = Ledger(public=True).descend("late", late, role="mechanism")
    assert composition.total(behind, DELTA) is None
    assert composition.total(Ledger(), DELTA) is None
