"""The node's cache of shards: one copy, within its limit, whatever crashes, races and full disks do."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from multiprocessing import Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from shutil import copytree

import pytest

from manifests.files import PARTIAL_SUFFIX
from manifests.sample import FLOW, FormatError
from tests import golden
from tests.faults import faulty_net, once
from train import remote
from train.cache import Cache, ShardFile, claimed_file, name_claimed
from train.loader import whole_clips
from train.stream import Sample, open_samples

SIZE = 300_000


@pytest.fixture
def net(tmp_path, monkeypatch):
    """Four files of random bytes on a server; parts are small, so that a file is many."""
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(remote, "PART_BYTES", 1 << 15)
    (tmp_path / "net").mkdir()
    for name in "abcd":
        (tmp_path / "net" / f"{name}.tar").write_bytes(os.urandom(SIZE))
    with faulty_net(tmp_path / "net") as net:
        yield net


def shard(net, name, **changes):
    return ShardFile(**{"place": f"{net.url}/{name}.tar", "bytes": SIZE, "version": "1", **changes})


def content(net, name):
    return (net.folder / f"{name}.tar").read_bytes()


def there(cache):
    return sorted(path.name for path in cache.folder.glob("*.tar"))


def alone(work, *arguments):
    """Start a forked process."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


@pytest.mark.parametrize("fault", [None, "cut", "shorter", "unavailable", "no ranges"])
def test_processes_that_race_download_once(net, tmp_path, fault):
    net.ranges = fault != "no ranges"
    net.fault = once("cut" if fault == "no ranges" else fault) if fault else net.fault
    net.bytes_a_second = 1_000_000
    cache = Cache(tmp_path / "cache", 2 * SIZE)

    def work():
        assert cache.fetch(shard(net, "a")).read_bytes() == content(net, "a")

    racing = [alone(work) for _ in range(5)]
    for process in racing:
        process.join(60)
    assert [process.exitcode for process in racing] == [0] * 5
    assert net.sent["a.tar"] < (2.1 if fault == "shorter" else 1.1) * SIZE  # of which half came
    assert [path.name for path in cache.folder.iterdir() if path.name != ".lock"] == there(cache)


def test_the_least_recently_used_make_room(net, tmp_path):
    cache = Cache(tmp_path / "cache", 2 * SIZE + 10)
    a, b, c = (shard(net, name) for name in "abc")
    for used in (a, b, a, c):
        cache.fetch(used)
    assert there(cache) == sorted(cache.path_of(used).name for used in (a, c))
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.maximum_bytes
    net.sent.clear()
    cache.fetch(a)
    assert not net.sent
    opened = cache.path_of(a).open("rb")
    cache.fetch(b)
    cache.fetch(c)
    cache.fetch(shard(net, "d"))
    assert cache.path_of(a).name not in there(cache)
    assert opened.read() == content(net, "a")  # who reads it goes on
    with pytest.raises(ValueError, match=f"a cache of 1000 bytes holds no shard of {SIZE} bytes"):
        Cache(tmp_path / "small", 1000).require_room([a])
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Cache(tmp_path / "file", SIZE).require_room([a])


def test_names_tell_places_sizes_and_versions_apart(net, tmp_path):
    cache = Cache(tmp_path / "cache", SIZE)
    one = shard(net, "a")
    others = (
        shard(net, "b"),
        shard(net, "a", version="2"),
        shard(net, "a", sha256="0" * 64),
        shard(net, "a", bytes=SIZE - 1),
        shard(net, "a", place=f"{net.url}/a.tar?file=2"),
    )
    assert len({cache.path_of(other) for other in (one, *others)}) == 6


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_download_is_begun_anew_and_leaves_nothing(net, tmp_path, monkeypatch, number):
    monkeypatch.setattr(remote, "AT_A_TIME", 1)  # so that it takes seconds
    cache = Cache(tmp_path / "cache", 4 * SIZE)
    net.bytes_a_second = 50_000
    downloader = alone(cache.fetch, shard(net, "a"))
    another = alone(cache.fetch, shard(net, "b"))
    deadline = time.monotonic() + 30
    while min(net.sent["a.tar"], net.sent["b.tar"]) < 40_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not there(cache)
    for process in (downloader, another):
        os.kill(process.pid, number)
        process.join(30)
    assert len(list(cache.folder.glob(f".*{PARTIAL_SUFFIX}"))) == 2
    net.bytes_a_second = 0
    assert cache.fetch(shard(net, "a")).read_bytes() == content(net, "a")
    assert not list(cache.folder.glob(f".*{PARTIAL_SUFFIX}"))  # that of the other one, too


def test_who_waits_has_its_turn_when_another_gives_up(tmp_path):
    """Although children that were forked meanwhile have the locked file open, too, and go on."""
    path = tmp_path / "a.tar"

    def write():
        with claimed_file(path) as file:
            if file is not None:
                file.write(b"whole")
                name_claimed(file, path)

    def opened(process):
        files = Path(f"/proc/{process.pid}/fd").iterdir()
        return sum(PARTIAL_SUFFIX in os.path.realpath(file) for file in files)  # some are closed before they are read

    with claimed_file(path):
        child = alone(time.sleep, 60)
        waiting = [alone(write) for _ in range(3)]
        deadline = time.monotonic() + 30
        while min(map(opened, waiting)) < 2:  # one of them is ours
            assert time.monotonic() < deadline
            time.sleep(0.01)
    for process in waiting:
        process.join(30)
    child.kill()
    child.join()
    assert [process.exitcode for process in waiting] == [0] * 3
    assert path.read_bytes() == b"whole"
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


def limited(folder, url, size):
    """A process that can write no file of more than 100 kB reads a shard of more."""
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
from train.cache import Cache, ShardFile
cache = Cache(Path({str(folder)!r}), 10_000_000)
for _ in range(2):
    print(cache.fetch(ShardFile({url!r}, {size})))
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)


def test_a_full_disk_is_said_once_and_costs_no_download(net, tmp_path):
    cache = Cache(tmp_path / "cache", 10_000_000)
    (net.folder / "small.tar").write_bytes(bytes(50_000))
    small = ShardFile(f"{net.url}/small.tar", 50_000)
    cache.fetch(small)
    done = limited(cache.folder, f"{net.url}/a.tar", SIZE)
    assert done.stdout.split() == ["None", "None"]
    assert done.stderr.count("shards are read from afar, not cached") == 1
    assert not net.sent["a.tar"]
    assert not there(cache)  # what could make room has done so
    assert not list(cache.folder.glob(f".*{PARTIAL_SUFFIX}"))


def test_other_bytes_than_the_snapshot_says(net, tmp_path):
    """Damaged on the way: again. What the place itself holds is kept, for its good samples' sake."""
    cache = Cache(tmp_path / "cache", 4 * SIZE)
    net.fault = once("flipped")
    good = shard(net, "a", sha256=sha256(content(net, "a")).hexdigest())
    assert cache.fetch(good).read_bytes() == content(net, "a")
    assert cache.fetch(shard(net, "b", sha256="0" * 64)).read_bytes() == content(net, "b")
    with pytest.raises(FormatError, match="truncated"):
        cache.fetch(shard(net, "c", bytes=SIZE + 1))
    with pytest.raises(FileNotFoundError):
        cache.fetch(shard(net, "none"))
    cache.path_of(good).write_bytes(b"")  # a lost machine may leave a name without its content
    assert cache.fetch(good).read_bytes() == content(net, "a")
    assert len(there(cache)) == 2


@pytest.fixture
def dataset(net):
    copytree(golden.DATASET, net.folder / "data")
    return f"{net.url}/data"


def test_samples_are_read_from_the_copy(net, dataset, tmp_path):
    cache = Cache(tmp_path / "cache", 1_000_000)
    samples = open_samples(dataset, "train", cache)
    wanted = [sample.read() for sample in open_samples(str(net.folder / "data"), "train")]
    assert [sample.read() for sample in samples] == wanted
    path = str(Path(samples.shards[0].place).relative_to(Path(net.url)))
    assert net.sent[path] < 1.1 * samples.shards[0].bytes
    net.sent.clear()
    assert [clip.sample.key for clip in whole_clips(samples, ("flow",), 32, workers=2)] == [s.key for s in samples]
    assert not net.sent

    cached = cache.path_of(samples.shards[0])
    damaged = bytearray(cached.read_bytes())
    damaged[int(samples[3].record["flow_offset"]) + 50] ^= 255
    cached.write_bytes(damaged)
    assert samples[2].read() == wanted[2]
    assert cached.exists()
    assert samples[3].read() == wanted[3]  # from afar
    assert not cached.exists()
    assert samples[3].read() == wanted[3]
    assert cached.exists()
    for shards in (dataset, samples.shards[0].place):
        with pytest.raises(ValueError, match="holds no shard"):
            open_samples(shards, "train", Cache(tmp_path / "small", 1000))
    assert not list((tmp_path / "small").glob("*.tar"))


def test_a_bad_sample_of_a_cached_shard_is_named_and_the_shard_kept(net, dataset, tmp_path):
    cache = Cache(tmp_path / "cache", 1_000_000)
    samples = open_samples(dataset, "train", cache)
    file = net.folder / Path(samples.shards[0].place).relative_to(Path(net.url))
    broken = bytearray(file.read_bytes())
    broken[int(samples[3].record["flow_offset"]) + 50] ^= 255
    file.write_bytes(broken)
    for _ in range(2):
        with pytest.raises(FormatError, match=rf"{samples[3].key}\.flow\.mp4 holds other bytes"):
            samples[3].read((FLOW,))
        assert len(samples[2].read()) == 3
    assert net.sent[str(file.relative_to(net.folder))] < 3 * len(broken)  # two downloads, and that member a few times


def test_a_cache_that_cannot_keep_up_changes_nothing(net, dataset, tmp_path):
    """Two shards and room for one: processes that read both make each other download, and read the right bytes."""
    here = open_samples(str(net.folder / "data"))
    cache = Cache(tmp_path / "cache", max(shard.bytes for shard in here.shards))
    samples = open_samples(dataset, None, cache)

    def work(step):
        for number in range(0, 12 * step, step):
            assert samples[number % 12].read() == here[number % 12].read()

    racing = [alone(work, step) for step in (1, 5, 7)]
    for process in racing:
        process.join(120)
    assert [process.exitcode for process in racing] == [0] * 3
    assert sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= cache.maximum_bytes


def test_a_sample_is_small_to_send(net, tmp_path):
    """Workers send clips with their samples: not the arrays of all of them."""
    samples = open_samples(str(golden.DATASET), None, Cache(tmp_path / "cache", 10))
    content = ForkingPickler.dumps(samples[3])  # as a worker does
    assert len(content) < 3000
    there, here = Pipe()
    there.send_bytes(content)
    sample = here.recv()
    assert isinstance(sample, Sample)
    assert sample.read() == samples[3].read()
