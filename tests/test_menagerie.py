"""The menagerie: golden bytes, one-thing-changed identities, ground truth, cache and colour-cue baselines."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from zfkit.menagerie import DECOYS, IDS, NAMES, PARTS, Scene, cached, cached_scenes, dataset, render
from zfkit.menagerie import cache as cache_module

ROOT = Path(__file__).parents[1]
GOLDEN = "74c10034daba1728bedf2f7ec24e6515890950b1e66e8fafd9e07dc714882254"


def golden():
    digest = hashlib.sha256()
    for level in ("standard", "hard"):
        for size in (64, 128, 224):
            for index in range(16):
                scene = render(1, index, size, level=level)
                digest.update(scene.image.tobytes())
                digest.update(scene.parts.tobytes())
    return digest.hexdigest()


def run(code, **env):
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"} | env
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)


def grow(mask, pixels):
    """Mask widened by so many pixels, by a loop over shifts."""
    out, padded = np.zeros_like(mask), np.pad(mask, pixels)
    h, w = mask.shape
    for dy in range(2 * pixels + 1):
        for dx in range(2 * pixels + 1):
            out |= padded[dy : dy + h, dx : dx + w]
    return out


def test_golden_bytes_of_96_renders():
    assert golden() == GOLDEN


def test_bytes_do_not_depend_on_the_cpu():
    targets = np.show_config("dicts")["SIMD Extensions"].get("found", [])
    off = [t for t in targets if t in ("X86_V3", "X86_V4", "AVX2", "AVX512F", "AVX512_SKX", "FMA3")]
    if not off:
        pytest.skip(f"numpy found no kernels here that can be switched off: {targets}")
    done = run("import test_menagerie as t; print(t.golden())", NPY_DISABLE_CPU_FEATURES=" ".join(off))
    assert done.stdout.strip() == GOLDEN, done.stderr


CHANGES = {
    "emptied": {"show": "background"},
    "moved": {"pose": {"dx": 0.2, "dy": -0.15, "scale": 0.6, "rotation": 5.0, "flip": True}},
    "parts left out": {"skip": ("eye", "ear", "wheel", "crown", "petal", "sail", "key", "wall", "gore", "dial")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_changes_nothing_else(change):
    changed = 0
    for index in range(64):
        before = render(3, index, 64)
        after = render(3, index, 64, **CHANGES[change])
        near = grow(before.amodal | after.amodal, 6)  # outline, shadow and blur reach this far
        assert not near.all()
        np.testing.assert_array_equal(before.image[~near], after.image[~near])
        changed += (before.image[near] != after.image[near]).any()
    assert changed == 64


def test_an_emptied_picture_keeps_no_trace_of_the_object():
    for index in range(16):
        empty = render(3, index, 64, show="background")
        moved = render(3, index, 64, show="background", pose={"dx": 0.2, "scale": 0.5}, skip=("body", "head"))
        np.testing.assert_array_equal(empty.image, moved.image)  # no shadow either
        assert empty.amodal.any() and (empty.amodal != moved.amodal).any()


def test_background_of_takes_that_backdrop_and_leaves_the_object():
    differ = 0
    for index in range(32):
        before, other = render(3, index, 64), render(3, index + 5, 64)
        after = render(3, index, 64, background_of=index + 5)
        assert after.background == other.background
        assert after.pose == before.pose and after.keypoints == before.keypoints
        for mask in ("parts", "visible", "amodal"):
            np.testing.assert_array_equal(getattr(after, mask), getattr(before, mask))
        hidden = ~before.visible  # the backdrop alone: the object painted over leaves no trace in it
        differ += (before.image[hidden] != after.image[hidden]).any()
        same = render(3, index, 64, background_of=index)
        np.testing.assert_array_equal(same.image, before.image)
    assert differ >= 31


def test_backdrop_is_that_of_the_other_picture_to_the_byte():
    from zfkit.menagerie.scene import place_backdrop

    kind, layer = place_backdrop(3, 12, "standard", 64, 12)
    assert kind == render(3, 1, 64, background_of=12).background
    np.testing.assert_array_equal(layer.px, place_backdrop(3, 12, "standard", 64, 12)[1].px)
    assert not np.array_equal(layer.px, place_backdrop(3, 13, "standard", 64, 13)[1].px)


def test_every_decoy_has_a_part_id_of_its_own_and_lies_off_the_object():
    assert IDS == PARTS + DECOYS and len(set(IDS)) == len(IDS)
    found = set()
    for index in range(120):
        scene = render(3, index, 64, level="hard")
        assert scene.decoys.dtype == np.uint8 and not (scene.decoys[scene.visible] > 0).any()
        front = scene.decoys[scene.amodal & ~scene.visible]  # what hides the object is a thing in front
        assert {IDS[part][:6] for part in np.unique(front[front > 0])} <= {"front_"}
        found |= {IDS[part] for part in np.unique(scene.decoys)}
    assert found == {"none", *DECOYS}


def test_clutter_takes_any_contrast_and_stands_out_no_more_than_an_object():
    """Step of brightness at the border of a stray thing against that of the object's parts, both in the middle."""
    steps = {"decoy": [], "object": []}
    for index in range(200):
        scene = render(3, index, 96)
        grey = scene.image.astype(float).mean(2)
        edge = np.hypot(*np.gradient(grey))
        stray = np.isin(scene.decoys, [IDS.index(name) for name in DECOYS if name.startswith("stray_")])
        for kind, mask in (("decoy", stray), ("object", scene.visible)):
            steps[kind] += [np.quantile(edge[mask], 0.9)] if mask.sum() > 30 else []
    assert len(steps["decoy"]) > 60
    assert np.median(steps["decoy"]) < 0.8 * np.median(steps["object"])
    assert np.quantile(steps["decoy"], 0.9) < 1.1 * np.quantile(steps["object"], 0.9)
    assert np.std(steps["decoy"]) > 0.3 * np.mean(steps["decoy"])  # faint ones and strong ones


def test_skipped_parts_are_gone_and_no_other_part_appears():
    before, after = render(4, 2, 96), render(4, 2, 96, skip=("ear",))
    ear = PARTS.index("ear")
    assert (before.parts == ear).sum() > 20 and not (after.parts == ear).any()
    assert set(np.unique(after.parts)) <= set(np.unique(before.parts))


def test_same_scene_at_any_size():
    agree = []
    for index in range(48):
        small, large = render(3, index, 64), render(3, index, 192)
        agree.append((small.parts == large.parts[1::3, 1::3]).mean())
        assert small.pose == large.pose and small.keypoints.keys() == large.keypoints.keys()
        for name, (x, y, _) in small.keypoints.items():
            np.testing.assert_allclose((3 * x, 3 * y), large.keypoints[name][:2], atol=1e-3)
    assert np.mean(agree) > 0.995


def test_masks_agree_and_keypoints_lie_on_their_object():
    eyes, hidden, unnamed, total = [], 0, 0, 0
    for index in range(96):
        scene = render(5, index, 96, level="hard")
        assert scene.image.dtype == np.uint8 and scene.image.shape == (96, 96, 3)
        assert not (scene.visible & ~scene.amodal).any() and scene.amodal.any()
        assert not (scene.parts[~scene.visible] > 0).any()
        unnamed += (scene.visible & (scene.parts == 0)).sum()  # two faint edges that add up to more than a half
        total += scene.visible.sum()
        hidden += (scene.amodal & ~scene.visible).any()
        for name, (x, y, visible) in scene.keypoints.items():
            if visible and name.endswith("eye"):
                eyes.append(PARTS[scene.parts[int(y), int(x)]] == "eye")
    assert unnamed < 0.005 * total
    assert hidden > 20 and len(eyes) > 20 and np.mean(eyes) > 0.95


def test_labels_are_balanced_and_the_backdrop_tells_only_boat_and_balloon():
    images, labels = dataset(7, 48, 16)
    assert images.shape == (48, 16, 16, 3) and (np.bincount(labels) == 3).all()
    np.testing.assert_array_equal(images[20], render(7, 20, 16).image)
    at_sea = [render(7, 16 * k, 16, label=n).background == "water" for k in range(60) for n in ("boat", "dog")]
    assert 0.7 < np.mean(at_sea[::2]) and np.mean(at_sea[1::2]) < 0.3


def test_poses_fill_the_stated_range():
    poses = [render(8, i, 16).pose for i in range(200)]
    scale, rotation = [p["scale"] for p in poses], [p["rotation"] for p in poses]
    assert 0.50 <= min(scale) < 0.53 and 0.89 < max(scale) <= 0.92
    assert -20 <= min(rotation) < -18 and 18 < max(rotation) <= 20
    assert all(abs(p["dx"]) <= (1 - p["scale"]) / 2 + 0.06 for p in poses)


BAD = [
    ({"level": "easy"}, "'easy'.*standard, hard"),
    ({"label": "dragon"}, "'dragon'.*dog, cat"),
    ({"label": 16}, "16.*0, 1"),
    ({"skip": ("antler",)}, "'antler'.*body, head"),
    ({"skip": ("none",)}, "'none'.*body"),
    ({"show": "object"}, "'object'.*all, background"),
    ({"size": 15}, "size 15.*16"),
    ({"index": -1}, "index -1.*0"),
    ({"background_of": -3}, "background_of -3.*0"),
    ({"pose": {"tilt": 3}}, "'tilt'.*dx, dy, scale, rotation, flip"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_input_is_named_in_one_line(bad, message):
    with pytest.raises(ValueError, match=message) as caught:
        render(**({"seed": 1, "index": 0} | bad))
    assert "\n" not in str(caught.value)


def test_cache_equals_dataset_opens_at_once_and_mends_itself(tmp_path):
    images, labels = cached(9, 20, 16, folder=tmp_path)
    want, want_labels = dataset(9, 20, 16)
    np.testing.assert_array_equal(images, want)
    np.testing.assert_array_equal(labels, want_labels)
    (path,) = (tmp_path / "menagerie").iterdir()
    start = time.process_time()
    assert isinstance(cached(9, 20, 16, folder=tmp_path)[0], np.memmap)
    assert time.process_time() - start < 0.1
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:20], b"", b"x" * len(whole), whole[:-500] + bytes(500)):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(cached(9, 20, 16, folder=tmp_path)[0], want)
        assert path.read_bytes() == whole
    assert list((tmp_path / "menagerie").iterdir()) == [path]


def test_a_larger_set_serves_its_first_pictures(tmp_path):
    many = cached(9, 20, 16, folder=tmp_path)[0]
    some, labels = cached(9, 7, 16, folder=tmp_path)
    np.testing.assert_array_equal(some, many[:7])
    assert len(labels) == 7 and len(list((tmp_path / "menagerie").iterdir())) == 1
    cached(9, 21, 16, folder=tmp_path), cached(8, 7, 16, folder=tmp_path), cached(9, 7, 17, folder=tmp_path)
    assert len(list((tmp_path / "menagerie").iterdir())) == 4


def same_scene(a, b):
    for field in fields(Scene):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype, field.name
        else:
            assert one == other and type(one) is type(other), field.name


@pytest.mark.parametrize("level, size", [("standard", 48), ("hard", 33)])
def test_scenes_from_the_cache_are_those_that_are_drawn(tmp_path, level, size):
    drawn = [render(9, k, size, level=level) for k in range(20)]
    for _ in range(2):  # drawn, then read
        for a, b in zip(cached_scenes(9, 20, size, level, tmp_path), drawn, strict=True):
            same_scene(a, b)
    for a, b in zip(cached_scenes(9, 5, size, level, tmp_path), drawn, strict=False):  # of the larger set
        same_scene(a, b)
    assert any(scene.keypoints for scene in drawn) and any(scene.decoys.any() for scene in drawn)
    paths = sorted((tmp_path / "menagerie").iterdir())
    assert len(paths) == 3
    for path in paths:
        whole = path.read_bytes()
        for damaged in (whole[:-100], whole[:-1] + b"?", b"", None):
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            same_scene(cached_scenes(9, 20, size, level, tmp_path)[19], drawn[19])
            assert path.read_bytes() == whole


def test_scenes_from_the_cache_take_no_millisecond_each(tmp_path):
    cached_scenes(9, 16, 80, folder=tmp_path)
    start = time.process_time()
    assert len(cached_scenes(9, 16, 80, folder=tmp_path)) == 16
    assert time.process_time() - start < 0.016


def test_cache_name_follows_the_drawing_sources(tmp_path, monkeypatch):
    cached(9, 2, 16, folder=tmp_path)
    monkeypatch.setattr(cache_module, "source_hash", lambda: "other")
    cached(9, 2, 16, folder=tmp_path)
    assert len(list((tmp_path / "menagerie").iterdir())) == 2


def test_a_worker_starts_quickly():
    done = run("import sys, zfkit.menagerie; print(sorted({'torch', 'safetensors', 'PIL'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_workers_draw_what_this_process_draws(tmp_path):
    wanted = cache_module.Set(np.int64(9), 150, 16, "hard", tmp_path)
    starts = range(0, 150, cache_module.CHUNK)
    by_two = list(cache_module.by_workers(wanted, starts, 2))
    assert len(by_two) == 3
    assert [tuple(parts) for parts in by_two] == [cache_module.drawn(wanted, start) for start in starts]


@pytest.mark.parametrize("worker", ["false", "cat", "nothing of that name"])
def test_where_no_worker_runs_this_process_draws(tmp_path, monkeypatch, worker):
    monkeypatch.setattr(cache_module.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(cache_module.sys, "executable", shutil.which(worker) or worker)
    np.testing.assert_array_equal(cached(9, 70, 16, folder=tmp_path)[0], dataset(9, 70, 16)[0])


def test_drawing_never_runs_the_users_script(tmp_path):
    """A script without a __main__ guard, in a folder where a file is called like a standard module."""
    script, here = tmp_path / "script.py", tmp_path / "here"
    here.mkdir()
    (here / "random.py").write_text("raise SystemExit('imported')")
    script.write_text("import zfkit\nprint(zfkit.load_images('menagerie', 'test', 16).images.shape)\n")
    env = os.environ | {"PYTHONPATH": str(ROOT), "ZFKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=env, cwd=here, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("(800, 16, 16, 3)\n", "", 0)


def test_two_processes_race_for_one_file(tmp_path):
    code = (
        "import hashlib; from zfkit.menagerie import cached;"
        "print(hashlib.sha256(cached(10, 130, 16)[0].tobytes()).hexdigest())"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "ZFKIT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    racers = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    digests = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert digests == [hashlib.sha256(dataset(10, 130, 16)[0].tobytes()).hexdigest()] * 2
    assert len(list((tmp_path / "menagerie").iterdir())) == 1


def test_no_room_on_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(wanted):
        yield cache_module.drawn(wanted, 0, 2)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "chunks", full)
    for load in (cached, cached_scenes):
        with pytest.raises(OSError, match="cannot write .*No space left on device") as caught:
            load(9, 70, 16, folder=tmp_path)
        assert "\n" not in str(caught.value)
        assert list((tmp_path / "menagerie").iterdir()) == []


def test_cache_refuses_bad_arguments_before_writing(tmp_path):
    for bad, message in (({"n": 0}, "n 0"), ({"size": 8}, "size 8"), ({"level": "x"}, "'x'.*standard")):
        with pytest.raises(ValueError, match=message):
            cached(**({"seed": 1, "n": 2, "folder": tmp_path} | bad))
    assert list(tmp_path.iterdir()) == []


def pixels_16(images):
    return images.reshape(len(images), 16, 4, 16, 4, 3).mean((2, 4)).reshape(len(images), -1) / 255 - 0.5


def histogram_512(images):
    bins = (images >> 5).astype(int)
    bins = (bins[..., 0] * 8 + bins[..., 1]) * 8 + bins[..., 2]
    return np.stack([np.bincount(b.ravel(), minlength=512) for b in bins]) / 512


@pytest.mark.slow
@pytest.mark.parametrize("features", [pixels_16, histogram_512])
def test_linear_baselines_stay_below_a_quarter(features, tmp_path_factory):
    from sklearn.linear_model import LogisticRegression

    folder = tmp_path_factory.getbasetemp() / "baselines"
    (train, train_labels), (test, test_labels) = cached(1, 1600, folder=folder), cached(2, 400, folder=folder)
    model = LogisticRegression(C=0.1 if features is pixels_16 else 1.0, max_iter=200)
    accuracy = model.fit(features(train), train_labels).score(features(test), test_labels)
    assert 1 / 16 < accuracy <= 0.25  # learns something, but not the class


def test_names_are_the_sixteen_classes_in_order():
    assert NAMES == (
        *("dog", "cat", "rabbit", "bear", "owl", "fish", "car", "pickup"),
        *("bicycle", "clock", "house", "keyboard", "boat", "balloon", "flower", "tree"),
    )
