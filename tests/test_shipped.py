"""The shipped networks: as accurate as their records say, blind without the object, small enough."""

import numpy as np
import pytest
import torch

import zfkit
from zfkit.menagerie import render
from zfkit.weights import snapshots, weights_folder

COUNT = 800  # test images, all of them


def answers(net, card, images):
    with torch.no_grad():
        return net(card.normalize(images)).argmax(1).numpy()


@pytest.fixture(scope="module")
def first():
    return zfkit.load_network("zfnet-menagerie")


def test_the_first_network_errs_but_seldom(first):
    net, card = first
    assert 0.95 <= card.record["accuracy"]["test"] < 0.985  # errors are needed: chapter 01 looks at them
    images, labels, classes = zfkit.load_images("menagerie", "test", size=card.size, limit=COUNT)
    share = np.mean(answers(net, card, images) == labels)
    assert abs(share - card.record["accuracy"]["test"]) < 0.025
    assert classes == card.classes


def test_without_the_object_it_knows_next_to_nothing(first):
    net, card = first
    empty = np.stack([render(2, i, card.size, show="background").image for i in range(COUNT)])
    labels = np.arange(COUNT) % 16
    assert np.mean(answers(net, card, empty) == labels) <= 0.09


def test_its_snapshots_end_in_the_network_itself(first):
    net, card = first
    series = snapshots("zfnet-menagerie")
    assert list(series) == [1, 2, 5, 10, 20, 30, 40, 64]
    assert torch.equal(series[64].conv3.weight, net.conv3.weight)
    assert not torch.equal(series[1].conv3.weight, net.conv3.weight)


def test_shuffled_labels_were_learnt_by_heart_and_help_nobody():
    _, card = zfkit.load_network("shuffled-labels")
    assert card.record["history"]["epochs"][-1]["train_accuracy"] > 0.9
    assert card.record["accuracy"]["test"] < 0.1


def test_the_paper_s_normalisation_trains_too():
    net, card = zfkit.load_network("zfnet-menagerie-lrn")
    assert any(isinstance(module, torch.nn.LocalResponseNorm) for module in net)
    assert card.record["accuracy"]["test"] > 0.8


def test_weights_stay_under_30_megabytes():
    assert sum(path.stat().st_size for path in weights_folder().iterdir()) < 30e6
