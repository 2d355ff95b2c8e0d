"""Moments of the private images, bought once per run and kept.

`<workdir>/private/moments.npz` keeps them with the run that they belong to, and is written before
anything is made of them, so that a resume buys nothing. `<workdir>/moments.npz` holds them alone:
they may be published, and draw further images (`dpdfd.evaluate`).
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_core import config
from distill_core.checkpoint import integrity
from distill_core.config import InputError
from distill_core.data.images.dataset import Split
from distill_core.privacy import noise
from distill_core.runtime import parallel
from distill_core.training import dp_settings
from dpdfd.priors import moments
from dpdfd.priors.moments import Moments
from dpdfd.privacy.bought import has_begun, kept_bytes, once
from dpdfd.settings import Settings

FILE = "moments.npz"


def bought_moments(
    hp: Settings,
    workdir: epath.Path,
    private: Split,
    *,
    num_classes: int,
    noise_multiplier: float,
    decides: Mapping[str, Any],
    charge: Callable[[], None],
) -> Moments:
    """The moments of a run: read, or else bought of the `private` images.

    `decides` is JSON-able: settings, data and teacher by content. `charge` writes down that they
    are bought, before they are. Raises InputError on `moments.size` or `moments.masked`, or where
    the workdir keeps another run's.
    """
    wanted, seed = hp.moments, hp.noise_seed
    assert wanted is not None
    with config.within("moments"):  # every process, so that none waits for one that stopped
        most = {"size": config.integer(1, private.images.shape[1])}
        config.validate({"size": wanted.size}, most)
    live = dp_settings.live_records(wanted.masked, len(private), "moments.masked")

    def buy() -> bytes:
        charge()
        return moments.release(
            private.images,
            private.labels,
            num_classes=num_classes,
            size=wanted.size,
            norm=wanted.norm,
            noise_multiplier=noise_multiplier,
            live=live,
            random=os.urandom if seed is None else np.random.default_rng(seed).bytes,
        ).to_bytes()

    begun = has_begun(workdir) or (workdir / FILE).exists()
    found = once(workdir, FILE, decides, buy, begun=begun)
    if parallel.is_main():
        integrity.write_atomically(workdir / FILE, found)
    return Moments.from_bytes(found)


def published_moments(workdir: epath.Path) -> Moments:
    """What `<workdir>/moments.npz` holds.

    Raises InputError on `checkpoint` if it is missing, or not what the run bought.
    """
    path = workdir / FILE
    if not path.exists():
        allowed = f"its prior draws from {path}, which is missing"
        raise InputError("checkpoint", str(workdir), allowed)
    found, kept = path.read_bytes(), workdir / noise.FOLDER / FILE
    published = Moments.from_bytes(found)
    if kept.exists() and kept_bytes(kept) != found:
        allowed = f"its prior draws from {path}, which is not what the run bought"
        raise InputError("checkpoint", str(workdir), allowed)
    return published
