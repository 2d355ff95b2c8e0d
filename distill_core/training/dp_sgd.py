"""Differentially private training, as a config's group `dp` asks for it.

Each step takes a batch, clips every record's gradient to the L2 norm C, sums, adds Gaussian noise
once and divides by `batch_size`. With `dp.sampling` "poisson" the batch is a secret Poisson sample
of expected size `batch_size`. With "full" it is all N records: noisy gradient descent, T steps of
which are one Gaussian mechanism of μ = √T/σ exactly (Dong et al., "Gaussian Differential Privacy",
2019), so that a run can take a stated share of a budget's μ². Networks that are one linear layer
on fixed features then train in closed form (`linear_gradient_sum`). Sources: Abadi et al., "Deep
Learning with Differential Privacy", 2016; multiplicity of augmentations: De et al., "Unlocking
High-Accuracy Differentially Private Image Classification through Scale", 2022.

Formal guarantee: every checkpoint and everything that a run logs is (ε, δ)-differentially private
under zero-out adjacency: a record is replaced by an empty one, of no effect, at the same index
(the index decides its augmentation; N the sampling rate, or the divisor). It assumes that a record
affects one example alone; that the number of records, the configuration, the preprocessing and the
test data are public; that the noise's root key (`<workdir>/private`, 64 bits) stays secret, and
that its generators, which are not cryptographic, are ideal; and it takes float32 noise for real
numbers.
The mean of the last iterates (`dp.average`) costs nothing more. Choosing hyper-parameters on the
records is not covered. Neither are time and memory, which depend on the size of a Poisson batch.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.models import count_parameters
from distill_core.models.network import Network
from distill_core.privacy import accountants, poisson
from distill_core.privacy import ledger as ledger_lib
from distill_core.privacy import noise as noise_lib
from distill_core.privacy.per_example import slack
from distill_core.runtime import parallel
from distill_core.training import dp_settings, fits, loop
from distill_core.training.optimizers import Averaged, Optimizer

# Two uses of the run's root: the noise, and who is in a batch.
_NOISE, _SAMPLING = 0, 1
_ROUNDING = 1e-6  # of a budget, as `ledger.affordable_steps` allows
_LOUD = 0.5  # noise, in units of what the gradients can be together
_MANY = 300_000  # steps for which calibrating the noise takes more than seconds


class PrivateRun:
    """One differentially private training run: its noise, its batches, its ledger.

    Attributes:
      augmentations: copies of a record in a step.
      metadata: for the checkpoints; its config also holds `dp.num_steps` and `dp.noise_multiplier`,
        so that a resume under another plan is refused by name.
      optimizer: that of the settings, which averages its last iterates if `dp.average` says so.
      reads: fingerprint of the group's own file, for `loop.run`.
    """

    def __init__(
        self,
        hp: config.Steps,
        dp: dp_settings.Dp,
        workdir: epath.PathLike,
        metadata: Mapping[str, Any],
        network: Network,
        *,
        data: Mapping[str, np.ndarray],
        mode: str,
    ):
        """Checks and calibrates; writes nothing. `data` are the private arrays, [N, …] each.

        Raises:
          InputError: on `dp.…`, `parallel`, `batch_size`, `num_validation`, `model`, or on
            `init_from` if no ε could be claimed for what is trained from it.
        """
        parallel.check_per_example(mode)
        num = len(next(iter(data.values())))
        dp_settings.check(hp, dp, network, num)
        self.augmentations: int = dp.augmentations
        self.optimizer: Optimizer | Averaged = Optimizer.of(hp)
        if dp.average > 0:
            count = max(1, round(dp.average * hp.num_steps))
            self.optimizer = Averaged(self.optimizer, hp.num_steps - count)
        self._full = dp.sampling == dp_settings.FULL
        self._hp, self._dp, self._num, self._mode = hp, dp, num, mode
        self._workdir, self._rate = workdir, hp.batch_size / num
        self._live = dp_settings.live_records(dp.masked, num)
        self._before = _before(metadata["ledger"], public=dp.public_start)
        inherited = self._inherited()
        self._noise_multiplier = dp.noise_multiplier or self._calibrated(inherited)
        plan = {"dp.num_steps": hp.num_steps, "dp.noise_multiplier": self._noise_multiplier}
        self.metadata = {
            **metadata,
            "config": {**metadata["config"], **plan},
            "ledger": self._before.to_json(),
        }
        self.reads = {"dp": checkpoint.digest(self._live)}
        decides = {k: v for k, v in self.metadata["config"].items() if k not in config.MAY_CHANGE}
        self._decides = {
            "config": {**decides, **plan},
            "network": network.to_json(),
            "data": checkpoint.digest({**data, "live": self._live}),
            "ancestors": [ancestor.id for ancestor in self._before.ancestors],
        }
        self._size = count_parameters(network.shapes()["params"])
        self._noise: noise_lib.Noise | None = None
        self._root: tuple[int, ...] = ()
        self._kept: dict[str, Any] | None = None  # all records, on the devices
        devices = jax.device_count()
        if self._full:
            self._rows = -(-num // devices) * devices
        else:
            self._rows = poisson.capacity(self._rate, num, hp.num_steps, multiple=devices)

    def plan(self, frozen: Mapping[str, Any]) -> Callable[[int], loop.Plan]:
        """For `loop.run`: opens the noise under the run's lock, and tells where the budget ends."""

        def plan(start: int) -> loop.Plan:
            self._noise = noise_lib.open_noise(
                self._workdir,
                decides=self._decides,
                start=start,
                mode=self._mode,
                seed=self._dp.seed,
            )
            secret = jax.random.fold_in(self._noise.key, _SAMPLING)
            self._root = tuple(int(word) for word in np.ravel(jax.random.key_data(secret)))
            end = start + ledger_lib.affordable_steps(
                self._charged(start),
                self._entry(),
                self._dp.epsilon,
                self._dp.delta,
                most=self._hp.num_steps - start,
            )
            if self._dp.share < 1:
                end = max(start, min(end, self._steps_of_share() - self._noise.replayed))
            self._say(end)
            dp = {
                "key": jax.random.fold_in(self._noise.key, _NOISE),
                "norm": jnp.float32(self._dp.norm),
                "noise_multiplier": jnp.float32(self._noise_multiplier),
                "batch_size": jnp.float32(self._hp.batch_size),
            }
            return loop.Plan({**frozen, "dp": dp}, lambda s: self._ledger(s).to_json(), end)

        return plan

    def batch(self, step: int, take: Callable[[np.ndarray], Mapping[str, Any]]) -> dict[str, Any]:
        """A step's batch, as the step takes it (`parallel.feed`); called after `plan`.

        Records on disk that the step's noise is drawn. `take(records int64 [r]) -> {name: [r, …]}`
        is called once if every step takes all records: then they stay on the devices.
        """
        assert self._noise is not None, "a private run's plan comes before its batches"
        self._noise.reserve(step)
        if self._full:
            kept = self._kept
            if kept is None:
                kept = parallel.keep(self._padded(np.arange(self._num), take), self._mode)
                self._kept = kept
            steps = np.full(jax.local_device_count(), step, np.int32)
            return {**kept, "step": parallel.feed(steps, self._mode)}
        batch = self._padded(poisson.draw(self._root, step, self._rate, self._num), take)
        batch["step"] = np.full(len(batch["where"]), step, np.int32)
        return parallel.feed(batch, self._mode)

    def _padded(self, records: np.ndarray, take: Callable) -> dict[str, Any]:
        """This process's rows of a batch of `records`, {"rows", "where"}."""
        records, where = poisson.pad(records, self._rows)
        where &= self._live[records]
        here = parallel.local_rows(len(records), self._mode)
        records, where = records[here], where[here]
        return {"rows": {**take(records), "index": records.astype(np.int32)}, "where": where}

    def _entry(self, noise_multiplier: float | None = None) -> ledger_lib.Entry:
        """What one step charges."""
        norm = self._dp.norm
        return ledger_lib.Entry(
            ledger_lib.GAUSSIAN if self._full else ledger_lib.POISSON_GAUSSIAN,
            (noise_multiplier or self._noise_multiplier) * norm,
            norm * (1 + slack(self._hp.batch_size)),
            1,
            "record",
            ledger_lib.ZERO_OUT,
            None if self._full else self._rate,
            "training_gradients, clip",
            self._hp.batch_size,
            num_examples=self._num,
        )

    def _inherited(self) -> list[accountants.Noised]:
        """The mechanisms of the run's ancestors."""
        probe = dataclasses.replace(self._entry(1.0), note="probe")
        try:
            charged = ledger_lib.charged(self._before.charge(probe))
        except InputError as error:
            allowed = f"{error.allowed} (checkpoint {str(error.given)[:12]}); set "
            allowed += "dp.public_start=True if it saw only public data"
            given = getattr(self._hp, "init_from", None)
            raise InputError("init_from", given, allowed) from None
        return [each.noised() for each in charged if each != probe]

    def _calibrated(self, inherited: list[accountants.Noised]) -> float:
        """std/C at which the run's steps, added to those of its ancestors, spend ε.

        It is at least what keeps the run itself within its share.
        """
        steps = self._entry(1.0).times(self._hp.num_steps)
        if steps.count > _MANY and not self._full:
            fits.say(f"calibrates noise for {steps.count:,} steps, which takes a while")
        with config.within("dp"):
            found = accountants.calibrate(
                [steps.noised()], self._dp.epsilon, self._dp.delta, spent=inherited
            )
        if self._dp.share < 1:
            found = max(found, math.sqrt(steps.count) * steps.noised().ratio / self._share_mu())
        return accountants.round_up(found)

    def _share_mu(self) -> float:
        """μ that the run itself may have: its share of the budget's μ²."""
        with config.within("dp"):
            whole = accountants.gaussian_mu(self._dp.epsilon, self._dp.delta)
        return math.sqrt(self._dp.share) * whole

    def _steps_of_share(self) -> int:
        """How many steps the run's share affords, whatever its ancestors spent."""
        allowed = (self._share_mu() / self._entry().noised().ratio) ** 2
        return math.floor(allowed * (1 + _ROUNDING))

    def _ledger(self, step: int) -> ledger_lib.Ledger:
        found = self._charged(step)
        return found if self._dp.seed is None else found.expose(ledger_lib.SEED_GIVEN)

    def _charged(self, step: int) -> ledger_lib.Ledger:
        assert self._noise is not None
        count = step + self._noise.replayed
        charged = self._before.charge(self._entry().times(count)) if count else self._before
        return dataclasses.replace(charged, restarts=self._noise.restarts)

    def _say(self, end: int):
        dp, num_steps = self._dp, self._hp.num_steps
        claim = f"asked for epsilon {dp.epsilon:g} at delta {dp.delta:g}, {ledger_lib.ZERO_OUT}"
        if dp.seed is not None:
            claim = f"no epsilon holds, {ledger_lib.SEED_GIVEN}"
        ends = f"; the budget ends at step {end} of {num_steps}" if end < num_steps else ""
        batches = f"records sampled with probability {self._rate:.4g}"
        if self._full:
            batches = f"all {self._num:,} records in every step"
        if dp.share < 1:
            claim += f", {dp.share:g} of its mu^2 for this run"
        # Noise in D entries is √D as long as in one; B gradients are at most B norms long.
        ratio = self._noise_multiplier * math.sqrt(self._size) / self._hp.batch_size
        loud = ": hardly anything can be learnt under it" if ratio >= _LOUD else ""
        fits.say(
            f"{claim}; noise of {self._noise_multiplier:.4g} times the norm {dp.norm:g}, "
            f"{batches}{ends}; in a step it is {ratio:.2g} times as long as the gradients can be "
            f"together{loud}"
        )


def _before(ledger: Mapping[str, Any], *, public: bool) -> ledger_lib.Ledger:
    """The ledger that the run inherits; `public` says that its ancestors saw no private data."""
    found = ledger_lib.read(ledger)
    if not public:
        return found
    ancestors = tuple(
        dataclasses.replace(each, ledger=dataclasses.replace(each.ledger, public=True))
        for each in found.ancestors
    )
    return dataclasses.replace(found, ancestors=ancestors)


def report(workdir: epath.PathLike) -> dict[str, Any]:
    """What a private run's newest checkpoint cost, for tables; prints it, too.

    Returns:
      {"epsilon", "replace_one_epsilon", "privacy_unit", "adjacency", "delta", "noise_multiplier"}
      at the δ of the run's config; {} if no step was done, or no ε holds.
    """
    _, metadata = checkpoint.find(workdir)
    ledger, settings = metadata["ledger"], metadata["config"]
    if not ledger["mechanisms"]:
        return {}
    try:
        entry, delta = ledger_lib.charged(ledger)[0], settings["dp"]["delta"]
    except InputError as error:
        fits.say(error.allowed)
        return {}
    spent = ledger_lib.epsilon(ledger, delta)
    replaced = ledger_lib.epsilon(ledger, delta, replace_one=True)
    fits.say(
        f"epsilon {spent:.4g} at delta {delta:g}, per {entry.unit}, {entry.adjacency}; "
        f"{replaced:.4g} with one {entry.unit} replaced by another"
    )
    return {
        "epsilon": spent,
        "replace_one_epsilon": replaced,
        "privacy_unit": entry.unit,
        "adjacency": entry.adjacency,
        "delta": delta,
        "noise_multiplier": settings["dp.noise_multiplier"],
    }
