"""Flow by the front door, its 8-bit coding, its pictures."""

import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from flow import (
    VARIANTS,
    BackendUnavailable,
    TVL1Params,
    colour_code,
    colour_legend,
    cpu_kernels,
    decode_flow_codes,
    dequantise,
    encode_flow,
    fastest_backend,
    quantise,
    tvl1,
    tvl1_pairs,
)
from manifests.sample import FlowCoding
from tests.scenes import SCENES, render_pair


def moving_texture(frames=3, dx=1.5, dy=-0.75, seed=0, height=64, width=80):
    """A smooth random texture that moves by (dx, dy) pixels a frame: [T, H, W] uint8."""
    texture = cv2.GaussianBlur(np.random.default_rng(seed).random((height + 60, width + 60)), (0, 0), 3)
    texture = (texture - texture.min()) / np.ptp(texture) * 255
    shifts = [np.float32([[1, 0, i * dx - 30], [0, 1, i * dy - 30]]) for i in range(frames)]
    return np.stack([cv2.warpAffine(texture, m, (width, height), flags=cv2.INTER_CUBIC) for m in shifts]).astype(
        np.uint8
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_the_direction_and_size_of_motion(seed):
    flow = tvl1(moving_texture(dx=1.5, dy=-0.75, seed=seed))
    assert (flow.shape, flow.dtype) == ((2, 64, 80, 2), np.float32)
    np.testing.assert_allclose(np.median(flow, (0, 1, 2)), (1.5, -0.75), atol=0.05)


def test_the_reference_is_opencv_with_its_defaults():
    frames = moving_texture()
    reference = cv2.optflow.DualTVL1OpticalFlow.create()
    np.testing.assert_array_equal(tvl1(frames, backend="opencv")[1], reference.calc(frames[1], frames[2], None))
    few = TVL1Params(warps=1, scales=2, outer_iterations=1, tau=0.2)
    assert not np.array_equal(tvl1(frames, few, backend="opencv"), tvl1(frames, backend="opencv"))


def errors(flow, reference):
    """End-point errors of all pixels."""
    return np.hypot(*np.moveaxis(flow - reference, -1, 0)).ravel()


# Widths around a multiple of what the loops do at a time, heights odd and even; one size with fewer levels.
@pytest.mark.parametrize(("width", "height"), [(79, 65), (80, 64), (81, 63), (96, 97), (97, 96), (20, 30)])
def test_our_solver_is_opencvs_as_long_as_rounding_is_not_amplified(width, height):
    """No early stop and few iterations: each pixel, not the mean, is equal to a thousandth of a pixel."""
    frames = moving_texture(frames=2, dx=2.5, dy=1.5, width=width, height=height, seed=width)
    few = TVL1Params(epsilon=0, warps=2, scales=3, inner_iterations=4, outer_iterations=1)
    ours, reference = tvl1(frames, few, backend="cpu"), tvl1(frames, few, backend="opencv")
    assert errors(ours, reference).max() < 1e-3
    assert np.abs(reference).mean() > 0.1


@pytest.mark.parametrize(
    "changed",
    [
        {"tau": 0.1}, {"lambda_": 0.05}, {"theta": 0.5}, {"scales": 1}, {"warps": 3}, {"epsilon": 0.002},
        {"inner_iterations": 7}, {"outer_iterations": 1}, {"scale_step": 0.5}, {"median_filtering": 3},
        {"median_filtering": 1},
    ],
)  # fmt: skip
def test_each_parameter_does_what_it_does_in_opencv(changed):
    frames = moving_texture(frames=2, dx=1.5, dy=1, width=90, height=70, seed=3)
    base = {"warps": 2, "outer_iterations": 3, "inner_iterations": 5}
    params = TVL1Params(**{**base, **changed})
    ours, reference = tvl1(frames, params, backend="cpu"), tvl1(frames, params, backend="opencv")
    assert errors(ours, reference).mean() < 0.01
    default = tvl1(frames, TVL1Params(**base), backend="cpu")
    assert not np.array_equal(ours, default)


def test_the_operators_are_opencvs():
    """Bilinear resize, gradient, cubic warp: each to a ten-thousandth of a grey level; also beyond the picture."""
    picture = moving_texture(frames=1, height=66, width=85, seed=4)[0].astype(np.float32)
    reference = cv2.resize(picture, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_LINEAR)
    assert np.abs(cpu_kernels.resize(picture, *reference.shape, 1.25, 1.25, np.float32(1)) - reference).max() < 1e-4

    flow = np.random.default_rng(5).normal(0, 9, (2, 66, 85)).astype(np.float32)
    shape = height, pitch, planes = 66, cpu_kernels.GUARD + 88, cpu_kernels.PLANES
    level = np.zeros((height + 1) * planes * pitch + cpu_kernels.GUARD, np.float32)
    rows = level[planes * pitch : -cpu_kernels.GUARD].reshape(height, planes, pitch)[:, :, cpu_kernels.GUARD :]
    rows[:, :2, :85] = flow.transpose(1, 0, 2)
    cpu_kernels.warp(cpu_kernels.with_gradient(picture), 0 * picture, level, shape)
    border = cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    gradient = (border[1:-1, 2:] - border[1:-1, :-2]) / 2, (border[2:, 1:-1] - border[:-2, 1:-1]) / 2
    y, x = np.mgrid[:66, :85].astype(np.float32)
    to = x + flow[0], y + flow[1]
    warped, ix, iy = (cv2.remap(plane, *to, cv2.INTER_CUBIC) for plane in (picture, *gradient))
    assert np.abs(rows[:, 6, :85] - ix).max() < 1e-4
    assert np.abs(rows[:, 7, :85] - iy).max() < 1e-4
    found = rows[:, 9, :85] + ix * flow[0] + iy * flow[1]  # ρ holds the warped picture
    assert np.abs(found - warped).max() < 1e-3  # the sums are of hundreds


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_our_solver_is_opencvs_with_its_defaults(seed):
    frames = moving_texture(frames=2, dx=3, dy=-2, width=160, height=128, seed=seed)
    found = errors(tvl1(frames, backend="cpu"), tvl1(frames, backend="opencv"))
    assert found.mean() <= 0.03
    assert np.percentile(found, 99) <= 0.3


# On large motion rounding grows, see the test after this.
NOT_REACHED = pytest.mark.xfail(reason="mean .032 (turning, 6.5 px) and .068 px (large motion, 8.9 px)", strict=True)
BEYOND = ("large motion", "turning")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(scene.name, marks=NOT_REACHED if scene.name in BEYOND else ()) for scene in SCENES]
)
def test_our_solver_is_opencvs_on_scenes_of_full_size(name):
    """And no further from the true flow than OpenCV's."""
    scene = next(scene for scene in SCENES if scene.name == name)
    pair, truth, _ = render_pair(scene, seed=7)
    ours, reference = tvl1(pair, backend="cpu")[0], tvl1(pair, backend="opencv")[0]
    assert errors(truth, 0 * truth).mean() >= 1
    assert errors(ours, reference).mean() <= 0.03
    assert np.percentile(errors(ours, reference), 99) <= 0.3
    assert errors(ours, truth).mean() <= errors(reference, truth).mean() + 0.01


def test_the_flat_schedule_is_near_the_default():
    frames = moving_texture(frames=2, dx=3, dy=-2, width=160, height=128, seed=11)
    found = errors(tvl1(frames, VARIANTS["tvl1-flat"]), tvl1(frames, VARIANTS["tvl1"]))
    assert 0 < found.mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", BEYOND)
def test_there_opencv_is_as_far_from_itself(name):
    """A step longer by a millionth, which is some of float32's last bits, does what our order of rounding does."""
    pair, _, _ = render_pair(next(scene for scene in SCENES if scene.name == name), seed=7)
    reference = tvl1(pair, backend="opencv")
    found = errors(tvl1(pair, TVL1Params(tau=0.25 * (1 + 1e-6)), backend="opencv"), reference)
    assert np.percentile(found, 99) > 0.3
    assert found.mean() > 0.6 * errors(tvl1(pair, backend="cpu"), reference).mean()


@pytest.mark.slow
def test_memory_of_a_clip_is_small():
    """Beyond input and output, 10 to 20 MB a thread at 340x256."""
    script = """
import re
import numpy as np
from flow import tvl1
from tests.scenes import SCENES, render_pair
frames = np.concatenate([render_pair(SCENES[0], seed)[0] for seed in range(5)])
tvl1(np.ascontiguousarray(frames[:2, :64, :64]))
def kilobytes(field):  # not getrusage: its peak is the parent's at first
    return int(re.search(field + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
before = kilobytes("VmRSS")
flow = tvl1(frames, threads=4)
print((kilobytes("VmHWM") - before) / 1e3 - flow.nbytes / 1e6)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert 0 < float(done.stdout) < 80


def test_what_does_not_move_has_no_flow_at_all():
    still = np.repeat(moving_texture(frames=1), 2, axis=0)
    assert (tvl1(still) == 0).all()
    assert (tvl1(np.full((2, 33, 40), 255, np.uint8)) == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "opencv"])
def test_a_pair_does_not_depend_on_its_neighbours_threads_or_earlier_calls(backend):
    frames = moving_texture(frames=5)
    alone = tvl1(frames[2:4], backend=backend)[0]
    # A small picture lowers the number of scales of OpenCV's object for good.
    tvl1(moving_texture(height=16, width=16), backend=backend)
    np.testing.assert_array_equal(tvl1(frames, backend=backend)[2], alone)
    np.testing.assert_array_equal(tvl1(frames, backend=backend, threads=3)[2], alone)


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@pytest.mark.parametrize("size", [(80, 97), (64, 72)])
def test_the_illumination_term_is_opencvs(gamma, size):
    first, second = moving_texture(frames=2, dx=2.5, dy=1.5, height=size[0], width=size[1], seed=5)
    darker = np.stack([first, (second * 0.9 + 10).astype(np.uint8)])
    few = TVL1Params(gamma=gamma, epsilon=0, warps=2, scales=3, inner_iterations=4, outer_iterations=1)
    ours = tvl1(darker, few, backend="cpu")
    assert errors(ours, tvl1(darker, few, backend="opencv")).max() < 1e-3
    assert errors(ours, tvl1(darker, replace(few, gamma=0.0), backend="cpu")).max() > 1e-3
    params = TVL1Params(gamma=gamma)
    assert errors(tvl1(darker, params, backend="cpu"), tvl1(darker, params, backend="opencv")).mean() <= 0.03


def test_a_flow_to_begin_with_is_used_as_in_opencv():
    frames = moving_texture(frames=2, dx=6, dy=-4, seed=8)
    few = TVL1Params(epsilon=0, warps=1, scales=2, inner_iterations=4, outer_iterations=1)
    initial = np.random.default_rng(1).normal((5, -3), 0.5, (1, 64, 80, 2)).astype(np.float32)
    ours = tvl1(frames, few, backend="cpu", initial=initial)
    assert errors(ours, tvl1(frames, few, backend="opencv", initial=initial)).max() < 1e-3
    truth = np.float32((6, -4))
    assert errors(ours, truth).mean() < 0.5 * errors(tvl1(frames, few, backend="cpu"), truth).mean()
    with pytest.raises(ValueError, match=r"initial must be \[1, 64, 80, 2\] float32"):
        tvl1(frames, initial=initial[..., 0])
    initial[0, 3, 4, 1] = np.nan
    with pytest.raises(ValueError, match="initial holds NaN"):
        tvl1(frames, initial=initial)


def test_pairs_of_many_clips():
    one, two = moving_texture(frames=3, seed=1), moving_texture(frames=2, dx=-1, seed=2)
    together = tvl1_pairs([one[0], one[1], two[0]], [one[1], one[2], two[1]])
    np.testing.assert_array_equal(together, np.concatenate([tvl1(one), tvl1(two)]))
    with pytest.raises(ValueError, match=r"one size and number, not \[3, 64, 80\] and \[2, 64, 80\]"):
        tvl1_pairs(one, two)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU to take")
def test_auto_is_the_cpu_where_there_is_no_gpu():
    frames = moving_texture(frames=2)
    assert fastest_backend() == "cpu"
    np.testing.assert_array_equal(tvl1(frames), tvl1(frames, backend="cpu"))


def test_auto_is_the_cpu_where_there_is_a_driver_but_no_torch(tmp_path):
    """The driver is some library of its name; without torch nobody asks it for more than to exist."""
    (tmp_path / "libcuda.so.1").symlink_to(np._core._multiarray_umath.__file__)
    code = "import sys; sys.modules['torch'] = None; import flow; print(flow.fastest_backend())"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "cpu\n"
    assert "flow is computed on the CPU, not on cuda: ModuleNotFoundError" in done.stderr


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_backend_that_cannot_work_here_says_so():
    with pytest.raises(BackendUnavailable, match=r"needs a GPU that torch|needs torch and Triton"):
        tvl1(moving_texture(frames=2), backend="cuda")
    if hasattr(cv2, "cuda_OpticalFlowDual_TVL1"):
        pytest.skip("this OpenCV has CUDA")
    with pytest.raises(BackendUnavailable, match="needs an OpenCV built with CUDA"):
        tvl1(moving_texture(frames=2), backend="opencv-cuda")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tau", 0), ("theta", -1), ("lambda_", float("nan")), ("scales", 0), ("warps", 0), ("epsilon", -0.1),
        ("scale_step", 1), ("median_filtering", 7), ("inner_iterations", 0), ("gamma", float("nan")), ("gamma", -1),
        ("theta", 1e-40), ("tau", 1e300), ("epsilon", 1e160), ("warps", 2.5), ("median_filtering", 0), ("tau", "x"),
    ],
)  # fmt: skip
def test_parameters_that_mean_nothing(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} {value!r}: must")):
        TVL1Params(**{name: value})


@pytest.mark.parametrize(
    "changed",
    [{"gamma": 1e6}, {"theta": 1e-6}, {"theta": 1e6}, {"tau": 1e6}, {"lambda_": 1e6}, {"epsilon": 1e6}, {"tau": 1e-6}],
)
def test_parameters_at_their_limits_read_no_foreign_memory(changed):
    params = TVL1Params(**{"warps": 2, "outer_iterations": 2, "inner_iterations": 5, **changed})
    assert tvl1(moving_texture(frames=2), params, backend="cpu").shape == (1, 64, 80, 2)


def test_a_flow_to_begin_with_that_leaves_the_picture():
    frames = moving_texture(frames=2)
    far = np.random.default_rng(2).choice([-1e6, 0, 1e6], (1, 64, 80, 2)).astype(np.float32)
    assert np.isfinite(tvl1(frames, backend="cpu", initial=far)).all()
    with pytest.raises(ValueError, match=r"initial moves by more than 1e\+06 pixels"):
        tvl1(frames, backend="cpu", initial=far * 2)


def test_levels_that_do_not_shrink_are_those_of_opencv():
    frames = moving_texture(frames=2, height=40, width=40)
    few = TVL1Params(scale_step=0.99, epsilon=0, warps=1, outer_iterations=1, inner_iterations=2)
    assert errors(tvl1(frames, few, backend="cpu"), tvl1(frames, few, backend="opencv")).max() < 1e-3


def test_any_layout_of_memory():
    frames = moving_texture(frames=4)
    expected = tvl1(frames)
    padded = np.zeros((4, 70, 100), np.uint8)
    padded[:, 3:67, 5:85] = frames
    for same in (np.asfortranarray(frames), padded[:, 3:67, 5:85], np.ma.masked_array(frames), iter(frames)):
        np.testing.assert_array_equal(tvl1(same), expected)
    np.testing.assert_array_equal(tvl1(frames[::-1])[::-1], tvl1(np.ascontiguousarray(frames[::-1]))[::-1])


@pytest.mark.slow
def test_it_works_where_nothing_may_be_written(tmp_path):
    """As for a user of what an administrator has installed: no place for compiled code."""
    package = tmp_path / "flow"
    shutil.copytree(Path(__file__).parents[1] / "flow", package, ignore=shutil.ignore_patterns("__pycache__"))
    # A file where Numba would make its folders; root may write anywhere else.
    (package / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    script = "import flow, numpy as np; print(flow.tvl1(np.zeros((2, 20, 20), np.uint8)).shape, flow.__file__)"
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"(1, 20, 20, 2) {package}/__init__.py\n", done.stderr


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.full((2, 32, 32), 255, np.float32), "float32 and reach from 255 to 255; whether 1 or 255 is white is not"),
        (np.full((2, 32, 32), np.nan), "float64 and hold NaN"),
        (np.zeros((2, 32, 32), np.int16), r"must be \[N, H, W\] uint8 grey, not int16"),
        (np.zeros((2, 32, 32, 3), np.uint8), "must be"),
        (np.zeros((1, 32, 32), np.uint8), "1 frame: flow needs two"),
        (np.zeros((0, 32, 32), np.uint8), "0 frames: flow needs two"),
        ([], "must be"),
        ([np.zeros((32, 40), np.uint8)] * 2 + [np.zeros((40, 32), np.uint8)], r"picture 2 is \[40, 32\], those before"),
        (np.zeros((2, 15, 32), np.uint8), "32x15"),
    ],
)
def test_bad_frames(frames, said):
    with pytest.raises(ValueError, match=said):
        tvl1(frames)


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend 'magic' is unknown"):
        tvl1(moving_texture(), backend="magic")


def test_codes():
    flow = np.array([0.0, 20.0, -20.0, 25.0, -25.0, 20 / 127, -0.07, 0.07])
    np.testing.assert_array_equal(quantise(flow), [128, 255, 1, 255, 1, 129, 128, 128])
    assert dequantise(np.uint8(128)) == 0
    steps = np.linspace(-20, 20, 1001)
    assert np.abs(dequantise(quantise(steps)) - steps).max() <= 20 / 127 / 2 + 1e-6
    np.testing.assert_array_equal(quantise(-steps).astype(int), 256 - quantise(steps).astype(int))
    np.testing.assert_allclose(dequantise(quantise(steps, 5.0), 5.0), np.clip(steps, -5, 5), atol=5 / 127 / 2 + 1e-6)


@pytest.mark.parametrize("bound", [0, -20, float("nan"), float("inf"), 1e-300])
def test_bounds_that_are_none(bound):
    with pytest.raises(ValueError, match=r"bound of .* pixels: must be from 0\.001"):
        quantise(np.zeros(3), bound)
    with pytest.raises(ValueError, match="bound of"):
        encode_flow(np.zeros((2, 16, 16, 2)), bound_pixels=bound)


@pytest.mark.parametrize("bad", [np.array([np.nan]), np.array([np.inf]), np.array([1, 2])])
def test_what_cannot_be_coded(bad):
    with pytest.raises(ValueError, match="flow"):
        quantise(bad)


def test_stored_flow_comes_back():
    flow = tvl1(moving_texture(frames=6))
    stored = encode_flow(flow)
    codes = decode_flow_codes(stored)
    assert codes.shape == flow.shape
    assert np.abs(dequantise(codes) - flow).mean() < 0.08
    assert stored == encode_flow(flow)
    with av.open(io.BytesIO(stored)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, int(frame.color_range)) == (80, 128, 2)


def test_lossless_coding_keeps_every_code():
    flow = np.random.default_rng(3).normal(0, 6, (4, 32, 48, 2))
    np.testing.assert_array_equal(decode_flow_codes(encode_flow(flow, crf=0)), quantise(flow))
    sizes = [len(encode_flow(flow, crf=crf)) for crf in (0, 12, 24)]
    assert sizes == sorted(sizes, reverse=True)


def test_no_motion_is_exactly_zero_and_the_bound_is_kept():
    still = np.zeros((3, 32, 48, 2))
    assert (decode_flow_codes(encode_flow(still)) == 128).all()
    fast = np.full((3, 32, 48, 2), 20.0)
    fast[..., 1] = -20
    codes = decode_flow_codes(encode_flow(fast, crf=1)).astype(int)
    assert np.abs(codes[..., 0] - 255).max() <= 1
    assert np.abs(codes[..., 1] - 1).max() <= 1


def test_a_limited_range_video_is_refused():
    """The same pictures with a limited-range tag would decode to other codes: that must not pass."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 48), 128, np.uint8), format="gray")))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="full range"):
        decode_flow_codes(buffer.getvalue())
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_flow_codes(b"nothing")


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "gray10le"])
def test_a_full_range_video_of_another_kind_is_refused(pixel_format):
    buffer, picture = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 64, pixel_format
        stream.codec_context.color_range = 2
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
            frame.color_range = 2
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="want x over y, grey, 8 bits, full range"):
        decode_flow_codes(buffer.getvalue())


def test_what_a_dataset_stores_is_the_coders_default():
    defaults = {name: parameter.default for name, parameter in signature(encode_flow).parameters.items()}
    stored = asdict(FlowCoding())
    for name in ("bound_pixels", "crf", "group_of_pictures", "preset", "tune"):
        assert stored[name] == defaults[name], name


@pytest.mark.parametrize("shape", [(3, 32, 48), (3, 32, 48, 3), (3, 31, 48, 2), (0, 32, 48, 2)])
def test_shapes_that_cannot_be_stored(shape):
    with pytest.raises(ValueError, match="flow"):
        encode_flow(np.zeros(shape))


def test_colours_of_directions():
    """Baker et al.: white is no motion, red is to the right, and opposite directions are opposite hues."""
    directions = np.array([[[0, 0], [5, 0], [-5, 0], [0, 5], [0, -5], [50, 0]]], np.float32)
    white, right, left, down, up, fast = colour_code(directions, 5.0)[0].astype(int)
    assert tuple(white) == (255, 255, 255)
    assert right[0] == 255
    assert right[1:].max() < 40
    assert left[0] < 40
    assert left[2] > 150
    assert down[0] > 200
    assert down[1] > 150
    assert down[2] < 40
    assert up[2] > 200
    assert up[1] < 60
    assert fast[0] < right[0]


def test_legend_is_a_disc():
    legend = colour_legend(65)
    assert (legend[0, 0] == 255).all()
    assert (legend[32, 32] > 240).all()
    assert (legend[32, 1] < 255).any()
    with pytest.raises(ValueError, match="scale 0"):
        colour_code(np.zeros((2, 2, 2)), 0)
