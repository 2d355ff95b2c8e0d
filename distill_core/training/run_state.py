"""What classifiers' and language models' runs share: first state, checkpoint layout, provenance."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.models import CONSTANTS
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import clock, parallel
from distill_core.training import fits, inputs, loop
from distill_core.training.optimizers import Averaged, Optimizer
from distill_core.training.step import STREAM_INIT, Evaluation, TrainState, stream_key

PART = "model"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the state in training maps to the network in a checkpoint.

    Attributes:
      own: initial values of collections in `model_state` that belong to the run, not the network; a
        checkpoint keeps them with the optimiser.
      head: path in the network's `params` of the part that is trained; () for all of it.
      whole: with a head, the network's variables, of which the rest stays as it is.
      averages: the optimiser is `optimizers.Averaged`: the network has the mean of its iterates,
        and a checkpoint keeps the parameters in training with the optimiser.
    """

    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head: tuple[str, ...] = ()
    whole: Mapping[str, Any] | None = None
    averages: bool = False

    def split(self, state: TrainState):
        """(parts, train) for the checkpoint."""
        train = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        params = state.params
        if self.averages:
            train["params"], params = params, state.opt_state.mean
        if self.whole is not None:
            rest = dict(self.whole)
            params = replaced(rest.pop("params"), self.head, params)
            return {PART: {"params": params, "model_state": rest}}, train
        model_state = dict(state.model_state)
        train |= {name: model_state.pop(name) for name in self.own}
        return {PART: {"params": params, "model_state": model_state}}, train

    def merge(self, state: TrainState, parts, train) -> TrainState:
        """The inverse of `split`."""
        params, train = parts[PART]["params"], dict(train)
        if self.whole is not None:
            params = train.pop("params", at(self.head, params))
            return state.replace(params=params, **train)
        params = train.pop("params", params)
        own = {name: train.pop(name) for name in self.own}
        model_state = {**parts[PART]["model_state"], **own}
        return state.replace(params=params, model_state=model_state, **train)


def at(place: tuple[str, ...], tree: Any) -> Any:
    """The subtree at a path."""
    return functools.reduce(lambda below, name: below[name], place, tree)


def replaced(tree: Any, place: tuple[str, ...], leaf: Any) -> Any:
    """A copy of a tree with another subtree at a path."""
    if not place:
        return leaf
    return {**tree, place[0]: replaced(tree[place[0]], place[1:], leaf)}


def first_variables(
    hp: config.Steps, workdir: epath.PathLike, network: Network, mode: str = "jit"
) -> tuple[Any, Any]:
    """(params, model_state): those of `init_from` if the workdir has no checkpoint, else fresh.

    A network's constants are those of the run's checkpoint: another machine would fit others. Over
    a mesh (`mode`, as for `parallel.wrap`) fresh ones are made where they belong.
    """
    if has_checkpoint(workdir) and CONSTANTS in network.shapes():
        variables = dict(checkpoint.load_model(workdir).variables)
        return variables.pop("params"), variables
    head = getattr(hp, "reinitialise", "none") == "head"
    start, line = _starting_point(hp, workdir, mode), ""
    if head and getattr(hp, "init_from", None) is None:
        raise InputError("reinitialise", "head", "belongs to init_from, which is not given")
    if start is None or head:
        key = stream_key(jax.random.key(hp.seed), STREAM_INIT, 0)
        params, model_state = _fresh(network, key, mode)
        if start is None:
            return params, model_state
        start, line = _with_head(hp, start, network, params)
    path = str(getattr(hp, "init_from", None))
    with about("init_from", path):
        fits.check_start("init_from", path, start.network, network)
        model_state = checkpoint.fit(path, network.shapes(), _in_float32(start.variables))
    fits.say(line)
    return model_state.pop("params"), model_state


def _fresh(network: Network, key: jax.Array, mode: str) -> tuple[Any, Any]:
    if CONSTANTS in network.shapes() or not parallel.is_mesh(mode):
        return network.init(key)

    def make(key):
        params, model_state = network.init(key)
        return {"params": params, **model_state}

    model_state = parallel.make(make, mode, key)
    return model_state.pop("params"), model_state


def _in_float32(variables: Any) -> Any:
    """Half-precision leaves, as other libraries store them, in the dtype of training."""

    def convert(leaf):
        return leaf.astype(np.float32) if leaf.dtype in (np.float16, jnp.bfloat16) else leaf

    return jax.tree.map(convert, variables)


def _with_head(
    hp: Any, start: LoadedModel, network: Network, fresh: Any
) -> tuple[LoadedModel, str]:
    """(the model at `init_from` with the run's classes and a fresh head, a line that says so).

    The head are the parameters whose shapes depend on the number of classes.
    """
    if network.is_text or start.network.is_text:
        raise InputError("reinitialise", "head", "is for classifiers of images")
    names = ("num_classes", "classes", "classes_named")
    same = {name: getattr(network, name) for name in names}
    more = dataclasses.replace(network, num_classes=network.num_classes + 1, classes=())
    ours = jax.tree.leaves_with_path(network.shapes()["params"])
    others = jax.tree.leaves(more.shapes()["params"])
    name_of = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    differ = [a.shape != b.shape for (_, a), b in zip(ours, others, strict=True)]
    heads = [name_of(path) for (path, _), is_head in zip(ours, differ, strict=True) if is_head]

    def chosen(path, mine, theirs):
        return mine if name_of(path) in heads else theirs

    try:
        params = jax.tree_util.tree_map_with_path(chosen, fresh, start.variables["params"])
    except ValueError:  # the error that `checkpoint.fit` raises tells more
        params = start.variables["params"]
    described = dataclasses.replace(start.network, **same)
    loaded = dataclasses.replace(
        start, network=described, variables={**start.variables, "params": params}
    )
    line = f"init_from {hp.init_from}: {', '.join(heads)} made anew, for {network.num_classes} "
    return loaded, f"{line}classes in place of {start.network.num_classes}"


def initial_state(
    hp: config.Steps,
    workdir: epath.PathLike,
    network: Network,
    layout: Layout,
    *,
    optimizer: Optimizer | Averaged | None = None,
    mode: str = "jit",
) -> TrainState:
    """The state before the first step; also the structure of a resumed one.

    `optimizer` is that of the settings unless it is given. Over a mesh (`mode`, as for
    `parallel.wrap`) no device ever holds all of it.
    """
    tx, rng = (optimizer or Optimizer.of(hp)).make(), jax.random.key(hp.seed)
    if layout.whole is not None:
        params, model_state = at(layout.head, layout.whole["params"]), {}
    else:
        params, model_state = first_variables(hp, workdir, network, mode)
        model_state = {**model_state, **layout.own}
    if not parallel.is_mesh(mode):
        return TrainState.create(params=params, model_state=model_state, tx=tx, rng=rng)
    params = parallel.place({"params": params}, mode)["params"]
    made = parallel.make(lambda params: {"opt_state": tx.init(params)}, mode, params)
    state = TrainState(jnp.zeros((), jnp.int32), params, model_state, made["opt_state"], rng)
    return parallel.place(state, mode)


def starting_network(
    hp: config.Steps, workdir: epath.PathLike, mode: str = "jit"
) -> Network | None:
    """The network whose weights a run starts or continues from; None from scratch."""
    if has_checkpoint(workdir):
        described = checkpoint.find(workdir)[1]["parts"].get(PART)
        return None if described is None else Network.from_json(described)
    start = _starting_point(hp, workdir, mode)
    return None if start is None else start.network


def _starting_point(hp: config.Steps, workdir: epath.PathLike, mode: str) -> LoadedModel | None:
    """The model at `init_from`; None if the run resumes, or starts from fresh weights."""
    path = getattr(hp, "init_from", None)
    if not path or has_checkpoint(workdir):
        return None  # on a resume the path may hold something else by now
    with about("init_from", path):
        return checkpoint.load_model(path, sharding=parallel.placing(mode))


def check_unchanged(hp: Any, workdir: epath.PathLike, reads: Mapping[str, LoadedModel | str]):
    """Refuses, as `loop.run` does, other data than a run began with, but before it is used.

    Otherwise a data set of another size would be refused for whatever no longer fits it. A changed
    field is left to `loop.run`.
    """
    if has_checkpoint(workdir):
        began = checkpoint.find(workdir)[1]["config"]
        same = {k: each for k, each in reads.items() if began.get(k) == getattr(hp, k)}
        inputs.check(workdir, _prints(same), config.to_json(hp), resumes=False)


def _prints(reads: Mapping[str, LoadedModel | str]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else inputs.of_model(v) for k, v in reads.items()}


def describe(
    hp: config.Steps,
    workdir: epath.PathLike,
    *,
    method: str,
    network: Network,
    reads: Mapping[str, LoadedModel | str],
    note: str = "",
    mode: str = "jit",
) -> tuple[dict[str, Any], dict[str, str]]:
    """(metadata, inputs) as `loop.Checkpoints` takes them; the inputs are for `private/` alone.

    `reads` maps fields of the config to the network each names, or to a fingerprint of its data.
    `note` belongs beside every number from this data. The ancestors of a run that has a checkpoint
    are those which its ledger names.
    """
    if start := _starting_point(hp, workdir, mode):
        reads = {**reads, "init_from": start}
    if has_checkpoint(workdir):
        ancestors = checkpoint.find(workdir)[1]["ledger"].get("ancestors", [])
    else:
        about = [each.metadata for each in reads.values() if isinstance(each, LoadedModel)]
        once = {each["id"]: each["ledger"] for each in about}
        ancestors = [{"id": id, "ledger": ledger} for id, ledger in once.items()]
    metadata = {
        "method": method,
        "parts": {PART: network.to_json()},
        "config": config.to_json(hp),
        "data_note": note,
        "ledger": {"mechanisms": [], "ancestors": ancestors},
    }
    return metadata, _prints(reads)


def evaluate(
    measured: Evaluation,
    variables: Any,
    take: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]],
    num_examples: int,
    *,
    batch_size: int,
    mode: str,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Means over all examples of a split, each counted once; NaN where the total weight is 0.

    `take(rows, mask)` makes a batch of those examples, in which masked ones must not count.
    `batch_size` is global, and rounded up to the devices. Raises StoppedError once `stopped()`, in
    a run of one process.
    """
    with clock.counted("evaluation"):
        return _evaluate(measured, variables, take, num_examples, batch_size, mode, stopped)


def _evaluate(measured, variables, take, num_examples, batch_size, mode, stopped):
    devices = jax.device_count()
    batch_size = -(-min(batch_size, num_examples) // devices) * devices
    rows_here = parallel.local_rows(batch_size, mode)
    eval_step, found = parallel.wrap(measured, mode), []
    for rows, mask in sampling.eval_batches(num_examples, batch_size):
        if stopped() and jax.process_count() == 1:
            raise loop.StoppedError
        batch = take(rows[rows_here], mask[rows_here])
        found.append(eval_step(variables, {}, parallel.feed(batch, mode)))
    found = jax.device_get(found)
    totals = {name: np.sum([each[name] for each in found], 0, np.float64) for name in found[0]}
    return {name: float(t / count) if count else math.nan for name, (t, count) in totals.items()}


@contextlib.contextmanager
def about(field: str, path: str):
    """Input errors inside name the field that gave the path of a checkpoint."""
    try:
        yield
    except InputError as error:
        raise InputError(field, path, error.allowed) from None


def has_checkpoint(workdir: epath.PathLike) -> bool:
    """Whether a run would resume: the workdir has a complete checkpoint."""
    try:
        checkpoint.find(workdir)
    except InputError:
        return False
    return True
