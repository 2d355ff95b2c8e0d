"""A mildly nasty teacher for little time: the nasty loss trains the classifier's last layer only.

The features of a normally trained network stay as they are, batch statistics included, so that
they and the adversary's logits are computed once for each training image; a step is then a dense
layer. It takes no augmentation, which would need the features anew at every step.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config, data, evaluate, models
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.data.images import preprocess
from distill_core.models import spec
from distill_core.runtime import parallel
from distill_core.training import classification, fitting, loop, metrics, optimizers, run_state
from distill_core.training.step import TrainState, make_train_step
from nasty.losses import nasty_loss

PyTree = Any
_BATCH = 512
_PROBES = 64


def train(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    method: str,
    dataset: data.Dataset,
    splits: classification.Splits,
    adversary: checkpoint.LoadedModel,
    mode: str | None = None,
) -> dict[str, Any]:
    """Trains the head to the end or resumes; returns what `classification.train` does.

    The checkpoint is that of the whole network; all but its head is bitwise that of `init_from`.

    Source: our reconstruction of "just mildly nasty" teachers: frozen features, the nasty loss on
    the classifier alone, started from the normal one.

    Args:
      hp: values of `config.TRAINING`, with `init_from`, and `temperature`, `omega`.
      workdir, method, dataset, splits, mode: as for `classification.train`.
      adversary: the normal network to get away from; may be that of `init_from`.

    Raises:
      InputError: `init_from` misses, augmentation is on, the network shows no features or has no
        dense layer after them; and what `classification.train` raises.
    """
    mode = parallel.choose_mode(mode)
    _check(hp)
    network = classification.check(hp, dataset, workdir, mode)
    metadata, reads = classification.describe(
        hp,
        workdir,
        method=method,
        dataset=dataset,
        splits=splits,
        network=network,
        reads={"adversary": adversary},
    )
    if run_state.has_checkpoint(workdir):  # said before any of the settings is used
        config.check_resume(checkpoint.find(workdir)[1]["config"], metadata["config"])
    step_fn, tx = _compiled_step(
        json.dumps({name: hp[name] for name in run_state.OPTIMIZER_FIELDS}), mode
    )
    body = _starting_variables(hp, workdir, network, tx)
    images = splits.train.images
    features = compute_features(network, body, images)
    place = find_head(network, body, images[:_PROBES], features[:_PROBES])
    answers = _answers(adversary, network, body, place, features, images)
    params = body.pop("params")
    head = _at(place, params)
    rng = jax.random.key(hp["seed"])

    def split(state):
        whole = _replaced(params, place, state.params)
        parts = {run_state.PART: {"params": whole, "model_state": body}}
        return parts, {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}

    def merge(state, parts, train):
        found = parts[run_state.PART]["params"]
        return state.replace(params=_at(place, found), **train)

    def batch_fn(step):
        rows = fitting.batch_rows(hp, step, len(features))
        batch = {
            "features": features[rows],
            "adversary_logits": answers[rows],
            "label": splits.train.labels[rows],
        }
        return parallel.feed(batch, mode)

    return fitting.fit(
        hp,
        workdir,
        metadata=metadata,
        reads=reads,
        validation=splits.validation,
        test=splits.test,
        state=TrainState.create(params=head, model_state={}, tx=tx, rng=rng),
        step_fn=step_fn,
        batch_fn=batch_fn,
        frozen={name: jnp.float32(hp[name]) for name in ("temperature", "omega")},
        layout=loop.Layout(split, merge),
        mode=mode,
    )


def compute_features(
    network: Mapping[str, Any], variables: PyTree, images: np.ndarray
) -> np.ndarray:
    """Inputs of the last dense layer, float32 [N, D], at inference and unaugmented.

    Raises:
      InputError: the network does not show them.
    """
    compute = _jitted_features(json.dumps(network))
    variables = jax.device_put(variables)
    found = []
    for rows, mask in sampling.eval_batches(len(images), min(_BATCH, len(images))):
        batch = compute(variables, images[rows])
        if batch is None or batch.ndim != 2:
            allowed = (
                "shows no features [B, D]: the network must sow them, "
                'self.sow("intermediates", "features", x), before its last dense layer'
            )
            raise InputError("model", network["model"], allowed)
        found.append(np.asarray(batch, np.float32)[mask])
    return np.concatenate(found)


def find_head(
    network: Mapping[str, Any], variables: PyTree, images: np.ndarray, features: np.ndarray
) -> tuple[str, ...]:
    """Where in `params` the last dense layer {"kernel" [D, C], "bias" [C]} lies.

    It is the one that makes the network's logits out of its features, tried on a few images.

    Raises:
      InputError: there is none.
    """
    apply = classification.cached_apply(json.dumps(network))
    logits = np.asarray(jax.jit(apply)(variables, images), np.float64)
    rounded = network.get("compute_dtype", "float32") != "float32"
    tolerance = (3e-2 if rounded else 1e-3) * (1 + np.abs(logits).max())
    for place, layer in _dense_layers(variables["params"]):
        kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
        if kernel.shape == (features.shape[1], logits.shape[1]) and (
            np.abs(features @ kernel + bias - logits).max() <= tolerance
        ):
            return place
    allowed = "its logits are no dense layer, with bias, of the features that it shows"
    raise InputError("model", network["model"], allowed)


def _answers(
    adversary: checkpoint.LoadedModel,
    network: Mapping[str, Any],
    variables: PyTree,
    place: tuple[str, ...],
    features: np.ndarray,
    images: np.ndarray,
) -> np.ndarray:
    """The adversary's logits [N, C]; without a second pass where it has the same features."""
    if _same_features(adversary, network, variables, place):
        head = _at(place, adversary.variables["params"])
        return features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    return evaluate.compute_logits(adversary, images)


def _same_features(adversary, network, variables, place) -> bool:
    """Whether two networks differ in their heads at most."""
    if json.dumps(adversary.spec, sort_keys=True) != json.dumps(network, sort_keys=True):
        return False
    theirs = dict(adversary.variables)
    head = _at(place, theirs["params"])
    ours = {**variables, "params": _replaced(variables["params"], place, head)}
    return all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs)))


def _check(hp: Mapping[str, Any]):
    if not hp["init_from"]:
        allowed = "train_only_head starts from a trained network, e.g. the adversary: name it"
        raise InputError("init_from", hp["init_from"], allowed)
    for name in config.AUGMENTATION:
        if hp[name]:
            allowed = "train_only_head takes no augmentation: it computes features once"
            raise InputError(name, hp[name], allowed)


def _starting_variables(hp, workdir, network, tx) -> dict[str, PyTree]:
    """The whole network, on the host: of the run's own checkpoint, else of `init_from`."""
    if run_state.has_checkpoint(workdir):  # the path of init_from may hold something else by now
        return dict(checkpoint.load_model(workdir).variables)
    state = run_state.initial_state(hp, workdir, network, tx)
    return checkpoint.to_host({"params": state.params, **state.model_state})


@functools.lru_cache(maxsize=8)
def _jitted_features(network: str):
    described = json.loads(network)
    module = spec.build(described)
    mean, std = tuple(described["mean"]), tuple(described["std"])

    @jax.jit
    def compute(variables, images):
        pixels = preprocess.preprocess(images, mean, std)
        return models.features(module, *spec.rounded(described, variables, pixels))

    return compute


@functools.lru_cache(maxsize=8)
def _compiled_step(optimizer: str, mode: str):
    """(wrapped step, optimiser) of the head alone, the same for all networks."""
    axis = parallel.axis_name(mode)
    tx = optimizers.make_optimizer(**json.loads(optimizer))

    def loss_fn(params, model_state, frozen, batch, key):
        logits = batch["features"] @ params["kernel"] + params["bias"][None]
        values = nasty_loss(
            logits,
            batch["adversary_logits"],
            batch["label"],
            temperature=frozen["temperature"],
            omega=frozen["omega"],
        )
        aux = {"accuracy": metrics.correct(logits, batch["label"])}
        return values, jnp.ones_like(values), model_state, aux

    return parallel.wrap(make_train_step(loss_fn, tx, axis_name=axis), mode, donate=True), tx


def _dense_layers(tree: PyTree, place: tuple[str, ...] = ()):
    if set(tree) == {"kernel", "bias"} and not isinstance(tree["kernel"], Mapping):
        yield place, tree
        return
    for name, below in tree.items():
        if isinstance(below, Mapping):
            yield from _dense_layers(below, (*place, name))


def _at(place: tuple[str, ...], tree: PyTree) -> PyTree:
    return functools.reduce(lambda below, name: below[name], place, tree)


def _replaced(tree: PyTree, place: tuple[str, ...], leaf: PyTree) -> PyTree:
    """A copy of the tree with another subtree at one place."""
    if not place:
        return leaf
    return {**tree, place[0]: _replaced(tree[place[0]], place[1:], leaf)}
