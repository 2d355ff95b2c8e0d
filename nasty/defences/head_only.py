"""A mildly nasty teacher for little time: the nasty loss trains the classifier's last layer only.

The features of a normally trained network stay as they are, batch statistics included, so that
they and the adversary's logits are computed once for each training image; a step is then a dense
layer. It takes no augmentation, which would need the features anew at every step.

Source: our reconstruction of "just mildly nasty" teachers: frozen features, the nasty loss on the
classifier alone, started from the normal one.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distill_core import checkpoint, config, evaluate
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.models.network import LoadedModel, Network
from distill_core.training import classification, run_state
from distill_core.training.run_state import Layout, at, replaced

PyTree = Any
_BATCH = 512
_PROBES = 64


def prepare(
    run: classification.Run, adversary: LoadedModel
) -> tuple[Layout, dict[str, np.ndarray]]:
    """(what of the network is trained, what its objective reads of each training image).

    The checkpoints are of the whole network; all but its head is bitwise that of `init_from`, which
    may also be the adversary.

    Raises:
      InputError: `init_from` is missing, augmentation is on, the network shows no features or has
        no dense layer after them.
    """
    _check(run.hp)
    if run_state.has_checkpoint(run.workdir):  # said before any of the settings is used
        began = checkpoint.find(run.workdir)[1]["config"]
        config.check_resume(began, run.describe({})[0]["config"])
        # The path of init_from may hold something else by now.
        whole = dict(checkpoint.load_model(run.workdir).variables)
    else:
        params, model_state = run_state.first_variables(run.hp, run.workdir, run.network)
        whole = checkpoint.to_host({"params": params, **model_state})
    images = run.splits.train.images
    features = compute_features(run.network, whole, images)
    head = find_head(run.network, whole, images[:_PROBES], features[:_PROBES])
    layout = Layout(head=head, whole=whole)
    answers = _answers(adversary, run.network, layout, features, images)
    return layout, {"features": features, "adversary_logits": answers}


def compute_features(network: Network, variables: PyTree, images: np.ndarray) -> np.ndarray:
    """Inputs of the last dense layer, float32 [N, D], at inference and unaugmented.

    Raises:
      InputError: the network does not show them.
    """
    variables = jax.device_put(variables)
    found = []
    for rows, mask in sampling.eval_batches(len(images), min(_BATCH, len(images))):
        batch = _features(network, variables, images[rows])
        if batch is None or batch.ndim != 2:
            allowed = (
                "shows no features [B, D]: the network must sow them, "
                'self.sow("intermediates", "features", x), before its last dense layer'
            )
            raise InputError("model", network.model, allowed)
        found.append(np.asarray(batch, np.float32)[mask])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=0)
def _features(network: Network, variables: PyTree, images):
    return network.features(variables, images)


def find_head(
    network: Network, variables: PyTree, images: np.ndarray, features: np.ndarray
) -> tuple[str, ...]:
    """Where in `params` the last dense layer {"kernel" [D, C], "bias" [C]} lies.

    It is the one that makes the network's logits out of its features, tried on a few images.

    Raises:
      InputError: there is none.
    """
    loaded = LoadedModel(variables, network)
    logits = np.asarray(evaluate.compute_logits(loaded, images), np.float64)
    tolerance = (1e-3 if network.compute_dtype == "float32" else 3e-2) * (1 + np.abs(logits).max())
    for place, layer in _dense_layers(variables["params"]):
        kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
        if kernel.shape == (features.shape[1], logits.shape[1]) and (
            np.abs(features @ kernel + bias - logits).max() <= tolerance
        ):
            return place
    allowed = "its logits are no dense layer, with bias, of the features that it shows"
    raise InputError("model", network.model, allowed)


def _answers(
    adversary: LoadedModel,
    network: Network,
    layout: Layout,
    features: np.ndarray,
    images: np.ndarray,
) -> np.ndarray:
    """The adversary's logits [N, C]; without a second pass where it differs in its head at most."""
    theirs = adversary.variables
    if adversary.network == network and layout.whole is not None:
        head = at(layout.head, theirs["params"])
        ours = {**layout.whole, "params": replaced(layout.whole["params"], layout.head, head)}
        if all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(dict(theirs)))):
            return features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    return evaluate.compute_logits(adversary, images)


def _check(hp: config.Training):
    if not hp.init_from:
        allowed = "train_only_head starts from a trained network, e.g. the adversary: name it"
        raise InputError("init_from", hp.init_from, allowed)
    for name in config.fields(config.Augmentation):
        if getattr(hp, name):
            allowed = "train_only_head takes no augmentation: it computes features once"
            raise InputError(name, getattr(hp, name), allowed)


def _dense_layers(tree: PyTree, place: tuple[str, ...] = ()):
    if set(tree) == {"kernel", "bias"} and not isinstance(tree["kernel"], Mapping):
        yield place, tree
        return
    for name, below in tree.items():
        if isinstance(below, Mapping):
            yield from _dense_layers(below, (*place, name))
