"""How fast `flow.cuda` is on this GPU, and what the GPU could do at most: `python -m tests.flow_gpu`.

`--compile-for 90` needs no GPU: it prints what each kernel takes of a multiprocessor of that architecture.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import click
import cv2
import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flow import TVL1Params, cpu, cuda, cuda_kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# Of a pixel-iteration: u, p and constants are read, u and p are written; operations as `flow.cpu_kernels` has them.
BYTES, FLOP = 60, 85
TILINGS = [
    cuda.Tiling(),
    cuda.Tiling(1, 8, 64, 8),
    cuda.Tiling(1, 4, 128),
    cuda.Tiling(1, 16, 64, 8),
    cuda.Tiling(2, 32, 64, 8),
    cuda.Tiling(4, 32, 32, 4),
    cuda.Tiling(4, 32, 64, 8),
    cuda.Tiling(6, 32, 64, 8),
    cuda.Tiling(8, 32, 64, 8),
]


def moving_textures(pairs, height, width, seed=0):
    """Random textures that move by 0 to 6 pixels, each pair its own way: first and second [N, H, W] uint8."""
    rng, found = np.random.default_rng(seed), np.empty((2, pairs, height, width), np.uint8)
    for i in range(pairs):
        noise = rng.random((2, height + 40, width + 40), np.float32)
        texture = sum(
            cv2.GaussianBlur(layer, (0, 0), sigma) * sigma for layer, sigma in zip(noise, (1.5, 6), strict=True)
        )
        texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 6)
        for k in range(2):
            shift = np.float32([[1, 0, k * far * np.cos(angle) - 20], [0, 1, k * far * np.sin(angle) - 20]])
            found[k, i] = cv2.warpAffine(texture, shift, (width, height), flags=cv2.INTER_LINEAR)
    return found


def seconds(work, repeats=3):
    """The shortest of some runs after one that compiles."""
    work()
    found = []
    for _ in range(repeats):
        if not INTERPRETED:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if not INTERPRETED:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


@triton.jit
def _fma_loop(values, count, block: tl.constexpr):
    """Eight chains of multiply-adds, so that none waits for itself."""
    x = tl.load(values + tl.program_id(0) * block + tl.arange(0, block))
    a, b, c, d, e, f, g, h = x, x + 1.0, x + 2.0, x + 3.0, x + 4.0, x + 5.0, x + 6.0, x + 7.0
    for _ in range(count):
        a, b, c, d = tl.fma(a, x, x), tl.fma(b, x, x), tl.fma(c, x, x), tl.fma(d, x, x)
        e, f, g, h = tl.fma(e, x, x), tl.fma(f, x, x), tl.fma(g, x, x), tl.fma(h, x, x)
    tl.store(values + tl.program_id(0) * block + tl.arange(0, block), a + b + c + d + e + f + g + h)


def ceilings(programs, megabytes):
    """What copies and chains of multiply-adds reach: bytes and operations a second."""
    source = torch.zeros(megabytes << 18, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    values, block, count = torch.zeros(programs * 256, device=DEVICE), 256, 10_000 if programs > 1 else 2
    spent = seconds(lambda: _fma_loop[(programs,)](values, count, block=block, num_warps=8))
    return {"copy_bytes_per_s": copied, "fma_flop_per_s": programs * block * count * 16 / spent}


def iterations_alone(pairs, height, width, tiling, count):
    """The rates of `count` iterations of all pairs, without a stop."""
    us, ps = (
        torch.zeros(2, pairs, 2, height, width, device=DEVICE),
        torch.zeros(2, pairs, 4, height, width, device=DEVICE),
    )
    constants = torch.rand(pairs, 4, height, width, device=DEVICE)
    flags = torch.zeros(pairs, cuda_kernels.FLAGS.value, dtype=torch.int32, device=DEVICE)
    everyone = torch.arange(pairs, dtype=torch.int32, device=DEVICE)
    params = TVL1Params(epsilon=0, inner_iterations=count, median_filtering=1)
    spent = seconds(lambda: cuda._iterate(us, ps, constants, flags, everyone, params, tiling))
    rate = pairs * height * width * count / spent
    return {"pixel_iterations_per_s": rate, "bytes_per_s": rate * BYTES, "flop_per_s": rate * FLOP}


def equality(pairs, height, width, params, tilings):
    """Whether each tiling gives the bits of the CPU."""
    first, second = moving_textures(pairs, height, width)
    expected = np.empty((pairs, height, width, 2), np.float32)
    for i in range(pairs):
        cpu.solve_pair(first[i], second[i], params, expected[i], None)
    tensors = [torch.from_numpy(pictures).to(DEVICE) for pictures in (first, second)]
    return {
        str(tiling): bool(np.array_equal(cuda.solve_pairs(*tensors, params, tiling=tiling).cpu(), expected))
        for tiling in tilings
    }


def pairs_per_second(pairs, batch, height, width, params, tiling):
    """With the stopping rule, pictures already on the device."""
    first, second = (torch.from_numpy(pictures).to(DEVICE) for pictures in moving_textures(pairs, height, width))
    return pairs / seconds(lambda: cuda.solve_pairs(first, second, params, batch=batch, tiling=tiling))


POINTERS = {"changes": "*i64", "flags": "*i32", "chosen": "*i32", "lefts": "*i32", "tops": "*i32"} | dict.fromkeys(
    ("images", "found", "after_lefts", "after_tops", "image0", "image1", "u", "p", "constants"), "*fp32"
)
NUMBERS = dict.fromkeys(("factor", "l_t", "theta", "taut", "gamma"), "fp32")


def compiled(kernel, architecture, warps, constants):
    """Registers and bytes of stack (spills) a thread, bytes of shared memory a program, fused multiply-adds a pixel."""
    types = dict.fromkeys(kernel.arg_names, "i32") | POINTERS | NUMBERS | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    target, options = GPUTarget("cuda", architecture, 32), {"num_warps": warps, "enable_fp_fusion": False}
    done = triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(done.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    pixels = constants.get("rows", 0) * constants.get("columns", 0) / (32 * warps)
    inexact = re.findall(
        r"\b(?:add|sub|mul|fma|div|sqrt|min|max|rcp|rsqrt)\.\S*(?:ftz|approx|full)\S*", done.asm["ptx"]
    )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    found = {"registers": registers, "stack_bytes": stack, "shared_bytes": done.metadata.shared, "inexact": inexact}
    return found | ({"fma_per_pixel": done.asm["ptx"].count("fma.rn.f32") // pixels} if pixels else {})


def compile_all(architecture, tilings):
    """What `compiled` says of each kernel."""
    tile = {"rows": cuda.PIXELWISE.rows, "columns": cuda.PIXELWISE.columns}
    pixelwise = [(cuda_kernels.resize, tile), (cuda_kernels.gradient, tile)]
    pixelwise += [(cuda_kernels.warp, {"channels": channels, **tile}) for channels in (2, 3)]
    pixelwise += [(cuda_kernels.median, {"side": side, "channels": 2, **tile}) for side in (3, 5)]
    jobs = [(kernel, cuda.PIXELWISE.warps, constants) for kernel, constants in pixelwise]
    jobs += [(cuda_kernels.begin, 1, {}), (cuda_kernels.decide, 1, {"length": 8})]
    for tiling, channels in [*((tiling, 2) for tiling in tilings), (cuda.Tiling(), 3), (cuda.DEFAULT, 3)]:
        constants = {
            "length": triton.next_power_of_2(tiling.iterations), "channels": channels,
            "rows": tiling.rows, "columns": tiling.columns,
        }  # fmt: skip
        if tiling.iterations > 1:
            jobs.append((cuda_kernels.iterate, tiling.warps, constants | {"margin": tiling.margin}))
        else:
            jobs.append((cuda_kernels.iterate_once, tiling.warps, constants))
    return {
        f"{kernel.__name__} {warps} warps {constants}": compiled(kernel, architecture, warps, constants)
        for kernel, warps, constants in jobs
    }


@click.command()
@click.option("--compile-for", type=int, help="Print what kernels take of this architecture (80, 90), no more.")
@click.option("--small", is_flag=True, help="Tiny pictures: a test of this script.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("flow_gpu.json"), show_default=True)
def main(compile_for: int | None, small: bool, out: Path) -> None:
    """Compare with the CPU, measure, and write JSON."""
    if compile_for:
        click.echo(json.dumps(compile_all(compile_for, TILINGS), indent=2))
        return
    tilings = [TILINGS[0], cuda.Tiling(2, 32, 32, 4)] if small else TILINGS
    height, width = (24, 32) if small else (256, 340)
    params = TVL1Params(scales=1, warps=1, outer_iterations=1, inner_iterations=3) if small else TVL1Params()
    batches, repeated = ((1,), 1) if small else ((1, 8, 32, 128, 249), 249)
    found: dict = {"device": "interpreter" if INTERPRETED else torch.cuda.get_device_name(), "torch": torch.__version__}

    def note(name, value):
        found[name] = value
        print(f"{name}: {value}", flush=True)
        out.write_text(json.dumps(found, indent=2))

    note("triton", triton.__version__)
    programs = 1 if small else 16 * torch.cuda.get_device_properties(0).multi_processor_count
    note("ceilings", ceilings(programs, 1 if small else 1024))
    note("equal to the CPU", equality(2 if small else 8, height, width, params, tilings))
    for tiling in tilings:
        for pairs in batches[:1] if small else (8, 128):
            rates = iterations_alone(pairs, height, width, tiling, 2 if small else 120)
            shares = {name: rates[name] / ceiling for name, ceiling in (
                ("bytes_per_s", found["ceilings"]["copy_bytes_per_s"]),
                ("flop_per_s", found["ceilings"]["fma_flop_per_s"]),
            )}  # fmt: skip
            note(f"iterations alone, {pairs} pairs, {tiling}", {**rates, "of the ceiling": shares})
        note(f"pairs/s, {width}x{height}, {tiling}", pairs_per_second(repeated, None, height, width, params, tiling))
    best = max(tilings, key=lambda tiling: found[f"pairs/s, {width}x{height}, {tiling}"])
    for size in ((height, width),) if small else ((256, 340), (224, 224), (256, 456)):
        for batch in batches:
            rate = pairs_per_second(max(batch, min(repeated, 32)), batch, *size, params, best)
            note(f"pairs/s, {size[1]}x{size[0]}, {batch} at a time, {best}", rate)


if __name__ == "__main__":
    main()
