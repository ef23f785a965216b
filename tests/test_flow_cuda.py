"""Flow on a GPU is flow on the CPU, bit for bit; without a GPU, Triton's interpreter runs the kernels."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[1]
HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # counts when a function is decorated: before the import below
pytest.importorskip("triton", reason="the kernels are written in Triton, which is not installed")

from flow import TVL1Params, cpu, cpu_kernels, cuda, cuda_kernels  # noqa: E402

FEW = TVL1Params(scales=2, warps=2, outer_iterations=2, inner_iterations=5, epsilon=0.1)
ONE_AT_A_TIME, BLOCKS = cuda.Tiling(1, rows=32, columns=64), cuda.Tiling(3, rows=32, columns=64)


@pytest.fixture(autouse=True)
def exact_fma(monkeypatch):
    """The interpreter of Triton before 3.9 rounds a product before it adds; 64 bits of mantissa are enough not to."""
    if not HAS_GPU:
        from triton.runtime import interpreter

        def fma(_, x, y, z):
            exact = x.data.astype(np.longdouble) * y.data + z.data
            return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter takes its time for a program, not for a pixel."""
    if not HAS_GPU:
        monkeypatch.setattr(cuda, "PIXELWISE", cuda.Tiling(1, rows=64, columns=64))


def moving_texture(frames, height, width, seed=0, step=(1, 2), blur=2.0):
    """A random texture that moves by whole pixels (rows, columns) a frame: [T, H, W] uint8."""
    dy, dx = step
    noise = np.random.default_rng(seed).random((height + 20 + frames * dy, width + 20 + frames * dx))
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), blur), None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([texture[10 + i * dy :, 10 + i * dx :][:height, :width] for i in range(frames)]).astype(np.uint8)


def on_cpu(first, second, params):
    flow = np.empty((*first.shape, 2), np.float32)
    for i in range(len(first)):
        cpu.solve_pair(first[i], second[i], params, flow[i], None)
    return flow


def solve(first, second, params, device="cpu", **options):
    first, second = (torch.from_numpy(np.ascontiguousarray(pictures)).to(device) for pictures in (first, second))
    return cuda.solve_pairs(first, second, params, **options).cpu().numpy()


def pairs_that_stop_at_different_times(height, width):
    """A still picture, a constant one, a slow and a fast texture."""
    still, slow = moving_texture(1, height, width), moving_texture(2, height, width, 1, (0, 1), blur=5)
    fast, grey = moving_texture(2, height, width, 2, (3, 5)), np.full((1, height, width), 90, np.uint8)
    return np.concatenate([still, grey, slow[:1], fast[:1]]), np.concatenate([still, grey, slow[1:], fast[1:]])


def epsilon_that_stops_after(count, frame0, frame1, params):
    """A little above the root mean square change of iteration `count`; changes fall from one to the next."""

    def after(iterations):
        few = replace(params, epsilon=0, outer_iterations=1, inner_iterations=iterations)
        return on_cpu(frame0[None], frame1[None], few)

    before = after(count - 1) if count > 1 else 0
    return float(np.sqrt(np.mean(np.sum((after(count) - before) ** 2, -1)))) * 1.0001


@pytest.mark.skipif(HAS_GPU, reason="the GPU runs the kernels itself")
class TestInterpreted:
    @pytest.mark.parametrize("tiling", [ONE_AT_A_TIME, BLOCKS], ids=["one", "blocks"])
    def test_the_same_bits_with_any_stop(self, tiling):
        first, second = pairs_that_stop_at_different_times(30, 44)
        expected = on_cpu(first, second, FEW)
        np.testing.assert_array_equal(solve(first, second, FEW, tiling=tiling), expected)
        without_stop = on_cpu(first, second, replace(FEW, epsilon=0))
        unlike = [i for i in range(len(first)) if not np.array_equal(expected[i], without_stop[i])]
        assert unlike == [2]  # flow of still pictures is 0 anyway, and the fast pair does not stop

    @pytest.mark.parametrize("tiling", [ONE_AT_A_TIME, BLOCKS], ids=["one", "blocks"])
    @pytest.mark.parametrize("off", [-1, 0, 1])
    def test_sizes_around_a_tile(self, tiling, off):
        height, width = tiling.rows - 2 * tiling.margin + off, tiling.columns - 2 * tiling.margin - off
        first, second = np.split(moving_texture(2, height, width), 2)
        params = TVL1Params(scales=1, warps=1, outer_iterations=1, inner_iterations=4, epsilon=0, median_filtering=1)
        np.testing.assert_array_equal(solve(first, second, params, tiling=tiling), on_cpu(first, second, params))

    @pytest.mark.parametrize("stop", range(1, 8))
    def test_a_stop_within_a_block_at_its_end_and_in_the_last_block(self, stop):
        """Seven iterations in blocks of three: the limit is put so that the rule stops after each of them."""
        first, second = np.split(moving_texture(2, 20, 24, blur=4), 2)
        params = TVL1Params(scales=1, warps=1, outer_iterations=2, inner_iterations=7, median_filtering=1)
        params = replace(params, epsilon=epsilon_that_stops_after(stop, first[0], second[0], params))
        fixed = replace(params, epsilon=0, inner_iterations=stop, outer_iterations=1)
        expected = on_cpu(first, second, params)
        np.testing.assert_array_equal(expected, on_cpu(first, second, fixed))
        np.testing.assert_array_equal(solve(first, second, params, tiling=BLOCKS), expected)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "tiling", [pytest.param(ONE_AT_A_TIME, marks=pytest.mark.slow), BLOCKS], ids=["one", "blocks"]
    )
    def test_illumination_and_a_flow_to_begin_with(self, tiling):
        first, second = np.split(moving_texture(4, 24, 40), 2)
        params = TVL1Params(scales=2, warps=2, outer_iterations=2, inner_iterations=4, epsilon=0.05, gamma=0.7)
        initial = np.random.default_rng(5).normal(2, 0.5, (2, 24, 40, 2)).astype(np.float32)
        expected = np.empty_like(initial)
        for i in range(2):
            cpu.solve_pair(first[i], second[i], params, expected[i], initial[i])
        found = solve(first, second, params, tiling=tiling, initial=torch.from_numpy(initial))
        np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(solve(first, second, params, tiling=tiling), expected)

    def test_a_pair_does_not_depend_on_its_batch(self):
        first, second = pairs_that_stop_at_different_times(24, 32)
        params = replace(FEW, scales=1, median_filtering=3)
        together = solve(first, second, params, tiling=BLOCKS)
        np.testing.assert_array_equal(solve(first[::-1], second[::-1], params, tiling=BLOCKS, batch=3)[::-1], together)
        np.testing.assert_array_equal(together, on_cpu(first, second, params))


@pytest.mark.skipif(HAS_GPU, reason="covered by whole pairs on the GPU")
class TestKernels:
    def test_resize(self):
        pictures = np.random.default_rng(0).random((2, 21, 30), np.float32)
        for size, steps, factor in (((17, 24), (1.25, 1.25), 1.0), ((26, 38), (21 / 26, 30 / 38), 1.25)):
            expected = [cpu_kernels.resize(picture, *size, *steps, np.float32(factor)) for picture in pictures]
            np.testing.assert_array_equal(cuda._resize(torch.from_numpy(pictures), size, steps, factor), expected)

    @pytest.mark.parametrize("side", [3, 5])
    def test_median(self, side):
        """Few values, so that there are ties; the second pair is not chosen and keeps what it has."""
        us = torch.from_numpy(np.random.default_rng(1).integers(-4, 5, (2, 2, 2, 18, 23)).astype(np.float32))
        before, flags = us.clone(), torch.zeros(2, cuda_kernels.FLAGS.value, dtype=torch.int32)
        flags[0, cuda_kernels.AT_U.value], chosen = 1, torch.zeros(1, dtype=torch.int32)
        grid = (*cuda._grid(18, 23, 1), 2)
        cuda_kernels.median[grid](us, flags, chosen, 2, 18, 23, side=side, channels=2, **cuda._launch_options())
        np.testing.assert_array_equal(us[0, 0], [cv2.medianBlur(u.numpy(), side) for u in before[1, 0]])
        np.testing.assert_array_equal(us[1], before[1])
        np.testing.assert_array_equal(us[0, 1], before[0, 1])

    @pytest.mark.parametrize("far", [0.7, 40.0])
    def test_gradient_and_warp(self, far):
        """Also by flow that leaves the picture on all sides."""
        rng, (height, width), pitch = np.random.default_rng(2), (19, 27), cpu_kernels.GUARD + 32
        image0, image1 = rng.integers(0, 256, (2, height, width)).astype(np.float32)
        u = (rng.normal(size=(2, height, width)) * far).astype(np.float32)
        level = np.zeros((height + 1) * cpu_kernels.PLANES * pitch + cpu_kernels.GUARD, np.float32)
        rows = level[cpu_kernels.PLANES * pitch : -cpu_kernels.GUARD].reshape(height, cpu_kernels.PLANES, pitch)
        planes = rows[:, :, cpu_kernels.GUARD : cpu_kernels.GUARD + width].transpose(1, 0, 2)
        planes[:2] = u
        cpu_kernels.warp(cpu_kernels.with_gradient(image1), image0, level, (height, pitch, cpu_kernels.PLANES))

        grid, options, size = cuda._grid(height, width, 1), cuda._launch_options(), (height, width)
        with_gradient, constants = torch.empty(1, 3, *size), torch.empty(1, 4, *size)
        us, flags = (
            torch.from_numpy(np.stack([u * 0, u])[:, None]),
            torch.zeros(1, cuda_kernels.FLAGS.value, dtype=torch.int32),
        )
        flags[0, cuda_kernels.AT_U.value] = 1
        cuda_kernels.gradient[grid](torch.from_numpy(image1), with_gradient, *size, **options)
        cuda_kernels.warp[grid](
            torch.from_numpy(image0), with_gradient, us.contiguous(), constants, flags, 1, *size, channels=2, **options
        )
        np.testing.assert_array_equal(constants[0], planes[6:])


def test_batch_size():
    a_pair = cuda.BYTES_PER_PIXEL * 2 * 256 * 340
    assert cuda.batch_size(10 << 30, 256, 340, 2) == (10 << 30) * 4 // 5 // a_pair == 771
    assert cuda.batch_size(0, 256, 340, 2) == 1
    assert cuda.batch_size(10**15, 16, 16, 3) == cuda.LARGEST_BATCH


@pytest.mark.parametrize(
    ("first", "second"),
    [((2, 20, 20), (3, 20, 20)), ((20, 20), (20, 20)), ((1, 20, 20), (1, 20, 24))],
)
def test_bad_pairs(first, second):
    with pytest.raises(ValueError, match="one size"):
        cuda.solve_pairs(torch.zeros(first, dtype=torch.uint8), torch.zeros(second, dtype=torch.uint8), FEW)
    with pytest.raises(ValueError, match="uint8"):
        cuda.solve_pairs(torch.zeros(first), torch.zeros(first), FEW)


def test_a_tile_that_is_all_margin():
    with pytest.raises(ValueError, match="nothing is left"):
        cuda.Tiling(4, rows=8, columns=64)


# Multiply-adds that the kernels ask for, a pixel. `iterate_once` computes u at three places.
FUSED = {
    "resize": 3,
    "gradient": 0,
    "warp": 2 * 7 + 3 * 16 + 3,
    "median": 0,
    "iterate_once": 3 * 6 + 1 + 8,
    "iterate": 6 + 1 + 8,
}
# And what the illumination adds: it is computed at as many places as u.
FUSED_LIT = {"iterate_once": 3 * 3 + 4 + 1, "iterate": 3 + 4 + 1}


@pytest.mark.parametrize("architecture", [80, 90])
def test_kernels_compile_without_spills(architecture):
    """Nor does a compiler fuse, approximate or flush to zero.

    A program may take 99 or 227 KB of shared memory.
    """
    command = [sys.executable, "-m", "tests.flow_gpu", "--compile-for", str(architecture)]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert len(kernels) >= 9
    for name, used in kernels.items():
        assert used["stack_bytes"] == 0, f"{name}: {used}"
        assert used["inexact"] == [], f"{name}: {used}"
        fused = FUSED.get(name.split()[0], 0) + FUSED_LIT.get(name.split()[0], 0) * ("'channels': 3" in name)
        assert used.get("fma_per_pixel", 0) <= fused, f"{name}: {used}"
        assert used["shared_bytes"] <= {80: 99, 90: 227}[architecture] << 10, f"{name}: {used}"


@pytest.fixture
def gpu():
    if not HAS_GPU:
        message = "no GPU that torch can use"
        pytest.fail(message) if os.environ.get("FLOW_REQUIRE_GPU") == "1" else pytest.skip(message)
    return "cuda"


TILINGS = [cuda.DEFAULT, cuda.Tiling(), cuda.Tiling(8, 32, 64, 8), cuda.Tiling(3, 32, 32, 4)]


@pytest.mark.gpu
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("size", [(16, 16), (47, 63), (48, 64), (49, 65), (120, 160), (256, 340)])
    def test_the_same_bits(self, gpu, tiling, size):
        first, second = pairs_that_stop_at_different_times(*size)
        expected = on_cpu(first, second, TVL1Params())
        np.testing.assert_array_equal(solve(first, second, TVL1Params(), gpu, tiling=tiling), expected)

    @pytest.mark.parametrize(
        "changed", [{"epsilon": 0, "outer_iterations": 2}, {"median_filtering": 3}, {"tau": 0.2}, {"gamma": 0.5}]
    )
    def test_other_parameters(self, gpu, tiling, changed):
        first, second = pairs_that_stop_at_different_times(60, 90)
        params = TVL1Params(**changed)
        np.testing.assert_array_equal(solve(first, second, params, gpu, tiling=tiling), on_cpu(first, second, params))

    def test_a_pair_does_not_depend_on_its_batch(self, gpu, tiling):
        frames = moving_texture(40, 64, 80)
        together = solve(frames[:-1], frames[1:], TVL1Params(), gpu, tiling=tiling)
        parts = solve(frames[:-1], frames[1:], TVL1Params(), gpu, tiling=tiling, batch=7)
        np.testing.assert_array_equal(together, parts)

    def test_memory_is_what_the_batch_size_counts_on(self, gpu, tiling):
        frames = torch.from_numpy(moving_texture(33, 256, 340)).to(gpu)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        cuda.solve_pairs(frames[:-1], frames[1:], replace(FEW, scales=5), tiling=tiling)
        assert torch.cuda.max_memory_allocated() - before < 32 * 256 * 340 * 2 * cuda.BYTES_PER_PIXEL
