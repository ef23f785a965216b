"""i3d-eval: flips, three crops and weights of the fusion; scores with intervals; which clips were tested."""

import json
import shutil
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from manifests.sample import FormatError
from model import head_names, save_run
from pipeline.cli import main
from tests import golden
from tests.networks import random_network
from tests.test_benchmarks_lists import ucf, write
from tests.test_ranks import damaged_copy
from train.clip_list import clip_list, missing_clips
from train.decode import MEMBER_OF, network_input, training_window, whole_clip, whole_clip_crops
from train.eval_command import evaluate_command
from train.evaluate import load_streams, network_logits
from train.plan import View
from train.scores import MEASURES, intervals, measures, ranks
from train.stream import open_samples

CROP, CLASSES = 32, ("YoYo", "HandstandPushups", "Archery")
WIDE, TALL = "YoYo/v_YoYo_g01_c01.avi", "HandstandPushups/v_HandStandPushups_g01_c01.avi"
TAKEN_DOWN, GONE = "YoYo/v_YoYo_g03_c01.avi", "Archery/v_Archery_g01_c01.avi"


def command(which, *arguments, status=0):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, make_video):
    """Of a tiny UCF-101: a wide clip of train1 and test2, a tall one of test1 and train2, one of test1 that is missing.

    One more was taken down, and the line of a fifth is none.
    """
    folder = tmp_path_factory.mktemp("ucf")
    output = folder / "dataset"
    root = ucf(folder / "ucf", [f"{WIDE} 1"], [TALL, GONE])
    write(root / "ucfTrainTestlist" / "trainlist02.txt", f"{TALL} 2")
    write(root / "ucfTrainTestlist" / "testlist02.txt", WIDE, TAKEN_DOWN, "YoYo/v_YoYo_g04_c01.mp5")
    for path, size in ((WIDE, "96x64"), (TALL, "64x96"), (TAKEN_DOWN, "64x64")):
        video = root / "UCF-101" / path
        video.parent.mkdir(parents=True, exist_ok=True)
        make_video(video, size=size, seconds=0.48)
    run = ("run", "--manifest", root, "--output", output, "--short-side", 48)
    command(main, *run)
    command(main, "purge", output, "--", *(s.key for s in open_samples(str(output)) if "YoYo_g03" in s.key))
    return output


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """I3D on both streams, with random weights."""
    folder = tmp_path_factory.mktemp("runs")
    for stream in ("rgb", "flow"):
        save_run(folder / f"{stream}.pt", random_network("i3d", (stream,)).eval(), CLASSES)
    return folder


def evaluate(dataset, checkpoints, *options):
    """What both networks find, as JSON and in words."""
    networks = ("--rgb", checkpoints / "rgb.pt", "--flow", checkpoints / "flow.pt")
    result = checkpoints / "result.json"
    said = command(evaluate_command, "--shards", dataset, *networks, "--crop", CROP, "--json", result, *options)
    return json.loads(result.read_text()), said


# Where a crop of 32 lies in pictures of 72x48 and 48x72, by the shares that training draws.
ALONG = {"v_YoYo": [(0.5, 0), (0.5, 0.5), (0.5, 0.999)], "v_Hand": [(0, 0.5), (0.5, 0.5), (0.999, 0.5)]}


def view_logits(sample, stream, network, places, flips):
    """The mean over views that are cut and mirrored as in training, each shown on its own."""
    video = sample.read()[MEMBER_OF[stream]]
    pictures = range(len(whole_clip(video, stream, CROP)))
    views = [View(0, {stream: pictures}, *place, flip) for place in places for flip in flips]
    windows = [torch.from_numpy(training_window(video, stream, view, CROP))[None] for view in views]
    with torch.inference_mode():
        return torch.stack([network(network_input(window, stream))[0] for window in windows]).mean(0)


@pytest.mark.parametrize(
    ("options", "crops", "flips", "weights"),
    [
        ((), 1, (False,), {"rgb": 1, "flow": 1}),
        (("--crops", 3, "--flips", "--fusion-weights", "flow=2, rgb=0.5"), 3, (False, True), {"rgb": 0.5, "flow": 2}),
    ],
)
def test_logits_are_averaged_over_views_and_added_by_weight(dataset, checkpoints, options, crops, flips, weights):
    found, said = evaluate(dataset, checkpoints, *options)
    streams = load_streams({stream: checkpoints / f"{stream}.pt" for stream in ("rgb", "flow")})
    for sample, clip in zip(open_samples(str(dataset)), found["clips"], strict=True):
        places = ALONG[sample.key[:6]] if crops == 3 else [(0.5, 0.5)]
        logits = {s: view_logits(sample, s, network, places, flips) for s, network in streams.networks.items()}
        wanted = (weights["rgb"] * logits["rgb"] + weights["flow"] * logits["flow"]).softmax(0)
        given = {place["label"]: place["probability"] for place in clip["top5"]}
        assert [given[label] for label in CLASSES] == pytest.approx(wanted.tolist(), abs=1e-5)
        for stream, answer in clip["streams"].items():
            assert answer["probability"] == pytest.approx(logits[stream].softmax(0).max().item(), abs=1e-5)
    assert found["protocol"] == {
        "crop": CROP, "short_side": 48, "frames": None, "crops": crops, "flips": len(flips) == 2, "weights": weights,
        "precision": "fp32",
    }  # fmt: skip
    assert ("3 crops of 32 pixels of short side 48, frames: all, with flips, 0.5 x rgb + 2 x flow, fp32" in said) == (
        crops == 3
    )


def mirrored_pixels(pixels, stream):
    """Stored planes of a clip as a mirror shows it, flow's codes other than 0."""
    flipped = pixels.flip(-1)
    side = pixels.shape[-1]
    if stream == "flow":
        flipped[:, :side] = 256 - flipped[:, :side].int()
    else:
        flipped[:, side:] = torch.cat(flipped[:, side:].chunk(2, -1)[::-1], -1)
    return flipped


@pytest.mark.parametrize(
    ("architecture", "streams", "side"), [("lstm", ("rgb",), 32), ("two-stream", ("rgb", "flow"), 64)]
)
def test_every_architecture_sees_the_mirrored_clip(architecture, streams, side):
    network = random_network(architecture, streams).eval()
    draw = torch.Generator().manual_seed(0)
    rows = {"rgb": side * 3 // 2, "flow": side * 2}
    pixels = {s: torch.randint(16, 235, (20, rows[s], side), dtype=torch.uint8, generator=draw) for s in streams}
    turned = {stream: mirrored_pixels(clip, stream) for stream, clip in pixels.items()}
    device = torch.device("cpu")
    found = network_logits(pixels, network, device, flip=True)
    assert torch.allclose(found, network_logits(turned, network, device), atol=1e-5)
    assert not torch.allclose(found, network_logits(pixels, network, device), atol=1e-3)


def test_the_middle_of_three_crops_is_the_centre_crop(dataset):
    for sample in open_samples(str(dataset)):
        for stream, member in MEMBER_OF.items():
            video = sample.read()[member]
            crops = whole_clip_crops(video, stream, CROP, 3, range(2, 9))
            assert np.array_equal(crops[1], whole_clip(video, stream, CROP)[2:9])
            assert not np.array_equal(crops[0], crops[2])


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """A network that answers "moving left" to every clip of the golden dataset."""
    path = tmp_path_factory.mktemp("partial") / "rgb.pt"
    labels = open_samples(str(golden.DATASET)).classes.labels
    network = random_network("i3d", ("rgb",), len(labels)).eval()
    (bias,) = (name for name in head_names("i3d", ("rgb",)) if name.endswith("bias"))
    network.state_dict()[bias][:] = torch.tensor([1e4 if label == "moving left" else 0.0 for label in labels])
    save_run(path, network, labels)
    return path


def test_scores_of_a_network_that_gives_one_answer(partial, tmp_path):
    result = tmp_path / "found.json"
    data = ("--shards", golden.DATASET, "--split", "train", "--crop", CROP)
    said = command(evaluate_command, *data, "--rgb", partial, "--json", result)
    found, samples = json.loads(result.read_text()), open_samples(str(golden.DATASET), "train")
    labels = samples.classes.labels
    answer = labels.index("moving left")
    counts = Counter(samples.records["class_index"].tolist())
    assert [row[answer] for row in found["confusion"]] == [counts[index] for index in range(len(labels))]
    assert np.array(found["confusion"]).shape == (len(labels), len(labels))
    assert np.array(found["confusion"]).sum() == found["clips_labelled"] == len(samples)
    assert found["top1"] == pytest.approx(counts[answer] / len(samples))
    assert found["mean_class_accuracy"] == pytest.approx(1 / len(counts))
    assert found["bootstrap"] == {"confidence": 0.95, "resamples": 2000, "seed": 0, "videos": len(samples)}
    assert {clip["label"]: clip["top1"] for clip in found["per_class"]} == {
        labels[index]: float(index == answer) for index in counts
    }
    alone = found["streams"]["rgb"]
    assert {name: alone[name] for name in (*MEASURES, "intervals")} == {
        name: found[name] for name in (*MEASURES, "intervals")
    }
    low, high = found["intervals"]["top1"]
    assert 0 <= low < found["top1"] < high < 1
    assert f"rgb      {found['top1']:.4f} [{low:.4f}, {high:.4f}]" in said
    assert "(label: " in said
    # This dataset is shipped without a ledger.
    assert found["clip_list"]["missing"] is None
    assert "without a ledger, nobody knows what is missing" in said


def test_ranks_and_measures():
    labels = np.array([0, 1, 1, 1, 3])
    logits = torch.tensor([[9, 1, 1, 1], [0, 5, 1, 1], [7, 5, 6, 1], [0, 2, 1, 1], [5, 5, 5, 5]], dtype=torch.float32)
    places = ranks(list(logits), labels)
    assert places.tolist() == [0, 0, 2, 0, 3]  # of equal logits the first class comes first
    top1, top5, mean_of_classes = measures(places, labels)
    assert (top1, top5) == (0.6, 1)
    assert mean_of_classes == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_intervals_are_as_wide_as_chance_makes_them():
    """For shares, by the normal approximation of the binomial distribution, which is good for 2,000 clips."""
    labels = np.arange(2000) % 10
    # Seven tenths of the clips are right, half of the others among the first five; classes differ.
    places = np.where(np.arange(2000) % 20 < 14, 0, np.where(np.arange(2000) % 2, 3, 7))
    videos = [f"video {number}" for number in range(2000)]
    found = intervals(places, labels, videos)
    assert found == intervals(places, labels, videos)
    for name, share in (("top1", 0.7), ("top5", 0.85)):
        half = 1.96 * (share * (1 - share) / 2000) ** 0.5
        assert found[name] == pytest.approx([share - half, share + half], abs=0.15 * half)
    # A class's share varies by its own clips: six classes are right every second time, four always.
    half = 1.96 * (6 * 0.25 / 200) ** 0.5 / 10
    assert found["mean_class_accuracy"] == pytest.approx([0.7 - half, 0.7 + half], abs=0.15 * half)


def test_intervals_know_of_clips_of_one_video():
    """Copies of a clip make no interval narrower, and one video tells of no other."""
    labels = np.arange(500) % 10
    places = np.where(np.arange(500) % 20 < 14, 0, 7)
    videos = [f"video {number:03}" for number in range(500)]
    once = intervals(places, labels, videos)
    assert intervals(np.tile(places, 8), np.tile(labels, 8), videos * 8) == once
    low, high = intervals(np.tile(places, 8), np.tile(labels, 8), [str(number) for number in range(4000)])["top1"]
    assert once["top1"][1] - once["top1"][0] > 2 * (high - low)
    assert intervals(places, labels, ["film"] * 500)["top1"] == [0, 1]


def missing_of(found):
    return [(clip["key"].rpartition("_")[0], clip["label"], clip["reason"]) for clip in found["clip_list"]["missing"]]


GONE_CLIP = ("v_Archery_g01_c01", "Archery", "missing")
ELSEWHERE = {"bad-row": 1, "withdrawn": 1}


def test_the_clips_of_a_result(dataset, checkpoints):
    found, said = evaluate(dataset, checkpoints, "--split", "test1")
    keys = [sample.key for sample in open_samples(str(dataset), "test1")]
    assert found["clip_list"]["sha256"] == sha256(f"{keys[0]}\n".encode()).hexdigest()
    assert (found["clip_list"]["found"], found["split"]) == (1, "test1")
    assert clip_list(["b", "a"], [], None)["sha256"] == sha256(b"a\nb\n").hexdigest()
    assert missing_of(found) == [GONE_CLIP]
    assert found["clip_list"]["unplaced"] == ELSEWHERE
    snapshot = dataset / "snapshots" / found["snapshot"] / "snapshot.json"
    assert found["snapshot_sha256"] == sha256(snapshot.read_bytes()).hexdigest()
    for stream in ("rgb", "flow"):
        content = (checkpoints / f"{stream}.pt").read_bytes()
        assert found["checkpoints"][stream]["sha256"] == {f"{stream}.pt": sha256(content).hexdigest()}
    assert "split test1: 1 clips, 1 with a label; 1 of the list missing (missing 1)" in said
    assert "2 more of splits unknown (bad-row 1, withdrawn 1)" in said


def test_clips_that_cannot_be_read_are_named_and_left_out(tmp_path):
    """Up to --max-bad; the others are tested, with the same results whatever the number of workers."""
    keys = damaged_copy(tmp_path / "data", (0, 2), "val")
    samples = open_samples(str(golden.DATASET), "val")
    classes = samples.classes.labels
    save_run(tmp_path / "flow.pt", random_network("i3d", ("flow",), len(classes)).eval(), classes)
    how = ("--shards", tmp_path / "data", "--split", "val", "--flow", tmp_path / "flow.pt", "--crop", CROP)
    said = command(evaluate_command, *how, "--json", tmp_path / "found.json", "--max-bad", 2)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [bad["key"] for bad in found["clip_list"]["unreadable"]] == keys
    assert all("other bytes than the index says" in bad["message"] for bad in found["clip_list"]["unreadable"])
    assert found["clip_list"]["found"] == len(found["clips"]) == len(samples) - 2
    assert "; 2 could not be read; " in said
    assert said.count("left out: ") == 2
    for workers in (0, 3):
        command(evaluate_command, *how, "--json", tmp_path / "other.json", "--workers", workers)
        assert json.loads((tmp_path / "other.json").read_text()) == found
    assert "2 clips cannot be used, more than --max-bad 1: " in command(
        evaluate_command, *how, "--max-bad", 1, status=1
    )
    damaged_copy(tmp_path / "worse", range(len(samples)), "val")
    how = ("--shards", tmp_path / "worse", *how[2:])
    assert "none of the 4 clips can be used: " in command(evaluate_command, *how, status=1)


def test_missing_clips_of_other_splits(dataset, tmp_path):
    def missing(split, place=dataset):
        return missing_clips(open_samples(str(place), split), split)

    assert missing("train1") == ([], ELSEWHERE)
    assert missing("test2") == ([], ELSEWHERE)
    clips, elsewhere = missing(None)
    assert sorted(clip["reason"] for clip in clips) == ["bad-row", "missing", "withdrawn"]
    assert elsewhere == {}
    assert missing("train1", f"{dataset}/shards/all/*.tar") is None


def test_what_a_later_snapshot_has_is_missing_of_an_earlier_one(tmp_path, make_video):
    """Where splits do not overlap; a row that stands twice is no clip that is missing."""
    (tmp_path / "list.csv").write_text("path,label,split\na.mp4,x,val\nb.mp4,y,val\nb.mp4,y,val\nc.mp4,x,train\n")
    classes = tmp_path / "classes.txt"
    classes.write_text("x\ny\n")
    run = ("run", "--manifest", tmp_path / "list.csv", "--source", tmp_path, "--classes", classes, "--flow", "none")
    for name in ("a", "b"):
        make_video(tmp_path / f"{name}.mp4", size="64x64", seconds=0.4)
        command(main, *run, "--output", tmp_path / "data", "--short-side", 48)
    for snapshot, wanted in (("0001", [("y", None)]), ("0002", [])):
        clips, unplaced = missing_clips(open_samples(f"{tmp_path}/data@{snapshot}", "val"), "val")
        assert ([(clip["label"], clip["reason"]) for clip in clips], unplaced) == (wanted, {})


def test_missing_clips_of_a_dataset_on_a_server(dataset, serve, tmp_path):
    shutil.copytree(dataset, tmp_path / "data")
    url = f"{serve(tmp_path)}/data"
    samples = open_samples(url, "test1")
    assert missing_clips(samples, "test1") == missing_clips(open_samples(str(dataset), "test1"), "test1")
    ledger = tmp_path / "data" / "ledger" / "outcomes.jsonl"
    before = ledger.read_bytes()
    entry = json.loads(before.splitlines()[-1])
    without = {name: value for name, value in entry.items() if name != "memberships"}
    for damaged in ({"key": 7}, without, {**entry, "memberships": "test1"}):
        ledger.write_bytes(before + json.dumps(damaged).encode() + b"\n")
        with pytest.raises(FormatError, match=rf"outcomes.jsonl:{len(before.splitlines()) + 1}: not an entry of a"):
            missing_clips(samples, "test1")
    ledger.unlink()
    assert missing_clips(samples, "test1") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fusion-weights", "rgb"), "'rgb': want rgb, flow or both, each once, with a positive number"),
        (("--fusion-weights", "rgb=1,rgb=2"), "'rgb=2': want"),
        (("--fusion-weights", "rgb=0"), "'rgb=0': want"),
        (("--fusion-weights", "rgb=nan"), "'rgb=nan': want"),
        (("--fusion-weights", "rgb=1e308"), "'rgb=1e308': want"),
        (("--hold-out", "nan"), "'--hold-out': nan is not finite"),
        (("--fusion-weights", "both=2"), "--fusion-weights both=2: there is no --both"),
        (("--crops", 2), "'2' is not one of '1', '3'"),
        (("--crops", 3, "--crop", 64), "smaller than the crop of 64x64"),
    ],
)
def test_bad_protocols(dataset, checkpoints, options, said):
    networks = ("--shards", dataset, "--rgb", checkpoints / "rgb.pt", "--crop", CROP)
    result = CliRunner().invoke(evaluate_command, [str(word) for word in (*networks, *options)])
    assert result.exit_code != 0
    assert said in result.output


def test_where_results_cannot_go_is_said_before_the_work(checkpoints):
    """There are no such shards: they would be missed first, if the place were not."""

    def said(place):
        return command(evaluate_command, "--shards", "none", "--rgb", checkpoints / "rgb.pt", "--json", place, status=1)

    before = (checkpoints / "rgb.pt").read_bytes()
    assert "rgb.pt: that is a file of --rgb, which would be lost" in said(checkpoints / "rgb.pt")
    assert (checkpoints / "rgb.pt").read_bytes() == before
    assert "flow.pt" in said(checkpoints / "flow.pt" / "result.json")


def test_a_network_that_held_clips_out_may_know_the_others(tmp_path):
    """Its own share is what it has not seen; data without splits are tested on as a whole without --hold-out."""
    classes = open_samples(str(golden.DATASET), "train").classes.labels
    save_run(tmp_path / "rgb.pt", random_network("i3d", ("rgb",), len(classes)).eval(), classes, hold_out=0.5)
    tars = golden.DATASET / "shards" / "train" / "*.tar"
    how = ("--rgb", tmp_path / "rgb.pt", "--crop", CROP)
    warning = "Warning: rgb was trained with --hold-out 0.5: if on this data, it may know some of the clips"
    assert warning in command(evaluate_command, "--shards", tars, *how)
    said = command(evaluate_command, "--shards", golden.DATASET, "--split", "train", *how, "--hold-out", 0.5)
    assert "Warning" not in said
    assert "split train, --hold-out 0.5: 4 clips" in said
    assert "Warning" not in command(evaluate_command, "--shards", golden.DATASET, "--split", "val", *how)
