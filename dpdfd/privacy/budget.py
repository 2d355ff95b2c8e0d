"""A conversion's privacy budget: calibrated noise, the ledger, and the step at which it ends."""

import bisect
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from distill_core import config
from distill_core.config import InputError
from distill_core.privacy import accountants, composition
from distill_core.privacy import ledger as ledger_lib
from distill_core.privacy import noise as noise_lib
from distill_core.privacy.ledger import Entry, Ledger
from distill_core.runtime import parallel
from distill_core.training import fits
from distill_core.training.loop import Plan
from dpdfd.priors import moments
from dpdfd.privacy import odometer
from dpdfd.privacy.units import MOMENTS_NOTE, UNITS, Release, calibrate
from dpdfd.settings import Settings

# Noise, in units of what it covers, from which on a warning is due. Of a vector's many entries the
# student reads few directions, so that its length may exceed what it covers.
_LOUD, _LOUD_VECTOR = 0.5, 2.0


class Budget:
    """What a run releases, and when.

    Attributes:
      release: a single release; None where no noise is drawn.
      noise_multiplier: of its noise; 0.0 without.
      moments: what the release of the private images' moments charges; None if none are bought.
      releases_at: step -> how many releases the steps before it made.
    """

    def __init__(
        self,
        hp: Settings,
        release: Release | None,
        releases_at: Callable[[int], int],
        teacher: Mapping[str, Any],
    ):
        """`teacher` is its checkpoint's metadata.

        Raises:
          InputError: the teacher's own ledger does not carry the claim.
        """
        self.release, self.releases_at, self._hp, self._teacher = release, releases_at, hp, teacher
        self._noise: noise_lib.Noise | None = None
        # Of the same teacher, this one among them.
        self._conversions: tuple[tuple[str, Entry], ...] = ()
        self.noise_multiplier = 0.0
        self.moments: Entry | None = None
        if release is not None:
            total = releases_at(hp.num_steps)
            found = calibrate(release, epsilon=hp.epsilon or 0.0, delta=hp.delta, steps=total)
            self.noise_multiplier = accountants.round_up(found)
        elif hp.privacy_unit == "record_dp_teacher":
            entries = self._check_dp_teacher()
            if hp.moments:
                self.moments = self._moments_entry(entries)

    @property
    def answer_std(self) -> float:
        """Standard deviation of the noise in each entry of an answer; 0.0 without."""
        return 0.0 if self.release is None else self.release.charge(self.noise_multiplier).std

    def say(self, num_parameters: int):
        """Prints how strong the noise is beside what it covers, before anything is spent."""
        hp, sigma = self._hp, self.noise_multiplier
        if self.moments:
            fits.say(f"buys class moments under noise of {self.moments.std:.3g} times their bound")
        if self.release is None:
            return
        loud = _LOUD
        if hp.mechanism == "parameters":
            loud = _LOUD_VECTOR
            entry = self.release.charge(sigma)
            ratio = entry.std * math.sqrt(num_parameters) / hp.norm
            what = f"noise {ratio:.2g} times as long as the mean of the teachers' heads can be"
        elif hp.mechanism == "answers":
            ratio = self.answer_std
            what = f"noise of {ratio:.2g} in each entry of an answer, whose entries add up to 1"
        elif hp.mechanism == "logit":
            ratio = sigma * hp.norm
            what = f"noise of {ratio:.2g} in each entry of an answer, whose error is at most 1"
        else:
            ratio = sigma * math.sqrt(num_parameters) / hp.batch_size
            what = f"noise {ratio:.2g} times as long as {hp.batch_size} gradients can be together"
        advice = ""
        if ratio >= loud and hp.privacy_unit != "query":
            advice = (
                ": little of the teacher is left under it. A teacher trained with dp may be asked "
                "freely: privacy_unit 'record_dp_teacher'"
            )
        elif ratio >= loud:
            advice = ": little of the teacher is left under it"
        fits.say(f"{what}{advice}")

    def ledger(self, count: int, restarts: int = 0) -> Ledger:
        """After `count` releases; without a claim where the noise's seed was given."""
        theirs = ledger_lib.read(self._teacher["ledger"])
        teacher = self._teacher["id"]
        if self.release is None:
            public = self._hp.privacy_unit == "record_dp_teacher" and not self.moments
            found = Ledger(public=public).descend(teacher, theirs)
            if self.moments:
                found = found.charge(self.moments)
                found = dataclasses.replace(found, conversions=self._conversions)
                if self._hp.noise_seed is not None:
                    found = found.expose(ledger_lib.SEED_GIVEN)
            return found
        entry = self.release.charge(self.noise_multiplier)
        spent = Ledger().descend(teacher, theirs, role=ledger_lib.BEHIND_MECHANISM)
        spent = spent.charge(entry.times(count)) if count else spent
        if self._hp.noise_seed is not None:
            spent = spent.expose(ledger_lib.SEED_GIVEN)
        return dataclasses.replace(spent, restarts=restarts, conversions=self._conversions)

    def plan(
        self,
        workdir: epath.Path,
        frozen: Mapping[str, Any],
        mode: str,
        decides: Mapping,
        bought: Callable[[], int] = lambda: 0,
    ):
        """`loop.run`'s plan; None where no noise is drawn.

        `decides` is the checkpoint's config and the teacher by content; `bought` says how many
        releases are kept, which no resume buys again.
        """
        if self.release is None or self._hp.mechanism == "parameters":
            return None
        release = self.release
        decides = {name: v for name, v in decides.items() if name not in config.MAY_CHANGE}

        def plan(start: int) -> Plan:
            noise = noise_lib.open_noise(
                workdir,
                decides=decides,
                start=max(self.releases_at(start), bought()),
                mode=mode,
                seed=self._hp.noise_seed,
                repeats=self._hp.mechanism != "answers",
            )
            self._noise = noise
            entry, delta = release.charge(self.noise_multiplier), self._hp.delta
            # Never more than was planned, and charged to the teacher.
            afford = ledger_lib.affordable_steps(
                Ledger(), entry, self._hp.epsilon or 0.0, delta, most=self._total()
            )
            if noise.id and self._hp.noise_seed is None:
                self._charge_teacher(noise.id, entry.times(self._total()), delta)
            last = self._last_step(afford - noise.replayed)
            if last < self._hp.num_steps and parallel.is_main():
                again = f"{noise.replayed} releases were drawn before and are charged again"
                print(f"{again}: the budget ends at step {max(start, last)}", flush=True)
            scales = {"norm": self._hp.norm, "noise_multiplier": self.noise_multiplier}
            return Plan(
                {**frozen, "noise": {"key": noise.key, **scales}},
                lambda step: self.ledger(
                    self.releases_at(step) + noise.replayed, noise.restarts
                ).to_json(),
                last,
            )

        return plan

    def charge_once(self):
        """Charges a single release to the teacher's account, before its noise is drawn."""
        entry = self.moments
        if self.release is not None:
            entry = self.release.charge(self.noise_multiplier)
        if entry is not None and self._hp.noise_seed is None:
            self._charge_teacher(os.urandom(8).hex(), entry, self._hp.delta)

    def read_conversions(self):
        """For a run that charged the teacher when it began."""
        if self._hp.noise_seed is None:
            self._conversions = odometer.read(self._hp.teacher)

    def _charge_teacher(self, conversion: str, entry: Entry, delta: float):
        """Charges all that the run may release, before it asks for anything; prints the total."""
        self._conversions = odometer.charge(self._hp.teacher, conversion, entry)
        total = composition.total(self.ledger(0), delta)
        if total is not None:
            print(f"{total.says} (δ = {delta:g})", flush=True)

    def reserve(self, release: int, ahead: int):
        """Before the noise of a release, counted from 0, is drawn."""
        if self._noise is not None:  # what is never drawn need not be charged after a restart
            self._noise.reserve(release, min(ahead, self._total() - release))

    def _total(self) -> int:
        return self.releases_at(self._hp.num_steps)

    def _last_step(self, affordable: int) -> int:
        steps = range(self._hp.num_steps + 1)  # releases_at rises
        return max(0, bisect.bisect_right(steps, affordable, key=self.releases_at) - 1)

    def _moments_entry(self, spent: tuple[Entry, ...]) -> Entry:
        """With the noise at which moments cost what the teacher left of ε."""
        hp = self._hp
        num = max(each.num_examples or 1 for each in spent)
        entry = Entry(
            ledger_lib.GAUSSIAN,
            1.0,
            moments.SENSITIVITY,
            1,
            *UNITS["record_dp_teacher"],
            note=MOMENTS_NOTE,
            num_examples=num,
        )
        noised = [each.noised() for each in spent]
        found = accountants.calibrate([entry.noised()], hp.epsilon or 0.0, hp.delta, spent=noised)
        if found > moments.MOST_NOISE:
            allowed = f"needs noise above {moments.MOST_NOISE:g} times the bound of moments"
            raise InputError("epsilon", hp.epsilon, allowed)
        return dataclasses.replace(entry, std=accountants.round_up(found))

    def _check_dp_teacher(self) -> tuple[Entry, ...]:
        given = self._hp.teacher
        try:
            entries = ledger_lib.charged(self.ledger(0))  # of the teacher alone
        except InputError as error:
            allowed = f"its ledger makes no claim ({error.allowed}); train it with dp"
            raise InputError("teacher", given, allowed) from None
        ledger_lib.check_delta(self._hp.delta, *(each.num_examples for each in entries))
        if (entries[0].unit, entries[0].adjacency) != UNITS["record_dp_teacher"]:
            allowed = "was not trained with dp; its ledger is about another unit"
            raise InputError("teacher", given, allowed)
        return entries
