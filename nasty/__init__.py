"""Nasty teachers: as accurate as normal ones, but a network distilled from them ends up worse.

The loss for a notebook; binaries are `nasty.train`, `nasty.attack` and `nasty.experiment`. After Ma
et al., "Undistillable: Making A Nasty Teacher That CANNOT teach students", ICLR 2021.
"""

from nasty.losses import nasty_loss

__all__ = ["nasty_loss"]
