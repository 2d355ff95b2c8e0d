"""How alike are two networks' representations, and what can be read from them?"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centred kernel alignment of two representations of the same N inputs, in [0, 1].

    x [N, D1] and y [N, D2], row i of both for input i; computed in float64 in its feature-space
    form, ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) with centred columns and Frobenius norms. 1 for a copy up to
    rotation, shift and scale; NaN where one of them is the same for all inputs, since there is
    nothing to compare. It is biased upwards where N is not well above D.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019,
    equation 4 and section 3.
    """
    a, b = _centred(x), _centred(y)
    if not (a.any() and b.any()):
        return float("nan")
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # CKA knows no scale, fourth powers do
    cross = np.linalg.norm(b.T @ a) ** 2
    return float(cross / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def linear_probe_accuracy(features: ArrayLike, labels: ArrayLike, *, seed: int) -> float:
    """The accuracy of a linear classifier on frozen features, as a fraction.

    features [N, D], labels int [N]: at least two classes, each of at least two examples. Logistic
    regression (scikit-learn's, L2 with C = 1) on one half of the inputs, standardised by that half,
    measured on the other; the halves are stratified by class and a function of the seed.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs = np.asarray(features, np.float64)
    fit_x, test_x, fit_y, test_y = train_test_split(
        inputs, labels, test_size=0.5, random_state=seed, stratify=labels
    )
    # Standardised and with L2, L-BFGS needs tens to hundreds of iterations, never thousands.
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
    return float(probe.fit(fit_x, fit_y).score(test_x, test_y))


def tsne(x: ArrayLike, *, seed: int) -> NDArray[np.float32]:
    """A picture of a representation in the plane: x [N, D] to float32 [N, 2].

    From principal components, hence about the same picture for any seed, and the very same one for
    the same seed. Rows which are all alike give zeros. Distances between clusters mean little in
    such a picture: give a number beside it.

    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008; Barnes-Hut as in
    scikit-learn.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    points = _centred(x)
    if len(points) < 4 or not points.any():
        return np.zeros((len(points), 2), np.float32)
    points /= np.abs(points).max()  # float32 inside: squares of large logits must not overflow
    if points.shape[1] == 1:
        points = np.pad(points, ((0, 0), (0, 1)))  # the initialisation wants two components
    perplexity = min(30.0, (len(points) - 1) / 3)
    # One thread: sums over several come in any order, and t-SNE amplifies the last bit.
    with threadpool_limits(limits=1):
        embedding = TSNE(perplexity=perplexity, init="pca", random_state=seed, max_iter=750)
        return embedding.fit_transform(points).astype(np.float32)


def _centred(x: ArrayLike) -> NDArray[np.float64]:
    """Columns with mean 0; exactly 0 where only rounding would be left of them."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(axis=0)
    rounding = 1e-12 * np.abs(x).max(axis=0)
    return np.where(np.abs(centred).max(axis=0) > rounding, centred, 0.0)
