"""Provenance: what an ensemble's checkpoint says of how its teachers were kept apart.

One record moves the mean of M teachers' answers by at most √2/M if it reached one of them alone. A
network of the same class that was trained as a whole, distilled, or started from another, has no
bound below √2, and its weights look alike: so √2/M is claimed only where `dpdfd.ensemble` wrote
down how it dealt the records. Our reconstruction.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from distill_core import config
from distill_core.checkpoint import LoadedModel
from distill_core.config import InputError
from distill_core.privacy import ledger as ledger_lib
from dpdfd.ensemble.partitions import RULE

METHOD = "dpdfd.ensemble"
ENSEMBLE = "dpdfd.ensemble:Ensemble"
_NEEDED = "needs a checkpoint of dpdfd.ensemble, whose teachers share no record"
_FIELDS = {
    "partition": config.choice(RULE),
    "disjoint": config.boolean(),
    "num_examples": config.integer(1),
    "num_teachers": config.integer(1),
    "num_steps": config.integer(1),
}


def describe(num_examples: int, num_teachers: int, num_steps: int) -> dict[str, Any]:
    """What `dpdfd.ensemble` writes into its metadata as "ensemble"; N examples, M teachers."""
    sizes = {"num_examples": num_examples, "num_teachers": num_teachers, "num_steps": num_steps}
    return {"partition": RULE, "disjoint": True, **sizes}


def check(path: str, model: LoadedModel) -> dict[str, Any]:
    """The values of `describe` of an ensemble, if a record can have reached one teacher alone.

    Raises:
      InputError: on `teacher`: another network; another binary's checkpoint, or one made from
        others; no such values or wrong ones; not all teachers are fitted (when a run ends early may
        depend on every record, as where one teacher diverges).
    """

    def refuse(what: str) -> NoReturn:
        raise InputError("teacher", path, f"{what}; 'record_ensemble' {_NEEDED}")

    about: Mapping[str, Any] = model.metadata
    if model.network.model != ENSEMBLE:
        refuse("is a single network")
    if about.get("method") != METHOD:
        refuse(f"was trained by {about.get('method')}, which does not keep teachers apart")
    if ledger_lib.read(about["ledger"]) != ledger_lib.Ledger():
        refuse("is made from other checkpoints")
    try:
        found = config.validate(about.get("ensemble", {}), _FIELDS)
    except InputError as error:
        refuse(f"does not say how its teachers were kept apart ({error})")
    if not found["disjoint"]:
        refuse("says that its teachers share records")
    if found["num_teachers"] != model.network.model_kwargs["num_teachers"]:
        refuse(f"says that it has {found['num_teachers']} teachers and has another number")
    if about["step"] != found["num_steps"]:
        steps = f"{about['step']:,} of {found['num_steps']:,} steps"
        raise InputError("teacher", path, f"is not finished: {steps}; resume dpdfd.ensemble there")
    return found
