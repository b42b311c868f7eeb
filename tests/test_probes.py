"""Features and linear probes against plain loops and scikit-learn used as its pages say."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.svm import LinearSVC
from torch import nn

from zfkit import probes
from zfkit.forward import feature_maps
from zfkit.networks import zfnet
from zfkit.probes import choose_c, features, fit_probe, fold, mean_class_accuracy, probe


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(probes, "PART", 4)


def network():
    torch.manual_seed(0)
    small = dict(channels=(6, 8, 8, 8, 6), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(9, 9))
    return zfnet(5, size=63, **small)


def by_loop(maps, side):
    """Every window of the adaptive pooling, from floor(k * n / side) to ceil((k + 1) * n / side)."""
    rows = []
    for image in maps:
        row = []
        for plane in image.numpy():
            ends = [(k * plane.shape[0] // side, -(-(k + 1) * plane.shape[0] // side)) for k in range(side)]
            row += [plane[a:b, c:d].max() for a, b in ends for c, d in ends]
        rows.append(row)
    return torch.tensor(np.array(rows))


def test_features_equal_the_pooled_maps():
    net, images = network(), torch.randn(10, 3, 63, 63)
    sides = {"conv1": 3, "conv5": 2, "fc7": None, "conv2": None}
    got, maps = features(net, images, list(sides), sides), feature_maps(net, images, list(sides))
    wanted = {"conv1": by_loop(maps["conv1"], 3), "conv5": by_loop(maps["conv5"], 2)}
    wanted |= {"fc7": maps["fc7"], "conv2": maps["conv2"].flatten(1)}
    for layer in sides:
        assert got[layer].dtype == torch.float32 and got[layer].shape == wanted[layer].shape
        torch.testing.assert_close(got[layer], wanted[layer].half().float(), rtol=1e-3, atol=1e-6)


def test_a_layer_may_be_asked_for_by_two_names():
    net, images = network(), torch.randn(3, 3, 63, 63)
    module = net.stages["conv3"]
    got = features(net, images, ["conv3", module], side=1)
    assert torch.equal(got["conv3"], got[module])


def test_a_kept_pass_is_only_read(tmp_path, monkeypatch):
    net, images = network(), torch.randn(10, 3, 63, 63)
    first = features(net, images, ["conv2", "conv5"], 2, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6  # three parts of two layers
    monkeypatch.setattr(probes, "run_to", lambda *_: pytest.fail("a pass over kept images"))
    again = features(net, images, ["conv5"], 2, folder=tmp_path)
    assert torch.equal(first["conv5"], again["conv5"])


def test_a_broken_pass_goes_on_and_damage_is_made_good(tmp_path, monkeypatch):
    net, images, asked = network(), torch.randn(10, 3, 63, 63), []
    whole = features(net, images, ["conv5"], 2)["conv5"]
    features(net, images[:4], ["conv5"], 2, folder=tmp_path)
    plain = probes.run_to
    monkeypatch.setattr(probes, "run_to", lambda *given: asked.append(len(given[1])) or plain(*given))
    assert torch.equal(features(net, images, ["conv5"], 2, folder=tmp_path)["conv5"], whole)
    assert sum(asked) == 6
    next(tmp_path.iterdir()).write_bytes(b"torn")
    assert torch.equal(features(net, images, ["conv5"], 2, folder=tmp_path)["conv5"], whole)


@pytest.mark.parametrize("change", ["weights", "images", "side"])
def test_other_weights_images_and_sides_have_files_of_their_own(tmp_path, change):
    net, images, side = network(), torch.randn(3, 3, 63, 63), 2
    before = features(net, images, ["conv4"], side, folder=tmp_path)["conv4"]
    if change == "weights":
        net[0].weight.data += 0.1
    images = images + 1 if change == "images" else images
    side = 1 if change == "side" else side
    after = features(net, images, ["conv4"], side, folder=tmp_path)["conv4"]
    assert before.shape != after.shape or not torch.equal(before, after)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_features_refuse():
    net, images = network(), torch.randn(2, 3, 63, 63)
    for wrong, words in (
        (dict(layers=["conv9"]), "conv9"),
        (dict(layers=["conv5"], side=99), "valid: 1 to"),
        (dict(layers=["conv5"], side={"conv4": 1}), "conv4"),
    ):
        with pytest.raises(ValueError, match=words):
            features(net, images, **wrong)
    with pytest.raises(ValueError, match="no images"):
        features(net, images[:0], ["conv1"])
    with pytest.raises(ValueError, match="65504"):
        features(nn.Sequential(nn.Identity()), torch.full((1, 3, 2, 2), 1e5), ["0"])


def clouds(columns, seed=0, each=12, classes=4):
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(classes, columns))
    labels = np.repeat(np.arange(classes), each)
    return (centres[labels] + 2 * draw.normal(size=(len(labels), columns))).astype(np.float32), labels


@pytest.mark.parametrize("columns", [20, 300])  # fewer columns than rows, and more
@pytest.mark.parametrize("C", [0.001, 0.1])
@pytest.mark.parametrize("classifier", probes.CLASSIFIERS)
def test_probes_equal_scikit_learn_used_plainly(columns, C, classifier):
    (rows, labels), (test, _) = clouds(columns), clouds(columns, 1)
    centre = rows.mean(0)
    scale = np.sqrt(((rows - centre) ** 2).mean())
    plain = LogisticRegression(C=C, tol=1e-8, max_iter=5000)
    if classifier == "svm":
        plain = LinearSVC(C=C, tol=1e-8, max_iter=100000)
    plain.fit(((rows - centre) / scale).astype(np.float64), labels)
    wanted = plain.decision_function((test - centre) / scale)
    got = fit_probe(rows, labels, classifier, C).scores(test)
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
    assert (probe(rows, labels, test, classifier, C) == plain.predict((test - centre) / scale)).mean() > 0.97


def test_a_scale_or_an_offset_of_all_features_changes_nothing():
    (rows, labels), (test, _) = clouds(30), clouds(30, 1)
    before = fit_probe(rows, labels).scores(test)
    np.testing.assert_allclose(fit_probe(50 * rows + 3, labels).scores(50 * test + 3), before, atol=1e-3)


def test_two_classes_and_labels_that_are_no_numbers_of_rows():
    rows, labels = clouds(5, classes=2)
    names = np.array([40, 7])[labels]
    one = fit_probe(rows, names, C=1.0)
    assert one.scores(rows).shape == (24, 2) and (one.predict(rows) == names).mean() > 0.7


def test_c_is_the_best_on_validation_and_of_equals_the_least():
    (rows, labels), (held, truth) = clouds(40), clouds(40, 1)
    hits = {c: balanced_accuracy_score(truth, probe(rows, labels, held, "svm", c)) for c in probes.GRID}
    best = min(c for c in hits if hits[c] == max(hits.values()))
    assert choose_c(rows, labels, held, truth, "svm") == best


def test_mean_class_accuracy_equals_scikit_learns():
    draw = np.random.default_rng(0)
    labels, predicted = draw.choice(5, 200, p=[0.5, 0.2, 0.1, 0.1, 0.1]), draw.integers(0, 6, 200)
    labels[0] = 0
    wanted = np.mean([(predicted[labels == k] == k).mean() for k in range(5)])
    assert mean_class_accuracy(labels, predicted) == pytest.approx(wanted)
    kept = predicted < 5
    assert mean_class_accuracy(labels[kept], predicted[kept]) == pytest.approx(
        balanced_accuracy_score(labels[kept], predicted[kept])
    )
    assert mean_class_accuracy([1, 1, 1, 2], [1, 1, 1, 1]) == 0.5


def test_folds_do_not_overlap_nest_and_keep_to_the_protocol():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [80, 20, 8]))
    train, test = fold(labels, 5, most=10)
    assert not set(train) & set(test) and len(set(train)) == 15
    assert np.bincount(labels[train]).tolist() == [5, 5, 5] and np.bincount(labels[test]).tolist() == [10, 10, 3]
    assert set(fold(labels, 2, most=10)[0]) < set(train)
    assert not np.array_equal(fold(labels, 5, most=10, seed=1)[0], train)
    with pytest.raises(ValueError, match="valid: 1 to 7"):
        fold(labels, 8)


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(classifier="tree"), "valid: softmax, svm"),
        (dict(C=0), "C is 0"),
        (dict(labels=[1] * 48), "of 1 classes"),
        (dict(labels=[1, 2]), "48 rows with 2 labels"),
    ],
)
def test_what_probes_refuse(given, words):
    rows, labels = clouds(5)
    with pytest.raises(ValueError, match=words):
        fit_probe(rows, **({"labels": labels} | given))
    with pytest.raises(ValueError):
        mean_class_accuracy([], [])
