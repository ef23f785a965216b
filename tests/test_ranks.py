"""i3d-train under torchrun: real ranks on gloo, stopped, killed and resumed in other numbers."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from manifests.index import read_snapshot
from model import load_training
from pipeline.generations import publish
from tests import golden
from tests.faults import faulty_net, once
from train.log import read_metrics
from train.quarantine import read_quarantine
from train.stream import open_samples

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
DOUBLE = ("-m", "tests.golden.double")
SINGLE = (Path(sys.executable).with_name("i3d-train"),)
SMALL = (
    "--shards", golden.DATASET, "--split", "train", "--stream", "flow", "--batch-size", 4, "--frames", 9,
    "--crop", 32, "--lr", 1e-5, "--evaluate-every", 1000, "--precision", "fp32",
)  # fmt: skip


def start(run, *options, ranks=1, restarts=0, program=DOUBLE):
    """Begin training in a process of its own, or under torchrun with several."""
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    words = [sys.executable, *(many if ranks > 1 else ()), *program, *SMALL, "--output", run, *options]
    command, pipe = list(map(str, words)), subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def train(run, *options, ranks=1, status=0, deadline_seconds=300, **how):
    """Train to the end; gives what was said."""
    child = start(run, *options, ranks=ranks, **how)
    try:
        said = child.communicate(timeout=deadline_seconds)[0]
    finally:
        child.kill()
    assert (child.returncode == 0) == (status == 0), said
    return said


def lines(run):
    return read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []


def losses(run):
    return [line["loss"] for line in lines(run) if "loss" in line]


def wait_for(condition, child):
    deadline = time.monotonic() + 120
    while not condition():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _has_more_lines(run, count):
    return len(lines(run)) > count


def processes_of(run):
    """Ids of the processes whose command line names the run's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_two_ranks_take_the_slices_of_one_batch(tmp_path):
    """The losses are those of one rank that takes the batch in two parts; a test sees every clip once."""
    options = ("--steps", 2, "--val-shards", golden.DATASET, "--val-split", "val", "--dropout", 0.2, "--workers", 1)
    train(tmp_path / "one", *options, "--accumulate", 2)
    train(tmp_path / "two", *options, ranks=2)
    one, two = (
        [{name: line[name] for name in line if "seconds" not in name} for line in lines(tmp_path / name)]
        for name in ("one", "two")
    )
    assert [line["step"] for line in one] == [1, 2, 2]
    assert two == [pytest.approx(line, rel=1e-9) for line in one]


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(tmp_path):
    """Dropout, too, drops the same features."""
    for name, options in (("run", ()), ("compiled", ("--compile",))):
        train(tmp_path / name, "--steps", 3, *options, deadline_seconds=900)  # compiling takes minutes
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "run"), rel=1e-9)


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_workers(tmp_path):
    """Two ranks take the slices of a batch that one rank takes in two parts: the losses are those of one run."""
    validation = ("--val-shards", golden.DATASET, "--val-split", "val", "--evaluate-every", 4, "--dropout", 0.2)
    train(tmp_path / "whole", *validation, "--steps", 6, "--accumulate", 2, "--workers", 0)
    parts = tmp_path / "parts"
    train(parts, *validation, "--steps", 2, "--accumulate", 2, "--workers", 1)
    train(parts, *validation, "--steps", 5, "--resume", "auto", "--workers", 2, ranks=2)
    train(parts, *validation, "--steps", 6, "--resume", "auto", "--accumulate", 2, "--workers", 0)
    assert losses(parts) == pytest.approx(losses(tmp_path / "whole"), rel=1e-9)
    # The evaluation after step 4 was on two ranks, every clip once: it is that of one.
    tests = [
        next(line for line in lines(run) if line["step"] == 4 and "val_loss" in line)
        for run in (parts, tmp_path / "whole")
    ]
    names = ("mean_loss", "val_loss", "val_top1", "val_top5")
    assert [tests[0][n] for n in names] == pytest.approx([tests[1][n] for n in names], rel=1e-9)


@pytest.mark.slow
def test_resumed_at_twenty_random_steps(tmp_path):
    generator, steps = random.Random(6), 60
    train(tmp_path / "whole", "--steps", steps, "--accumulate", 2)
    stops = [*sorted(generator.sample(range(1, steps), 20)), steps]
    for number, stop in enumerate(stops):
        ranks = (1, 2, 1)[number % 3]
        options = ("--workers", generator.randrange(4), "--accumulate", 2 // ranks)
        train(tmp_path / "parts", "--steps", stop, *options, "--resume", "auto", ranks=ranks)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    assert [line["step"] for line in lines(tmp_path / "parts") if "loss" in line] == list(range(1, steps + 1))


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """On one device the losses are the same to the last bit, wherever it is killed."""
    generator, run = random.Random(7), tmp_path / "killed"
    options = ("--steps", 25, "--checkpoint-every", 2, "--resume", "auto")
    train(tmp_path / "whole", *options, program=SINGLE)
    kills = 0
    while len(losses(run)) < 25:
        done = len(lines(run))
        child = start(run, *options, "--workers", generator.randrange(4), program=SINGLE)
        if kills < 6:
            wait_for(partial(_has_more_lines, run, done), child)
            time.sleep(generator.uniform(0, 1))
            child.kill()
            kills += 1
        child.communicate(timeout=300)
    assert kills == 6
    assert losses(run) == losses(tmp_path / "whole")
    time.sleep(1)
    assert not processes_of(run)


@pytest.mark.slow
def test_sigterm_saves_and_ends_all_ranks(tmp_path):
    run = tmp_path / "run"
    child = start(run, "--steps", 100_000, "--workers", 1, ranks=2)
    wait_for(lambda: len(losses(run)) > 2, child)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=60)[0]
    stopped = int(re.search(r"stopped after step (\d+)", said)[1])
    assert load_training(run / "checkpoints" / f"{stopped:09d}.pt")[1]["step"] == stopped == len(losses(run))
    assert not processes_of(run)


@pytest.mark.slow
def test_sigterm_while_a_server_stalls(tmp_path):
    """Data that does not come is not waited for, by any rank or worker, and nothing of the last step is lost."""
    run = tmp_path / "run"
    with faulty_net(golden.DATASET) as net:
        child = start(run, "--shards", net.url, "--steps", 100_000, "--workers", 2, ranks=2)
        wait_for(lambda: len(losses(run)) > 2, child)
        net.fault = lambda path, asked: "stall"
        done = -1
        while len(losses(run)) != done:  # workers have some batches more
            done = len(losses(run))
            time.sleep(3)
        child.send_signal(signal.SIGTERM)
        said = child.communicate(timeout=60)[0]
    assert f"stopped after step {done}" in said
    assert load_training(run / "checkpoints" / f"{done:09d}.pt")[1]["step"] == done
    assert not processes_of(run)


@pytest.mark.slow
def test_a_rank_that_cannot_open_its_data_ends_all(tmp_path):
    """Only that one says why."""
    with faulty_net(golden.DATASET) as net:
        net.fault = lambda path, asked: "nonsense" if path == "index.json" and asked > 0 else None
        said = train(tmp_path / "run", "--shards", net.url, "--steps", 1, ranks=2, status=1)
    assert len(re.findall("^Error: http", said, re.MULTILINE)) == 1
    assert "onnection closed" not in said


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_and_a_restart_resumes_it(tmp_path):
    options = ("--checkpoint-every", 2, "--resume", "auto", "--workers", 1)
    train(tmp_path / "whole", "--steps", 12, *options, ranks=2)
    run = tmp_path / "killed"
    child = start(run, "--steps", 12, *options, ranks=2, restarts=1)
    wait_for(lambda: len(losses(run)) > 4, child)
    ranks = [pid for pid in processes_of(run) if b"distributed.run" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(ranks, key=lambda pid: Path(f"/proc/{pid}/stat").read_text().split()[21]), signal.SIGKILL)
    said = child.communicate(timeout=300)[0]
    assert child.returncode == 0, said
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-9)
    assert not processes_of(run)


@pytest.mark.slow
def test_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path):
    options = ("--steps", 4, "--dropout", 0)
    train(tmp_path / "one", *options)
    train(tmp_path / "two", *options, "--sync-bn", ranks=2)
    train(tmp_path / "apart", *options, ranks=2)
    one, two, apart = (losses(tmp_path / name) for name in ("one", "two", "apart"))
    assert two == pytest.approx(one, rel=1e-9)
    assert apart != pytest.approx(one, rel=1e-3)


def damaged_copy(folder, numbers, split="train"):
    """The golden dataset with some of its samples damaged, and their keys."""
    shutil.copytree(golden.DATASET, folder)
    samples = open_samples(str(folder), split)
    for number in numbers:
        shard = Path(samples[number].shard.place)
        content = bytearray(shard.read_bytes())
        content[int(samples[number].record["flow_offset"]) + 100] ^= 255
        shard.write_bytes(content)
    return [samples[number].key for number in numbers]


@pytest.mark.slow
def test_bad_samples_are_named_counted_and_count_for_nothing(tmp_path):
    """A step of them alone learns nothing; past --max-bad the run stops, and says so on one rank only."""
    keys = damaged_copy(tmp_path / "data", (1, 5))
    run = tmp_path / "run"
    train(run, "--shards", tmp_path / "data", "--steps", 4, "--workers", 1, "--max-bad", 2)
    assert sorted(bad.key for bad in read_quarantine(run / "quarantine.jsonl")) == sorted(keys)
    assert "holds other bytes than the index says" in next(read_quarantine(run / "quarantine.jsonl")).message
    steps = [line for line in lines(run) if "loss" in line]
    assert [line["bad"] for line in steps][-1] == 2
    said = train(tmp_path / "b", "--shards", tmp_path / "data", "--steps", 4, "--max-bad", 1, status=1)
    assert "2 samples are bad, more than --max-bad 1" in said
    assert said.count("Error:") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_bad_samples_on_any_rank(tmp_path):
    keys = damaged_copy(tmp_path / "data", (0, 1, 2))
    for ranks in (1, 2):
        run = tmp_path / str(ranks)
        options = ("--shards", tmp_path / "data", "--steps", 6, "--accumulate", 2 // ranks, "--workers", 1)
        train(run, *options, ranks=ranks)
        assert sorted(bad.key for bad in read_quarantine(run / "quarantine.jsonl")) == sorted(keys)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), rel=1e-9)


@pytest.mark.slow
def test_bad_samples_of_validation(tmp_path):
    keys = damaged_copy(tmp_path / "data", (2,), "val")
    run = tmp_path / "run"
    train(run, "--steps", 2, "--val-shards", tmp_path / "data", "--val-split", "val", ranks=2)
    assert [bad.key for bad in read_quarantine(run / "quarantine.jsonl")] == keys
    assert next(line["val_loss"] for line in lines(run) if "val_loss" in line) > 0


def test_a_batch_that_cannot_be_dealt_out(tmp_path):
    said = train(tmp_path / "run", "--steps", 1, "--accumulate", 3, status=1)
    assert "--batch-size 4 is that of all ranks together: it must be a multiple of 1 ranks times --accumulate 3" in said


@pytest.mark.slow
def test_a_run_keeps_to_its_snapshot(tmp_path):
    """What is published meanwhile does not move it; under its own name the old snapshot may be asked for, too."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(golden.DATASET, data)
    train(tmp_path / "whole", "--shards", data, "--steps", 3)
    train(run, "--shards", data, "--steps", 1, "--val-shards", data, "--val-split", "val")
    older = read_snapshot(data)
    publish(data, replace(older, name="0002", parent="0001"))
    assert open_samples(str(data), "train").snapshot == "0002"
    train(run, "--shards", data, "--steps", 2, "--val-shards", data, "--val-split", "val", "--resume", "auto")
    train(run, "--shards", f"{data}@0001", "--steps", 3, "--val-shards", data, "--val-split", "val", "--resume", "auto")
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-9)
    said = train(run, "--shards", f"{data}@0002", "--steps", 4, "--val-shards", data, "--val-split", "val",
                 "--resume", "auto", status=1)  # fmt: skip
    assert re.search(r"another configuration: data\.snapshot: \W?0001\W? → \W?0002", said)


@pytest.mark.slow
def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path):
    run = tmp_path / "run"
    train(tmp_path / "whole", "--steps", 20)
    child = start(run, "--steps", 100_000, "--checkpoint-every", 3)
    wait_for(lambda: (run / "checkpoints" / "000000003.pt").exists(), child)
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))  # a state has a hundred
    said = child.communicate(timeout=120)[0]
    assert child.returncode == 1
    assert "File too large" in said
    assert "Traceback" not in said
    assert all(path.suffix == ".pt" for path in (run / "checkpoints").iterdir())
    done = int(max((run / "checkpoints").iterdir()).stem)
    train(run, "--steps", done + 2, "--resume", "auto")
    assert losses(run) == pytest.approx(losses(tmp_path / "whole")[: done + 2], rel=1e-9)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run(tmp_path):
    run = tmp_path / "run"
    child = start(run, "--steps", 100_000, "--workers", 2)
    wait_for(lambda: len(losses(run)) > 2, child)
    worker = next(pid for pid in processes_of(run) if pid != child.pid)
    os.kill(worker, signal.SIGKILL)
    said = child.communicate(timeout=60)[0]
    assert child.returncode == 1
    assert "a process that decodes has died" in said
    assert "Traceback" not in said
    assert not processes_of(run)


@pytest.mark.slow
def test_shards_from_afar_and_their_cache_change_nothing_but_time(tmp_path):
    """A server that fails the first answer to each question, two ranks, one cache."""
    options = ("--steps", 3, "--workers", 1, "--val-split", "val")
    train(tmp_path / "here", *options, "--val-shards", golden.DATASET, "--accumulate", 2)
    with faulty_net(golden.DATASET) as net:
        for name, cache in (("afar", ()), ("cached", ("--cache", tmp_path / "cache", "--cache-gigabytes", 1))):
            net.asked.clear()
            net.fault = once("unavailable")
            places = ("--shards", net.url, "--val-shards", net.url)
            train(tmp_path / name, *options, *places, *cache, ranks=2)
            assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "here"), rel=1e-9)
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
        small = ("--cache", tmp_path / "small", "--cache-gigabytes", 0.0001)
        said = train(tmp_path / "small-run", *options, *places, *small, status=1)
        assert "a cache of 100000 bytes holds no shard of 174080 bytes" in said


@pytest.mark.slow
def test_recipes_say_what_they_set(tmp_path):
    said = train(tmp_path / "run", "--recipe", "released-flow", "--steps", 2)
    assert re.search(r"--schedule +released +", said)
    configuration = json.loads((tmp_path / "run" / "config.json").read_text())["configuration"]
    assert configuration["schedule"]["name"] == "released"
    said = train(tmp_path / "run", "--recipe", "released-flow", "--steps", 3, "--resume", "auto", status=1)
    assert "schedule.steps: 2 → 3" in said
    said = train(tmp_path / "rgb", "--recipe", "released-rgb", "--steps", 2, status=1)
    assert "released-flow is" in said
