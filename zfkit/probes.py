"""What can be read from a layer: features of a data set, kept, and linear probes on them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .files import kept_file, read_tensors, write_tensors
from .forward import CHUNK, evaluating, run_to
from .geometry import resolve

PART = 256  # images of which the features lie in one file: what a broken pass loses at most
GRID = tuple(10.0**power for power in range(-5, 2))  # of the constant C
CLASSIFIERS = ("softmax", "svm")


# --- features ---------------------------------------------------------------------------------


def features(
    net: nn.Module, images, layers, side=None, normalize=None, *, folder=None, progress=False
) -> dict[str, Tensor]:
    """A row of numbers per image and layer: float32 (N, C * side * side), or (N, units) of fc.

    images: uint8 (N, H, W, 3) with `normalize` (such as a card's), or float (N, 3, H, W); any
    sequence that slices.    side: maps are max-pooled to side x side (adaptive windows that
    cover the map); one for all layers, or layer -> side; None: the whole map.
    All layers in one pass. Values have the digits of float16, in which they are kept.
    folder: where they are kept, a file for each layer, side and 256 images, under a fingerprint
    of weights and images: a finished pass is only read, a broken one goes on, a further layer
    costs a pass of its own.    progress: show a bar.
    Raises ValueError for an unknown layer, a side above the map's, values float16 cannot hold.

    >>> maps = torch.tensor([[[[1.0, 5.0], [0.0, 2.0]]]])  # one image, one channel
    >>> net = nn.Sequential(nn.Identity())
    >>> features(net, maps, ["0"], side=1)["0"], features(net, maps, ["0"])["0"]
    (tensor([[5.]]), tensor([[1., 5., 0., 2.]]))
    """
    if not len(images):
        raise ValueError("no images: an empty set has no features")
    sides = side if isinstance(side, dict) else dict.fromkeys(layers, side)
    wanted = {layer: (resolve(net, layer), sides.get(layer)) for layer in layers}
    if unknown := sorted(set(sides) - set(wanted)):
        raise ValueError(f"a side for {unknown[0]!r}; valid: {', '.join(wanted)}")
    parts = [images[start : start + PART] for start in range(0, len(images), PART)]
    rows = {pair: [] for pair in wanted.values()}
    with tqdm(total=len(images), disable=not progress, unit="image") as bar:
        for part in parts:
            for pair, values in _of_part(net, part, set(rows), normalize, folder).items():
                rows[pair].append(values)
            bar.update(len(part))
    return {layer: torch.cat(rows[pair]).float() for layer, pair in wanted.items()}


def _of_part(net, part, wanted: set, normalize, folder) -> dict:
    """(module, side) -> float16 rows of some images, read where they are kept."""
    stem = kept_file(folder, "features", net, part, normalize) if folder else None
    files = {pair: stem and _file(stem, *pair) for pair in wanted}
    kept = {pair: _read(file, len(part)) for pair, file in files.items()}
    lacking = {pair for pair in wanted if kept[pair] is None}
    for pair, values in (_passed(net, part, lacking, normalize) if lacking else {}).items():
        kept[pair] = values
        if stem:
            write_tensors(files[pair], {"rows": values}, {"file": files[pair].name})
    return kept


def _file(stem: Path, name: str, side) -> Path:
    return stem.with_name(f"{stem.stem}-{name or 'net'}-{side or 'all'}.safetensors")


def _read(file: Path | None, count: int) -> Tensor | None:
    """The kept rows; None of a missing, damaged or renamed file."""
    try:
        tensors, about = read_tensors(file) if file else ({}, {})
        rows = tensors["rows"] if about.get("file") == file.name else ()
        return rows if len(rows) == count else None
    except (ValueError, KeyError, AttributeError):
        return None


def _passed(net, part, wanted: set, normalize) -> dict:
    rows = {pair: [] for pair in wanted}

    def pool(name: str, maps: Tensor):
        for pair in rows:
            if pair[0] == name:
                rows[pair].append(_pooled(name, maps, pair[1]))

    with evaluating(net), torch.no_grad():
        for start in range(0, len(part), CHUNK):
            batch = part[start : start + CHUNK]
            run_to(net, normalize(batch) if normalize else batch, {n for n, _ in wanted}, pool)
    return {pair: torch.cat(chunks) for pair, chunks in rows.items()}


def _pooled(name: str, maps: Tensor, side: int | None) -> Tensor:
    if maps.dim() == 4 and side is not None:
        if not 1 <= side <= min(maps.shape[2:]):
            raise ValueError(
                f"side {side!r} of layer {name!r}; valid: 1 to {min(maps.shape[2:])}"
            )
        maps = F.adaptive_max_pool2d(maps, side)
    rows = maps.flatten(1).half().cpu()
    if not rows.isfinite().all():
        raise ValueError(f"layer {name!r}: values that are not finite or above float16's 65504")
    return rows


# --- probes -----------------------------------------------------------------------------------


class Probe(NamedTuple):
    """A linear classifier on standardised features, as scikit-learn fitted it."""

    mean: np.ndarray  # (D,) of the training rows
    spread: float  # one for all, so that a unit that hardly moves is not blown up
    basis: np.ndarray | None  # (D, n): the span of the training rows, where n < D
    model: object

    def scores(self, rows) -> np.ndarray:
        """A row's score for each class, in the order of `model.classes_`: float32 (N, classes).

        Of two classes both columns are given, the first with its sign turned.
        """
        rows = (_rows(rows) - self.mean) / self.spread
        rows = rows if self.basis is None else rows @ self.basis
        scores = self.model.decision_function(rows).astype(np.float32)
        return scores if scores.ndim == 2 else np.stack([-scores, scores], 1)

    def predict(self, rows) -> np.ndarray:
        """The label whose score is highest: (N,)."""
        return self.model.classes_[self.scores(rows).argmax(1)]


@threadpool_limits.wrap(limits=1)  # small matrices: threads would wait for each other
def fit_probe(train, labels, classifier="softmax", C=0.01) -> Probe:
    """A linear classifier fitted to features (N, D) and their labels (N,), weights decayed.

    classifier: "softmax" (multinomial logistic regression) or "svm" (linear, one against the
    rest, squared hinge).    C: what the data weigh against the decay, as in scikit-learn.
    Features are centred and divided by one number, their root mean square. The weights of such
    a classifier lie in the span of its rows (representer theorem), so with fewer rows than
    columns it is fitted in a basis of that span: the same classifier, in far less time.
    Raises ValueError for an unknown classifier, C that is not positive, or a single class.

    >>> rows, labels = np.array([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0]]), [7, 7, 9, 9]
    >>> fit_probe(rows, labels).predict([[1.0, 1.0], [3.0, 0.0]]).tolist()
    [7, 9]
    """
    model = _model(classifier, C)
    rows, labels = _rows(train), np.asarray(labels)
    if len(rows) != len(labels) or len(np.unique(labels)) < 2:
        count = len(np.unique(labels))
        raise ValueError(f"{len(rows)} rows with {len(labels)} labels of {count} classes")
    mean = rows.mean(0)
    rows = rows - mean
    spread = float(np.sqrt(np.square(rows).mean())) or 1.0
    basis = np.linalg.qr(rows.T)[0] if len(rows) < rows.shape[1] else None
    rows = rows / spread
    return Probe(
        mean, spread, basis, model.fit(rows if basis is None else rows @ basis, labels)
    )


def _rows(values) -> np.ndarray:
    return np.asarray(values, np.float32)


def _model(classifier: str, C: float):
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.svm import LinearSVC

    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier {classifier!r}; valid: {', '.join(CLASSIFIERS)}")
    if not C > 0:
        raise ValueError(f"C is {C!r}; valid: numbers above 0")
    if classifier == "svm":
        return LinearSVC(C=C, tol=1e-3, max_iter=5000, random_state=0)
    return LogisticRegression(C=C, tol=3e-4, max_iter=300)


def probe(train, labels, test, classifier="softmax", C=0.01) -> np.ndarray:
    """The labels (N,) that a linear classifier, fitted to train and labels, gives to test.

    Arguments as in `fit_probe`; test: features (N, D).

    >>> probe([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1], [[0.5], [4.5]], "svm").tolist()
    [0, 1]
    """
    return fit_probe(train, labels, classifier, C).predict(test)


def choose_c(
    train, labels, validation, validation_labels, classifier="softmax", grid=GRID
) -> float:
    """The C of the grid with the best mean class accuracy on validation; of equals the least.

    >>> rows, labels = np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1])
    >>> choose_c(rows, labels, rows, labels)
    1e-05
    """
    accuracies = [
        mean_class_accuracy(
            validation_labels, probe(train, labels, validation, classifier, constant)
        )
        for constant in sorted(grid)
    ]
    return float(sorted(grid)[int(np.argmax(accuracies))])


def mean_class_accuracy(labels, predicted) -> float:
    """The share of hits in each class, averaged over the classes: large ones count once.

    Source: the protocol of Caltech-101 (ZF 2013, sec. 5.2). Raises ValueError for no labels.

    >>> mean_class_accuracy([0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0])  # 4 of 4, and 1 of 2
    0.75
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if not len(labels) or labels.shape != predicted.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predicted.shape} do not pair")
    hits = labels == predicted
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def fold(labels, per_class: int, most=50, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of training and of test images of a fold, (n,) and (m,), drawn class by class.

    per_class: for training; of the rest at most `most` a class are for the test. The same seed
    gives nested sets: who draws 5 a class has the first of who draws 30. Source: ZF 2013, sec.
    5.2. Raises ValueError for a class of too few images.

    >>> train, test = fold([0] * 9 + [1] * 4, per_class=3, most=2)
    >>> len(train), len(test)
    (6, 3)
    """
    labels, train, test = np.asarray(labels), [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) <= per_class:
            most_here = f"valid: 1 to {len(members) - 1}"
            raise ValueError(f"{per_class} of class {label} for training; {most_here}")
        order = np.random.default_rng([seed, int(label)]).permutation(members)
        train.append(order[:per_class])
        test.append(order[per_class : per_class + most])
    return np.concatenate(train), np.concatenate(test)


def presence_scores(train, present, test, loss="softmax", C=0.01) -> np.ndarray:
    """How surely each class is seen in pictures that may hold several: (N, classes).

    present: bool (n, classes).    loss: "softmax" (a picture counts once for each of its
    classes, as ZF 2013, sec. 5.2) or "sigmoid" (a classifier for each class).
    """
    rows, present = _rows(train), np.asarray(present, bool)
    if loss not in ("softmax", "sigmoid"):
        raise ValueError(f"loss {loss!r}; valid: softmax, sigmoid")
    if loss == "softmax":
        picture, label = np.nonzero(present)
        return fit_probe(rows[picture], label, C=C).scores(test)
    return np.stack([fit_probe(rows, one, C=C).scores(test)[:, 1] for one in present.T], 1)


def examples_for(wanted: float, counts, accuracies) -> float:
    """How many examples a class reach the accuracy `wanted`, by a curve of mean accuracies.

    Between two counts along a straight line over the logarithm of the count, at the first
    crossing; the first count where the curve begins above; infinity where it never comes there.

    >>> examples_for(0.5, [1, 10, 100], [0.2, 0.4, 0.6])  # half-way from 10 to 100, in ratio
    31.622776601683793
    """
    counts, accuracies = np.asarray(counts, float), np.asarray(accuracies, float)
    for k in np.flatnonzero(accuracies >= wanted)[:1]:
        if k == 0:
            return float(counts[0])
        share = (wanted - accuracies[k - 1]) / (accuracies[k] - accuracies[k - 1])
        return float(counts[k - 1] * (counts[k] / counts[k - 1]) ** share)
    return float("inf")


def examples_saved(counts, ours, other) -> float:
    """How many times more examples `other` needs than `ours`, at the highest accuracy of both.

    counts: ascending, of both curves. Below 1, the other needs fewer.

    >>> examples_saved([1, 10, 100], [0.4, 0.6, 0.8], [0.2, 0.4, 0.6])  # 0.6: at 100 and at 10
    10.0
    """
    wanted = min(np.max(ours), np.max(other))
    return examples_for(wanted, counts, other) / examples_for(wanted, counts, ours)
