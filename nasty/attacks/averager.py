"""The averager: the attacker replaces each of the teacher's answers by the mean of its class."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def class_means(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float32]:
    """Mean teacher logits of each class over the whole training set.

    A student then learns from row `labels[i]` instead of from the teacher's answer to example i:
    false peaks that differ from image to image are averaged away, what all images of a class share
    stays. The class is the label, not the teacher's prediction. A logit that a stingy teacher
    withheld (−∞) does not count: each entry is the mean over the answers that released it, −∞
    where none did. A class without examples has the row 0, which no example uses.

    Source: our reconstruction; the mean is over the training set and so fixed during the training,
    where it could also be taken over each batch.

    logits `[N, C]` are the teacher's, for unaugmented training images; labels integers `[N]` in
    [0, C). Returns float32 `[C, C]`.

    >>> print(class_means([[1., 0.], [3., 0.], [5., -np.inf]], [0, 0, 1]))
    [[  2.   0.]
     [  5. -inf]]
    """
    answers, labels = np.asarray(logits, np.float64), np.asarray(labels)
    means = np.zeros((answers.shape[1], answers.shape[1]))
    for k in np.unique(labels):
        own = answers[labels == k]
        released = ~np.isneginf(own)
        count = released.sum(0)
        total = np.where(released, own, 0.0).sum(0)
        means[k] = np.where(count > 0, total / np.maximum(count, 1), -np.inf)
    return means.astype(np.float32)
