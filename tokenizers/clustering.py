"""Step ``codebook``: the codes of a frozen codebook from patch features: k-means over all or class by class, or a selection.

k-means is scikit-learn's mini-batch one, pass by pass over a memory-mapped file: each pass starts from the centres of the
last, is seeded by its number and saved, so that an interrupted step goes on and ends with the same centres.

Letters: n images, P patches an image, M = n P features, D their length, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from vqbench.errors import DataError
from vqbench.seeds import derive, numpy_rng

BATCH = 16_384  # features of a mini-batch, or twice K where that is more: fewer than K cannot move all centres
ROWS = 65_536  # features read at a time


def k_means(
    features: np.ndarray, count: int, seed: int, passes: int, start: np.ndarray | None = None, done: int = 0
) -> Iterator[np.ndarray]:
    """Centres (K, D) float32 after each pass from `done` on, the best of them last.

    Args:
        features: (M, D), finite; a memory map will do.
        count: K, at most M.
        seed: of the order of features and of the first centres (k-means++ on a mini-batch).
        passes: over all features.
        start, done: centres after so many passes, to go on from.

    Raises:
        DataError: fewer features than K.
    """
    if len(features) < count:
        raise DataError(f"k-means of {count} centres over {len(features)} features; take fewer codes or more images")
    size = min(len(features), max(BATCH, 2 * count))
    for number in range(done, passes):
        rng = numpy_rng(seed, "k-means", number)
        order = rng.permutation(len(features))
        model = MiniBatchKMeans(count, init="k-means++" if start is None else start, n_init=1, batch_size=size,
                                random_state=derive(seed, "k-means", number) % 2**32, compute_labels=False)  # fmt: skip
        for first in range(0, len(order) - size + 1, size):
            model.partial_fit(np.asarray(features[np.sort(order[first : first + size])], dtype=np.float32))
        start = model.cluster_centers_.astype(np.float32)
        yield start
