"""Images that code draws from no data: pen strokes, silhouettes, smoothed noise."""

from distill_core.data.images.procedural.drawings import KINDS, mixture, strokes

__all__ = ["KINDS", "mixture", "strokes"]
