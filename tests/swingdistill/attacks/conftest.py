"""A model that learnt its few lines by heart, and one that learnt nothing."""

import random

import pytest

from distill_core import checkpoint, config
from swingdistill import private_text, train

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "old")
CODE = "her code is 40719 ."  # what the rules call private


@pytest.fixture(scope="session")
def given(settings, tmp_path_factory):
    """Settings of a run on 12 lines of words, a code that stands there ten times, and canaries."""
    folder = tmp_path_factory.mktemp("lines")
    rng = random.Random(0)
    for split, num in {"train": 12, "valid": 8, "test": 120}.items():
        lines = [" ".join(rng.choices(WORDS, k=6)) + " ." for _ in range(num)]
        lines += [CODE] * 10 if split == "train" else []
        (folder / f"{split}.txt").write_text("\n".join(lines))
    return settings(
        dataset=f"text:{folder}",
        canary_levels=(20,),
        canary_digits=3,
        learning_rate=0.03,
        num_steps=120,
        log_every=120,
    )


@pytest.fixture(scope="session")
def hp(given):
    return config.part_of(given, private_text.Settings)


@pytest.fixture(scope="session")
def texts(hp):
    return private_text.load(hp)


@pytest.fixture(scope="session")
def learnt(given, tmp_path_factory):
    """The path of a checkpoint that knows all of its lines."""
    workdir = tmp_path_factory.mktemp("learnt")
    train.train_and_evaluate(given, workdir)
    return str(workdir)


@pytest.fixture(scope="session")
def fresh(given, untrained, tmp_path_factory):
    """The path of one that was not trained."""
    return untrained(tmp_path_factory.mktemp("fresh"), 4, **given)


@pytest.fixture(scope="session")
def models(learnt, fresh):
    """Both, by name."""
    return {
        name: checkpoint.load_model(path) for name, path in (("learnt", learnt), ("fresh", fresh))
    }
