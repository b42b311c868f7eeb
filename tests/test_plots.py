"""Pictures from arrays: zero is grey, scales are shared when asked, cells and frames land where they should."""

import numpy as np
import torch
from matplotlib import pyplot as plt

from zfkit import plots


def test_zero_is_mid_grey_and_signs_go_both_ways():
    projection = torch.zeros(3, 4, 4)
    projection[0, 0, 0], projection[0, 3, 3] = 2.0, -2.0
    picture = plots.signed(projection, scale=2.0)
    assert picture.dtype == np.uint8 and picture.shape == (4, 4, 3)
    assert picture[0, 0].tolist() == [255, 128, 128] and picture[3, 3].tolist() == [1, 128, 128]
    assert (picture[1:3] == 128).all()


def test_each_picture_of_a_batch_has_its_own_scale_unless_told():
    batch = torch.stack([torch.ones(3, 2, 2), 3 * torch.ones(3, 2, 2)])
    own, shared = plots.signed(batch), plots.signed(batch, scale=3.0)
    assert (own[0] == own[1]).all()
    assert (shared[0] < shared[1]).all()


def test_the_scale_leaves_the_strongest_half_per_cent_to_be_cut():
    values = np.arange(1, 402) * np.where(np.arange(401) % 2, 1, -1)  # sizes 1 ... 401, signs in turn
    assert plots.scale_of(values) == 399  # at place 0.995 * 400 = 398 of the sizes in order, counted from 0
    assert plots.scale_of(values, 0.5) == 201 and plots.scale_of(values, 1.0) == 401
    assert plots.scale_of(np.array([0.0, 10.0])) == np.float32(9.95)  # between two: in proportion
    assert plots.scale_of(np.zeros(4)) == 1.0
    picture = plots.signed(values.reshape(1, 1, -1).repeat(3, 0))[0, :, 0]
    assert picture[[396, 398, 400, 399]].tolist() == [2, 1, 0, 255]  # 397 / 399 of 127 below grey, all 127, cut, cut


def test_an_empty_projection_stays_grey():
    assert (plots.signed(torch.zeros(3, 5, 5)) == 128).all()


def test_heat_rises_with_the_value():
    picture = plots.heat(np.array([[0.0, 0.5, 1.0]])).astype(int).sum(2)[0]
    assert picture[0] < picture[1] < picture[2]
    assert (plots.heat(np.zeros((2, 2))) == plots.heat(np.zeros((2, 2)), top=1.0)).all()


def test_tiles_keep_their_order():
    tiles = plots.tile(np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 3, 3), np.uint8), 2, gap=1)
    assert tiles.shape == (11, 7, 3)
    assert [tiles[1, 1, 0], tiles[1, 5, 0], tiles[5, 1, 0], tiles[9, 1, 0]] == [0, 1, 2, 4]
    assert (tiles[8:, 4:] == 255).all()


def test_a_frame_is_drawn_on_the_box_and_may_leave_the_picture():
    picture = np.zeros((10, 10, 3), np.uint8)
    framed = plots.frame(picture, (2, 3, 7, 9), "#ffffff", width=1)
    assert framed[2, 3:9].all() and framed[6, 3:9].all() and framed[2:7, 3].all() and framed[2:7, 8].all()
    assert framed.any(2).sum() == 2 * 6 + 2 * 3
    assert not plots.frame(picture, (-9, -9, 30, 30), "#ffffff", width=1).any()


def test_a_sheet_holds_each_picture_in_its_cell():
    red, blue = np.full((8, 8, 3), (255, 0, 0), np.uint8), np.full((8, 8, 3), (0, 0, 255), np.uint8)
    sheet = plots.sheet([[red, blue], [None, red]], ["up", "down"], ["one", "two"], cell=16, gap=2, margin=30)
    assert sheet.shape == (34 + 2 * 18, 30 + 2 * 18, 3)
    assert sheet[40, 35].tolist() == [255, 0, 0] and sheet[40, 55].tolist() == [0, 0, 255]
    assert (sheet[54:68, 30:46] == 255).all() and sheet[60, 55].tolist() == [255, 0, 0]
    assert (sheet[:34] < 255).any() and (sheet[34:, :30] < 255).any()  # the names


def test_fit_enlarges_by_whole_pixels_and_reduces_smoothly():
    checks = (np.indices((4, 4)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert set(np.unique(plots.fit(checks, 12))) == {0, 255}
    assert 100 < plots.fit(checks, 2).mean() < 156


def test_numbers_writes_every_cell():
    _, axis = plt.subplots()
    plots.numbers(axis, [[1, -2], [0, 3]], marks=[(0, 0)])
    assert [text.get_text() for text in axis.texts] == ["1", "-2", "0", "3"]
    assert len(axis.patches) == 1
    plt.close("all")


def test_a_figure_becomes_pixels_and_is_closed():
    figure = plt.figure(figsize=(2, 1), dpi=50, facecolor="red")
    drawn = plots.pixels(figure)
    assert drawn.shape == (50, 100, 3) and drawn.dtype == np.uint8 and (drawn == (255, 0, 0)).all()
    assert not plt.fignum_exists(figure.number)
