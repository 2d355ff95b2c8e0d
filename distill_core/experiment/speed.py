"""Where an experiment's time went, and how fast its runs trained."""

import numpy as np

from distill_core.experiment.report import Results, Table, by_arm
from distill_core.runtime import clock


def table(results: Results) -> Table:
    """Medians over an arm's runs, by the records of their stages; no rows where there are none.

    A share of the peak is of the devices' bfloat16 peak, by the operations that a step's program
    has (`models.flops`).
    """
    rows = []
    for arm, runs in by_arm(results).items():
        known = [run["spent"] for run in runs if run.get("spent")]
        if not known:
            continue
        times = [
            f"{np.median([each['seconds'][name] for each in known]):.1f}"
            for name in clock.ACTIVITIES
        ]
        speeds = [each["speed"] for each in known if each["speed"]]
        rate = share = None
        if speeds:
            rate = f"{np.median([each['per_second'] for each in speeds]):,.0f} {speeds[0]['unit']}"
            shares = [each["share_of_peak"] for each in speeds if "share_of_peak" in each]
            share = f"{np.median(shares):.1%}" if shares else None
        rows.append([arm, *times, rate, share])
    head = ["run", *(name.replace("_", "-") for name in clock.ACTIVITIES), "a second", "of peak"]
    return Table("Where the time went, seconds, and the speed of training", head, rows, False)
