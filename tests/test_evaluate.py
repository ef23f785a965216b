"""i3d-eval and i3d-predict: whole clips, streams added, one answer for the same clip by either way."""

import json
import shutil
from hashlib import sha256

import pytest
import torch
from click.testing import CliRunner

from flow import decode_flow_codes, dequantise
from manifests.sample import FormatError
from model import I3D, load_i3d, save_run
from pipeline.cli import main
from pipeline.video import decode_rgb
from train.decode import network_input, whole_clip
from train.eval_command import evaluate_command
from train.evaluate import clip_logits, load_streams
from train.loader import whole_clips
from train.predict_command import predict_command
from train.stream import open_samples, read_json

CLASSES = ["jump", "run", "stand"]


def command(which, *arguments, status=0):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def clips(tmp_path_factory, make_video):
    """A folder of classes."""
    folder = tmp_path_factory.mktemp("clips")
    # Two of them stand still, which flow is quick to find out.
    still = "trim=end_frame=1,loop=loop=-1:size=1,trim=end_frame=12"
    for name, filters in (("jump/a.mp4", "null"), ("run/b.mp4", f"hflip,{still}"), ("stand/c.mp4", f"negate,{still}")):
        (folder / name).parent.mkdir()
        make_video(folder / name, "-vf", filters, size="256x224", seconds=0.48)
    return folder


@pytest.fixture(scope="module")
def dataset(clips, tmp_path_factory):
    """The clips with flow, at short side 224."""
    output = tmp_path_factory.mktemp("dataset")
    command(main, "run", "--manifest", clips, "--output", output, "--short-side", 224)
    return output


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Untrained networks of both streams in a run's files."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for stream, channels in (("rgb", 3), ("flow", 2)):
        save_run(folder / f"{stream}.pt", I3D(3, channels).eval(), CLASSES)
    return folder


def input_of(members, stream, crop=224):
    return network_input(torch.from_numpy(whole_clip(members[f"{stream}.mp4"], stream, crop))[None], stream)


def probabilities(clip):
    return {place["label"]: place["probability"] for place in clip["top5"]}


def test_evaluation_of_both_streams(dataset, checkpoints, tmp_path):
    options = ("--shards", dataset, "--json", tmp_path / "both.json")
    said = command(evaluate_command, *options, "--rgb", checkpoints / "rgb.pt", "--flow", checkpoints / "flow.pt")
    found = json.loads((tmp_path / "both.json").read_text())
    assert 0 <= found["top1"] <= found["top5"] == 1
    assert found["streams"].keys() == {"rgb", "flow"}
    assert (found["snapshot"], found["clips_labelled"]) == ("0001", 3)
    assert "together" in said
    rgb, flow = load_i3d(checkpoints / "rgb.pt", "rgb"), load_i3d(checkpoints / "flow.pt", "flow")
    for sample, clip in zip(open_samples(str(dataset)), found["clips"], strict=True):
        members = sample.read()
        with torch.inference_mode():
            logits = rgb(input_of(members, "rgb"))[0] + flow(input_of(members, "flow"))[0]
        wanted = dict(zip(CLASSES, logits.softmax(0).tolist(), strict=True))
        assert (clip["key"], clip["label"]) == (sample.key, read_json(members)["label"])
        assert probabilities(clip) == pytest.approx(wanted, abs=1e-6)
    hits = [clip["top5"][0]["label"] == clip["label"] for clip in found["clips"]]
    assert found["top1"] == pytest.approx(sum(hits) / 3)


@pytest.mark.slow
def test_prediction_equals_evaluation(clips, checkpoints, tmp_path):
    """The same clip by either way, at the size that prediction prepares, with flow."""
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,start,end\njump/a.mp4,jump,0.12,0.48\n")
    networks = ("--rgb", checkpoints / "rgb.pt", "--flow", checkpoints / "flow.pt")
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"{label}\n" for label in CLASSES))
    output = tmp_path / "out"
    command(main, "run", "--manifest", listed, "--source", clips, "--output", output, "--classes", classes)
    command(evaluate_command, "--shards", output, *networks, "--json", tmp_path / "all.json")
    (evaluated,) = json.loads((tmp_path / "all.json").read_text())["clips"]
    times = ("--start", 0.12, "--end", 0.48)
    predicted = json.loads(command(predict_command, clips / "jump" / "a.mp4", *networks, *times, "--json"))
    assert predicted["frames"] == 9  # and 8 of flow, which start over for a ninth
    assert {place["label"]: place["probability"] for place in predicted["top"]} == pytest.approx(
        probabilities(evaluated), abs=1e-6
    )


def test_bright_pictures_are_tested(checkpoints):
    """A fade to white looks like an input that is scaled to [0, 1], which these cannot be."""
    streams = load_streams({"rgb": checkpoints / "rgb.pt"})
    pixels = torch.full((9, 48, 32), 128, dtype=torch.uint8)
    pixels[:, :32] = torch.linspace(128, 235, 32).to(torch.uint8)
    x = network_input(pixels[None], "rgb")
    assert 0 <= x.min() < 0.05
    assert x.max() > 0.5
    assert torch.isfinite(clip_logits({"rgb": pixels}, streams)["rgb"]).all()


def test_some_frames_of_the_middle_are_the_same_of_both_streams(dataset):
    """Flow, of which there is one less, begins with the frame that it is the motion from."""
    samples = open_samples(str(dataset))
    sample, members = samples[0], samples[0].read()
    frames = int(sample.record["flow_frames"])
    for wanted in (frames - 2, frames - 3):
        clip = next(iter(whole_clips(samples, ("rgb", "flow"), 32, wanted)))
        start = (frames - wanted) // 2
        for stream in ("rgb", "flow"):
            whole = torch.from_numpy(whole_clip(members[f"{stream}.mp4"], stream, 32))
            assert torch.equal(clip.pixels[stream], whole[start : start + wanted])


def test_inputs_are_scaled_to_one(dataset):
    members = next(iter(open_samples(str(dataset)))).read()
    rgb, flow = input_of(members, "rgb"), input_of(members, "flow")
    assert (rgb.shape, flow.shape) == ((1, 3, 12, 224, 224), (1, 2, 11, 224, 224))
    pictures = decode_rgb(members["rgb.mp4"])
    assert pictures.shape[1:3] == (224, 256)
    centre = torch.from_numpy(pictures[5, 100, 16 + 50]).float() / 127.5 - 1
    assert torch.allclose(rgb[0, :, 5, 100, 50], centre, atol=3 / 127.5)
    pixels = dequantise(decode_flow_codes(members["flow.mp4"]))[3, 100, 16 + 50]
    assert torch.allclose(flow[0, :, 3, 100, 50] * 20, torch.from_numpy(pixels), atol=1e-5)
    assert rgb.min() >= -1
    assert rgb.max() <= 1
    assert input_of(members, "flow", 32).shape[-1] == 32


def test_tars_by_braces_and_globs(dataset, checkpoints, tmp_path):
    shutil.copy(next((dataset / "shards" / "all").glob("*.tar")), tmp_path / "one-0.tar")
    for spec in (f"{tmp_path}/one-{{0..0}}.tar", f"{tmp_path}/*.tar"):
        result = tmp_path / "result.json"
        command(evaluate_command, "--shards", spec, "--rgb", checkpoints / "rgb.pt", "--json", result)
        found = json.loads(result.read_text())
        assert [clip["label"] for clip in found["clips"]] == [
            read_json(sample.read())["label"] for sample in open_samples(str(dataset))
        ]
        assert set(probabilities(found["clips"][0])) == set(CLASSES)  # the checkpoint's own classes


@pytest.mark.slow
def test_flow_of_another_variant_is_refused(clips, dataset, checkpoints, tmp_path):
    """By a run, by readers of both at once, and by a check of samples that a snapshot does not describe."""
    other = tmp_path / "other"
    run = ("run", "--manifest", clips, "--short-side", 224, "--flow", "tvl1-flat")
    command(main, *run, "--output", other)
    metadata = read_json(next(iter(open_samples(str(other)))).read())["flow"]
    assert (metadata["variant"], metadata["variant_version"]) == ("tvl1-flat", "opencv-5.0")
    assert metadata["parameters"]["inner_iterations"] == 300
    assert metadata["backend"] in {"cpu", "cuda"}

    said = command(main, *run, "--output", dataset, status=1)
    assert "flow.variant: 'tvl1' → 'tvl1-flat'" in said
    assert "flow.parameters.median_filtering: 5 → 1" in said
    assert "flow.crf: 24 → 0" in command(main, *run, "--flow-crf", 0, "--output", dataset, status=1)

    tars = f"{dataset}/shards/all/*.tar,{other}/shards/all/*.tar"
    said = command(evaluate_command, "--shards", f"{{{tars}}}", "--flow", checkpoints / "flow.pt", status=1)
    assert "its flow was made in another way than that before it: " in said
    assert "variant: 'tvl1-flat' → 'tvl1'" in said or "variant: 'tvl1' → 'tvl1-flat'" in said

    # Opening them is not refused, since RGB may be all that is wanted; flow is, whatever comes first.
    rgb_only = tmp_path / "rgb-only"
    command(main, *run[:-1], "none", "--output", rgb_only)
    three = f"{{{rgb_only}/shards/all/*.tar,{tars}}}"
    assert len(open_samples(three)) == 9
    with pytest.raises(FormatError, match="its flow was made in another way"):
        open_samples(three).require_one_flow()

    file = other / "snapshots" / "0001" / "snapshot.json"
    file.write_text(file.read_text().replace('"tvl1-flat"', '"tvl1"'))
    root = json.loads((other / "index.json").read_text())
    (other / "index.json").write_text(json.dumps(root | {"snapshot_sha256": sha256(file.read_bytes()).hexdigest()}))
    said = command(main, "verify", other, "--decode", status=1)
    assert "its flow was made in another way than the dataset's: flow.variant: 'tvl1' → 'tvl1-flat'" in said


def test_a_snapshot_can_be_named(dataset):
    assert len(open_samples(f"{dataset}@0001")) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rgb", "flow.pt"), "holds a network of flow, one of rgb was asked for"),
        (("--flow", "rgb.pt"), "holds a network of rgb, one of flow was asked for"),
        (("--rgb", "none.pt"), "there is no such file"),
        ((), "give --rgb or --flow or --both"),
        (("--rgb", "four.pt"), "a network of 4 classes, where 3 (own) are wanted"),
        (("--rgb", "named.pt"), "class 2 is 'sit' there and 'stand' in own"),
        (("--rgb", "rgb.pt", "--split", "val"), "no sample of split 'val'; there are (none)"),
        (("--rgb", "rgb.pt", "--shards", "nowhere"), "nowhere: neither a dataset's folder nor a tar"),
        (("--rgb", "rgb.pt", "--shards", "."), "no dataset is published there"),
        (("--rgb", "rgb.pt", "--shards", "{a,b"), "Unbalanced braces"),
    ],
)
def test_bad_arguments(dataset, checkpoints, arguments, said, monkeypatch):
    monkeypatch.chdir(checkpoints)
    save_run("four.pt", I3D(4, 3), None)
    save_run("named.pt", I3D(3, 3), ["jump", "run", "sit"])
    assert said in command(evaluate_command, "--shards", dataset, *arguments, status=1)


@pytest.mark.slow
def test_what_a_dataset_cannot_give(clips, checkpoints, tmp_path):
    no_flow = tmp_path / "no-flow"
    command(main, "run", "--manifest", clips, "--output", no_flow, "--short-side", 224, "--flow", "none")
    said = command(evaluate_command, "--shards", no_flow, "--flow", checkpoints / "flow.pt", status=1)
    assert "no flow: prepared with --flow none?" in said
    small = tmp_path / "small"
    command(main, "run", "--manifest", clips, "--output", small, "--short-side", 64, "--flow", "none")
    said = command(evaluate_command, "--shards", small, "--rgb", checkpoints / "rgb.pt", status=1)
    assert "smaller than the crop of 224x224" in said


# A tar that lacks nothing but its end is read by the index beside it.
@pytest.mark.parametrize(("as_tar", "missing"), [(False, 0.5), (True, 0.5), (False, 0)])
def test_a_truncated_shard_is_named(dataset, checkpoints, tmp_path, as_tar, missing):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (shard,) = (copy / "shards" / "all").glob("*.tar")
    content = shard.read_bytes().rstrip(b"\0")  # what the tar holds, without the mark of its end
    shard.write_bytes(content[: int(len(content) * (1 - missing))])
    said = command(evaluate_command, "--shards", shard if as_tar else copy, "--rgb", checkpoints / "rgb.pt", status=1)
    assert shard.name in said
    assert "truncated" in said or "not a whole tar" in said


def test_bad_predictions(tmp_path, checkpoints, clips):
    empty, page = tmp_path / "empty.mp4", tmp_path / "page.mp4"
    empty.touch()
    page.write_text("<html>")
    rgb = ("--rgb", checkpoints / "rgb.pt")
    assert "empty-file" in command(predict_command, empty, *rgb, status=1)
    assert "not-a-video" in command(predict_command, page, *rgb, status=1)
    video = clips / "jump" / "a.mp4"
    assert "start 3 is not before end 2" in command(predict_command, video, *rgb, "--start", 3, "--end", 2, status=1)
    assert "too-short" in command(predict_command, video, *rgb, "--start", 0.3, status=1)
    assert "give --rgb" in command(predict_command, video, status=1)
    assert "is outside 0 to 999999 seconds" in command(predict_command, video, *rgb, "--end", 1e9, status=1)
    assert "inf is not finite" in command(predict_command, video, *rgb, "--end", "inf", status=2)
    assert "nan is not finite" in command(predict_command, video, *rgb, "--start", "nan", status=2)


def test_prediction_for_people_and_machines(checkpoints, clips):
    video = clips / "jump" / "a.mp4"
    said = command(predict_command, video, "--rgb", checkpoints / "rgb.pt", "--top", 2)
    assert len(said.splitlines()) == 2
    found = json.loads(command(predict_command, video, "--rgb", checkpoints / "rgb.pt", "--json"))
    assert found["frames"] == 12
    assert sum(place["probability"] for place in found["top"]) == pytest.approx(1, abs=1e-5)
