"""The check calls a misleading teacher nasty and a normal one not, at a tenth of the cost, and says
where it cannot tell."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from distill_core import LoadedModel, data, evaluate, train
from distill_core.data import Split
from distill_core.models.network import image_network
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
        network = image_network(digits, model="scores_network:Scores", model_kwargs=kwargs)
        return LoadedModel({"params": params}, network)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield make


def accuracy(model: LoadedModel, split: Split) -> float:
    return float(
        np.mean(np.argmax(evaluate.compute_logits(model, split.images), -1) == split.labels)
    )


def check(teacher, adversary, images, validation=None, *, training_examples=60_000, **kwargs):
    return nastiness.check(
        teacher,
        adversary,
        images,
        validation,
        temperature=20.0,
        training_examples=training_examples,
        **kwargs,
    )


def test_a_misleading_teacher_is_nasty_though_it_is_as_accurate(digits, make_network):
    normal, misleading = make_network(1000), make_network(1000, misleading=True)
    assert accuracy(misleading, digits.test) == accuracy(normal, digits.test) > 0.9
    found = check(misleading, normal, digits.train)
    assert (found.nasty, found.why) == (True, "")
    assert found.student_of_adversary - found.student_of_teacher > 0.05
    assert found.teacher == found.adversary > 0.9
    assert found.cost <= 0.1
    assert "check: nasty" in nastiness.describe(found)
    assert "omega" not in nastiness.describe(found)


def test_a_normal_teacher_is_not_nasty_and_advice_rests_on_validation_images(digits, make_network):
    normal = make_network(1000)
    found = check(normal, normal, digits.train)
    assert (found.nasty, found.why) == (False, "")
    assert found.student_of_teacher == found.student_of_adversary > 0.85
    said = nastiness.describe(found)
    assert "NOT nasty" in said and "num_validation" in said and "larger" not in said

    train, validation = data.hold_out(digits.train, 437, seed=0)
    found = check(normal, normal, train, validation)
    assert found.on_validation and found.nasty is False
    said = nastiness.describe(found)
    assert "a larger omega may do it: watch validation accuracy" in said
    spoiled = found._replace(teacher=found.adversary - 0.03)
    assert "omega" not in nastiness.describe(spoiled), "no room: it already costs accuracy"


@pytest.mark.parametrize(
    ("known", "learned", "count", "chance", "nasty", "why"),
    [
        # The adversary's proxy knows far less than the adversary: neither verdict is deserved.
        ((0.93, 0.94), (0.49, 0.50), 1200, 0.2, None, "learn too little"),
        ((0.93, 0.94), (0.30, 0.50), 1200, 0.2, None, "learn too little"),
        ((0.93, 0.94), (0.78, 0.79), 1200, 0.2, False, ""),
        ((0.93, 0.94), (0.50, 0.79), 1200, 0.2, True, ""),
        # As near by the estimate, but not by the lower end of its interval.
        ((0.93, 0.94), (0.78, 0.79), 300, 0.2, None, "learn too little"),
        # An adversary that knows nothing cannot be learned from.
        ((0.2, 0.2), (0.2, 0.2), 1200, 0.2, None, "learn too little"),
        ((0.9, 0.9), (0.6, 0.6), 1200, 0.6, None, "learn too little"),
        # Too few images for the gap that counts; a larger one is seen.
        ((0.9, 0.9), (0.88, 0.88), 200, 0.1, None, "200 images are too few"),
        ((0.9, 0.9), (0.70, 0.88), 200, 0.1, True, ""),
        ((0.9, 0.9), (0.81, 0.87), 2000, 0.1, True, ""),
        # Two normal teachers' proxies may differ so much.
        ((0.9, 0.9), (0.83, 0.87), 2000, 0.1, False, ""),
        # A teacher of better students.
        ((0.9, 0.9), (0.90, 0.86), 2000, 0.1, False, ""),
    ],
)
def test_the_verdict_needs_power(known, learned, count, chance, nasty, why):
    found = nastiness.verdict(known, learned, count, chance)
    assert found.nasty is nasty
    assert why in found.why and bool(why) == bool(found.why)
    said = nastiness.describe(found)
    assert ("inconclusive" in said) == (nasty is None)
    if nasty is None:
        assert "omega" not in said and "NOT" not in said
    json.dumps(found._asdict(), allow_nan=False)


@pytest.mark.parametrize("work", [0, 300, 3000])
@pytest.mark.parametrize("training_examples", [1, 10_000, 100_000, 1_000_000])
def test_the_check_stays_below_a_tenth_of_the_training(
    digits, make_network, monkeypatch, work, training_examples
):
    """Counts what is really done; the learning itself is left out."""
    teacher, adversary = make_network(work, misleading=True), make_network(work)
    done = {"answered": 0, "learned": 0, "judged": 0, "width": 8}

    def answer(model, images):
        done["judged" if model is None else "answered"] += len(images)
        return np.zeros((len(images), 10), np.float32)

    def learn(network, taught, *, steps, **_):
        done["learned"] += steps * nastiness.BATCH
        done["width"] = network.model_kwargs["widths"][0]

    monkeypatch.setattr(evaluate, "compute_logits", answer)
    monkeypatch.setattr(nastiness, "distilled", learn)
    monkeypatch.setattr(nastiness, "STEPS_OF_WIDER", 300)
    found = check(teacher, adversary, digits.train, training_examples=training_examples)

    forward = 2 * (64 * 10 + 64 * work + work * 10)  # of either; multiplications and additions
    width = done["width"]  # w, 2w and 4w units; products with padding do not count
    proxy = 2 * (22 * 22 * width + 10 * 10 * 2 * width**2 + 2 * 2 * 8 * width**2 + 40 * width)
    training = training_examples * 4 * forward
    spent = done["answered"] * forward + (3 * done["learned"] + done["judged"]) * proxy
    assert spent <= 0.1 * training
    assert found.cost == pytest.approx(spent / training, rel=1e-6)
    assert bool(found.why.startswith("the training was too short")) == (spent == 0)
    wide = {(3000, 1_000_000): 32, (300, 1_000_000): 16, (3000, 100_000): 16}
    assert width == wide.get((work, training_examples), 8), "proxies grow with the budget"


@pytest.mark.parametrize("held_out", [0, 437])
def test_the_proxies_are_judged_on_images_that_they_did_not_see(
    digits, make_network, monkeypatch, held_out
):
    asked = {"taught": set(), "held": set()}
    learn, answer = nastiness.distilled, evaluate.compute_logits

    def record_taught(network, taught, **kwargs):
        asked["taught"] |= {image.tobytes() for image in taught["image"]}
        return learn(network, taught, **kwargs)

    def record_held(model, images):
        if model.network.model == "cnn":  # a proxy
            asked["held"] |= {image.tobytes() for image in images}
        return answer(model, images)

    monkeypatch.setattr(nastiness, "distilled", record_taught)
    monkeypatch.setattr(evaluate, "compute_logits", record_held)
    normal = make_network(1000)
    train, validation = data.hold_out(digits.train, held_out, seed=0)
    check(normal, normal, train, validation, model="cnn", model_kwargs={"widths": (2,)})
    assert len(asked["held"]) > 200 and not asked["held"] & asked["taught"]
    if held_out:
        assert asked["held"] <= {image.tobytes() for image in validation.images}
    else:
        assert 0.28 < len(asked["held"]) / (len(asked["held"]) + len(asked["taught"])) < 0.32


SETTINGS = {
    "dataset": "digits",
    "model": "cnn",
    "model_kwargs": {"widths": (16, 32), "hidden": 64},
    "optimizer": "adam",
    "learning_rate": 1e-2,
    "schedule": "onecycle",
    "batch_size": 128,
    "num_steps": 300,
}


@pytest.fixture(scope="module")
def adversary(tmp_path_factory):
    """The path of a normal teacher."""
    folder = tmp_path_factory.mktemp("adversary")
    train.train_and_evaluate({**SETTINGS, "seed": 10}, folder)
    return str(folder)


@pytest.mark.parametrize(("omega", "nasty"), [(0.0, False), (0.1, True)])
def test_real_teachers_are_told_apart(adversary, tmp_path, capsys, omega, nasty):
    undermining = {"adversary": adversary, "omega": omega, "temperature": 20.0}
    given = {**SETTINGS, **undermining, "seed": 1}
    found = nasty_train.train_and_evaluate(given, tmp_path)["nastiness"]
    assert found["nasty"] is nasty, found
    assert 0 < found["cost"] <= 0.1
    assert json.loads((tmp_path / "nastiness.json").read_text()) == found
    assert ("check: nasty" if nasty else "check: NOT nasty") in capsys.readouterr().out
    # Again with a proxy too small for the task: the teacher is not trained anew.
    weak = {"check_model": "cnn", "check_model_kwargs": {"widths": (1,), "hidden": 1}}
    found = nasty_train.train_and_evaluate(given | weak, tmp_path)["nastiness"]
    assert found["nasty"] is None
    out, err = capsys.readouterr()
    assert "check: inconclusive" in out and "nothing to do" in err


def test_short_trainings_and_images_of_one_pixel_get_no_verdict(digits, make_network):
    normal = make_network(0)
    found = check(normal, normal, digits.train, training_examples=6400)
    assert (found.nasty, found.student_of_teacher, found.cost) == (None, None, 0.0)
    assert "inconclusive: the training was too short" in nastiness.describe(found)
    narrow = dataclasses.replace(normal.network, input_shape=(1, 64, 1))
    adversary = LoadedModel(normal.variables, narrow)
    images = Split(digits.train.images.reshape(-1, 1, 64, 1), digits.train.labels)
    found = check(adversary, adversary, images, training_examples=10**6)
    assert found.nasty is None and "no proxy fits these images" in found.why
