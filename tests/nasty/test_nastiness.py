"""The check calls a misleading teacher nasty and a normal one not, at a tenth of the cost."""

import json

import jax
import numpy as np
import pytest

from distill_core import LoadedModel, data, evaluate, spec, train
from distill_core.data import Split, sampling
from nasty import nastiness
from nasty import train as nasty_train

NETWORK = '''
import jax, jax.numpy as jnp
from flax import linen as nn

class Scores(nn.Module):
    """A linear classifier. A misleading one has the same largest logits, barely, and beside each
    a second peak at another class, which the picture's brightness chooses."""
    num_classes: int
    misleading: bool = False
    work: int = 0

    @nn.compact
    def __call__(self, x):
        flat = x.reshape(x.shape[0], -1)
        scores = nn.Dense(self.num_classes)(flat)
        if self.work:  # its weights are 0: arithmetic without effect, to pay for a check
            wide = nn.Dense(self.work)(flat)
            scores = scores + nn.Dense(self.num_classes)(wide)
        if not self.misleading:
            return 20 * scores
        best = jnp.argmax(scores, -1)
        other = (best + 1 + (jnp.sum(flat, -1) > 0) * 4) % self.num_classes
        return 100 * jax.nn.one_hot(best, 10) + 98 * jax.nn.one_hot(other, 10)
'''


@pytest.fixture(scope="module")
def digits():
    return data.load_dataset("digits")


@pytest.fixture(scope="module")
def make_network(digits, tmp_path_factory):
    """make_network(work, misleading=False) -> LoadedModel, with weights by least squares."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "scores_network.py").write_text(NETWORK)
    flat = (digits.train.images / 255 - digits.mean[0]) / digits.std[0]
    design = np.c_[flat.reshape(len(digits.train), -1), np.ones(len(digits.train))]
    targets = np.eye(10)[digits.train.labels] - 0.1
    weights = np.linalg.lstsq(design, targets, rcond=1e-3)[0].astype(np.float32)

    def make(work, **kwargs) -> LoadedModel:
        params = {"Dense_0": {"kernel": weights[:-1], "bias": weights[-1]}}
        for name, (rows, columns) in {"Dense_1": (64, work), "Dense_2": (work, 10)}.items():
            zeros = {"kernel": np.zeros((rows, columns)), "bias": np.zeros(columns)}
            params |= {name: jax.tree.map(np.float32, zeros)} if work else {}
        kwargs |= {"work": work}
        network = spec.image_spec(
            model="scores_network:Scores", model_kwargs=kwargs, dataset=digits
        )
        return LoadedModel({"params": params}, network, spec.make_apply(network))

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield make


def accuracy(model: LoadedModel, split: Split) -> float:
    return float(
        np.mean(np.argmax(evaluate.compute_logits(model, split.images), -1) == split.labels)
    )


def check(teacher, adversary, images, training_examples=60_000):
    return nastiness.check(
        teacher, adversary, images, temperature=20.0, training_examples=training_examples
    )


def test_a_misleading_teacher_is_nasty_though_it_is_as_accurate(digits, make_network):
    normal, misleading = make_network(1000), make_network(1000, misleading=True)
    assert accuracy(misleading, digits.test) == accuracy(normal, digits.test) > 0.9
    found = check(misleading, normal, digits.train)
    assert found.nasty is True
    assert found.student_of_adversary - found.student_of_teacher > 0.1
    assert found.cost <= 0.1
    assert "check: nasty" in nastiness.describe(found)


def test_a_normal_teacher_is_not_nasty(digits, make_network):
    normal = make_network(1000)
    found = check(normal, normal, digits.train)
    assert found.nasty is False
    assert found.student_of_teacher == found.student_of_adversary > 0.85
    assert "NOT nasty" in nastiness.describe(found)
    freed = check(normal, make_network(1000, misleading=True), digits.train)
    assert freed.nasty is False, "a student that is better off"


@pytest.mark.parametrize("work", [0, 300, 3000])
@pytest.mark.parametrize("training_examples", [1, 10_000, 100_000, 1_000_000])
def test_the_check_stays_below_a_tenth_of_the_training(
    digits, make_network, monkeypatch, work, training_examples
):
    """Counts what is really done; the learning itself is left out."""
    teacher, adversary = make_network(work, misleading=True), make_network(work)
    done = {"answered": 0, "learned": 0, "judged": 0}

    def answer(model, images):
        done["answered"] += len(images)
        return np.zeros((len(images), 10), np.float32)

    def learn(pixels, labels, logits, cut, *, steps, **_):
        done["learned"] += steps * nastiness.BATCH
        done["judged"] += len(pixels) - cut
        return 0.9

    monkeypatch.setattr(evaluate, "compute_logits", answer)
    monkeypatch.setattr(nastiness, "_distilled_accuracy", learn)
    found = check(teacher, adversary, digits.train, training_examples)

    teacher_forward, adversary_forward = (
        jax.jit(model.apply).lower(model.variables, np.zeros((1, 8, 8, 1))).cost_analysis()["flops"]
        for model in (teacher, adversary)
    )
    proxy_forward = 2 * 64 * 64 + 2 * 64 * 10  # multiplications and additions
    training = training_examples * (3 * teacher_forward + adversary_forward)
    spent = done["answered"] // 2 * (teacher_forward + adversary_forward)
    spent += (3 * done["learned"] + done["judged"]) * proxy_forward
    assert spent <= 0.1 * training
    assert found.cost == pytest.approx(spent / training, rel=0.01)
    assert (found.nasty is None) == (spent == 0)


def test_a_training_too_short_for_a_check_gets_no_verdict(digits, make_network):
    normal = make_network(0)
    found = check(normal, normal, digits.train, training_examples=6400)
    assert found == nastiness.Nastiness(None, None, None, nastiness.LEAST_GAP, 0.0)
    assert "too short" in nastiness.describe(found)
    json.dumps(found._asdict(), allow_nan=False)


def test_the_proxies_are_judged_on_images_that_they_did_not_see(digits, make_network, monkeypatch):
    answered, seen = [], set()
    answer, draw = evaluate.compute_logits, sampling.batch_indices

    def count(model, images):
        answered.append(len(images))
        return answer(model, images)

    def record(*args):
        rows = draw(*args)
        seen.update(rows.tolist())
        return rows

    monkeypatch.setattr(evaluate, "compute_logits", count)
    monkeypatch.setattr(sampling, "batch_indices", record)
    normal = make_network(1000)
    check(normal, normal, digits.train)
    assert 0.6 < (max(seen) + 1) / answered[0] < 0.71


def test_training_without_omega_is_not_nasty(tmp_path, capsys):
    settings = {
        "dataset": "digits",
        "model": "cnn",
        "model_kwargs": {"widths": (8, 16), "hidden": 32},
        "optimizer": "adam",
        "learning_rate": 1e-2,
        "schedule": "onecycle",
        "batch_size": 128,
        "num_steps": 160,
    }
    train.train_and_evaluate({**settings, "seed": 10}, tmp_path / "adversary")
    undermining = {"adversary": str(tmp_path / "adversary"), "omega": 0.0, "temperature": 20.0}
    for seed in range(3):
        workdir = tmp_path / f"seed{seed}"
        result = nasty_train.train_and_evaluate({**settings, **undermining, "seed": seed}, workdir)
        assert result["accuracy"] > 0.95
        found = result["nastiness"]
        assert found["nasty"] is False
        assert found["student_of_adversary"] > 0.6, "the proxies have learned something"
        assert 0 < found["cost"] <= 0.1
        assert json.loads((workdir / "nastiness.json").read_text()) == found
        assert "NOT nasty" in capsys.readouterr().out
