"""Moments of the private images, bought once per run and kept.

`<workdir>/private/moments.npz` keeps them with the run that they belong to, and is written before
anything is made of them, so that a resume buys nothing. `<workdir>/moments.npz` holds them alone:
they may be published, and draw further images (`dpdfd.evaluate`). Noise that was drawn before a
crash and never kept has told nobody anything.
"""

import io
import os
from collections.abc import Mapping
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
) -> Moments:
    """The moments of a run: read, or else bought of the `private` images.

    `decides` is JSON-able: settings, data and teacher by content. Raises InputError on
    `moments.size` or `moments.masked`, or where the workdir keeps another run's.
    """
    assert hp.moments is not None
    path, run = workdir / noise.FOLDER / FILE, noise.digest(decides)
    seed = hp.noise_seed
    with config.within("moments"):  # every process, so that none waits for one that stopped
        most = {"size": config.integer(1, private.images.shape[1])}
        config.validate({"size": hp.moments.size}, most)
    live = dp_settings.live_records(hp.moments.masked, len(private), "moments.masked")
    if parallel.is_main() and not path.exists():
        found = moments.release(
            private.images,
            private.labels,
            num_classes=num_classes,
            size=hp.moments.size,
            norm=hp.moments.norm,
            noise_multiplier=noise_multiplier,
            live=live,
            random=os.urandom if seed is None else np.random.default_rng(seed).bytes,
        )
        buffer = io.BytesIO()
        stored = np.frombuffer(found.to_bytes(), np.uint8)
        np.savez(buffer, moments=stored, run=np.array(run))
        noise.write_private(path, buffer.getvalue())
    parallel.barrier("bought-moments")
    found, theirs = _read(path)
    if theirs != run:
        allowed = "holds moments of a run with other settings, data or teacher; take another"
        raise InputError("workdir", str(path), f"{allowed} workdir")
    if parallel.is_main():
        integrity.write_atomically(workdir / FILE, found.to_bytes())
    return found


def published_moments(workdir: epath.Path) -> Moments:
    """What `<workdir>/moments.npz` holds; raises InputError on `checkpoint` if it is missing."""
    path = workdir / FILE
    if not path.exists():
        allowed = f"its prior draws from {path}, which is missing"
        raise InputError("checkpoint", str(workdir), allowed)
    return Moments.from_bytes(path.read_bytes())


def _read(path: epath.Path) -> tuple[Moments, str]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return Moments.from_bytes(stored["moments"].tobytes()), str(stored["run"])
    except Exception:  # NumPy raises many kinds for a damaged archive
        allowed = "cannot be read, and with it moments that were bought; take another workdir"
        raise InputError("workdir", str(path), allowed) from None
