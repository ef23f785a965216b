"""Samples of datasets and tars on servers and in buckets: what nets do costs time, what stays wrong is named."""

import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from manifests.index import INDEX_SUFFIX
from manifests.sample import FLOW, FormatError
from tests import golden
from tests.faults import FAULTS, faulty_net, once
from train import remote, tars
from train.cache import Cache
from train.loader import training_batches
from train.plan import Plan
from train.run import identity
from train.samplers import RandomWindow, window_of
from train.stream import open_samples, trainable_samples

HERE = open_samples(str(golden.DATASET), "train")


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A copy of the golden dataset on a server, and a trainer that tries again soon and asks for small parts."""
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(remote, "PART_BYTES", 1 << 14)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    shutil.copytree(golden.DATASET, tmp_path / "net" / "data")
    with faulty_net(tmp_path / "net") as net:
        yield net


def shard_of(net):
    (path,) = (net.folder / "data" / "shards" / "train").glob("*.tar")
    return path


def url_of(net, path):
    return f"{net.url}/{path.relative_to(net.folder)}"


def assert_same(samples, others=HERE):
    assert np.array_equal(samples.records, others.records)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda sample: sample.read(), samples))
    assert contents == [sample.read() for sample in others]


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_faults_change_nothing_but_time(net, fault, monkeypatch):
    if fault == "stall":
        monkeypatch.setattr(remote, "STALL_SECONDS", 0.5)
    if fault:
        net.fault = once(fault)
    samples = open_samples(f"{net.url}/data", "train")
    assert_same(samples)
    assert identity(samples) == identity(HERE)
    assert (samples.snapshot, samples.classes, samples.splits) == ("0001", HERE.classes, ("train",))
    assert samples[0].name.startswith(f"{net.url}/data/shards/train/g0001-000000-")


def test_servers_without_ranges(net):
    net.ranges = False
    net.fault = once("cut")
    assert_same(open_samples(f"{net.url}/data@0001", "train"))
    (shard_of(net).with_name(shard_of(net).stem + INDEX_SUFFIX)).unlink()
    assert_same(open_samples(url_of(net, shard_of(net))))


def test_one_member_is_one_request_of_its_bytes(net):
    samples = open_samples(f"{net.url}/data", "train")
    net.asked.clear()
    samples[0].read((FLOW,))
    start = int(samples[0].record["flow_offset"])
    stop = start + int(samples[0].record["flow_length"])
    assert dict(net.asked) == {(str(shard_of(net).relative_to(net.folder)), f"bytes={start}-{stop - 1}"): 1}


def test_what_stays_wrong(net, monkeypatch):
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.5)
    samples = open_samples(f"{net.url}/data", "train")
    shard, sample, last = shard_of(net), samples[3], samples[7]
    content = shard.read_bytes()
    broken = bytearray(content)
    broken[int(sample.record["flow_offset"]) + 100] ^= 255
    shard.write_bytes(broken)
    with pytest.raises(FormatError, match=rf"{shard.name}: {sample.key}\.flow\.mp4 holds other bytes than the index"):
        sample.read((FLOW,))
    assert len(last.read()) == 3
    for end in (int(last.record["flow_offset"]) + 10, 100):
        shard.write_bytes(content[:end])
        with pytest.raises(FormatError, match=rf"{shard.name}: .* bytes are wanted, it ends .*{end}.*: truncated"):
            last.read((FLOW,))
        net.ranges = False
        with pytest.raises(FormatError, match=rf"it ends after {end} bytes: truncated"):
            last.read((FLOW,))
        net.ranges = True
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="HTTP status 404"):
        last.read()
    shard.write_bytes(content)
    monkeypatch.setattr(remote, "READING_SECONDS", 0.3)
    for fault in ("unavailable", "stall", "cut", "gone"):
        net.fault = lambda path, asked, fault=fault: fault
        with pytest.raises(remote.Unreachable, match=rf"{shard.name}: no whole answer in 0\.3 s: "):
            last.read()


def test_datasets_that_are_none(net, monkeypatch):
    data = net.folder / "data"
    with pytest.raises(FormatError, match="no dataset is published there"):
        open_samples(f"{net.url}/nothing")
    with pytest.raises(FormatError, match=r"data: no snapshot 0007$"):
        open_samples(f"{net.url}/data@0007")
    with pytest.raises(FormatError, match="no sample of split 'test'; there are train, val"):
        open_samples(f"{net.url}/data", "test")
    with pytest.raises(FormatError, match="neither a path nor a URL"):
        open_samples("ftp://host/data")
    index = shard_of(net).with_name(shard_of(net).stem + INDEX_SUFFIX)
    good = index.read_bytes()
    index.write_bytes(good[:-1])
    with pytest.raises(FormatError, match=rf"{index.name}: not the bytes that the snapshot names"):
        open_samples(f"{net.url}/data", "train")
    index.unlink()
    with pytest.raises(FormatError, match=rf"{index.name}: missing, the snapshot names it"):
        open_samples(f"{net.url}/data", "train")
    index.write_bytes(good)
    root = (data / "index.json").read_text()
    for lie, said in (
        (root.replace('"0001"', '"0002"'), "no snapshot 0002"),
        (re.sub("[0-9a-f]{64}", "0" * 64, root), "not the bytes that index.json names"),
        ("<html>sign in</html>", "index.json: cannot be read: Expecting value"),
        ('{"format": "quo-vadis-dataset", "snapshot": "../../etc"}', "not the root of a dataset"),
    ):
        (data / "index.json").write_text(lie)
        with pytest.raises(FormatError, match=said):
            open_samples(f"{net.url}/data", "train")
    monkeypatch.setattr(remote, "OPENING_SECONDS", 0.2)
    with pytest.raises(
        ValueError, match=r"http://127\.0\.0\.1:1/data/index\.json: no whole answer in 0\.2 s: .*onnect"
    ):
        open_samples("http://user:secret@127.0.0.1:1/data")


@pytest.mark.parametrize("shards", ["http://user:secret@{}/data", "http://user:secret@{}/data@0001", "http://{}/data/"])
def test_urls_with_users_and_snapshots(net, shards):
    samples = open_samples(shards.format(net.url.removeprefix("http://")), "train")
    assert_same(samples)
    assert "secret" not in samples[0].name


def test_secrets_in_a_url_are_not_said():
    assert remote.shown("https://user:secret@host:1/a.tar?signature=x") == "https://host:1/a.tar"


def views(samples, workers):
    plan = Plan(samples.records["flow_frames"], samples.shard_of, RandomWindow(window_of("i3d", ("flow",), 9)), 2)
    return [batch.pixels["flow"] for batch in training_batches(samples, ("flow",), plan, range(3), 32, workers=workers)]


def test_forked_workers_read_on_their_own(net):
    """The parent has connections and a thread for them, which a worker must not touch."""
    net.fault = once("cut")
    samples = trainable_samples(open_samples(f"{net.url}/data", "train"), ("flow",))
    stop, read = threading.Event(), []

    def reads_on() -> None:
        while not stop.is_set():
            read.append(samples[len(read) % 8].read() == HERE[len(read) % 8].read())

    reader = threading.Thread(target=reads_on)
    reader.start()
    wanted = views(HERE, 0)
    for workers in (0, 2):
        assert all((a == b).all() for a, b in zip(views(samples, workers), wanted, strict=True))
    stop.set()
    reader.join(60)
    assert len(read) >= 8
    assert all(read)


def test_connections_are_used_again(net):
    samples = open_samples(f"{net.url}/data", "train")
    net.connections = 0
    for sample in samples:
        sample.read((FLOW,))
    assert net.connections <= 1


def upload(bucket, folder):
    for path in folder.glob("**/*.*"):
        if path.is_file():
            bucket.blob(f"a/{path.relative_to(folder)}").upload_from_filename(path)


def test_buckets(bucket, net):
    upload(bucket, golden.DATASET)
    here = f"gs://{bucket.name}/a"
    samples = trainable_samples(open_samples(here, "train"), ("flow",))
    assert_same(samples)
    assert all((a == b).all() for a, b in zip(views(samples, 2), views(HERE, 0), strict=True))
    assert len(open_samples(f"{here}@0001")) == 12
    assert_same(open_samples(f"{here}/shards/t*/*.tar"))
    assert len(open_samples(f"{here}/shards/{{train,val}}/*.tar")) == 12
    for place, said in (
        (f"{here}@0009", "no snapshot 0009; there are 0001"),
        ("gs://no-such-bucket/a", "no dataset is published there"),
        (f"{here}/shards/x*/*.tar", "no file there fits"),
        (f"{here}/shards/x.tar", "neither a dataset nor a tar"),
    ):
        with pytest.raises(FormatError, match=said):
            open_samples(place)
    (blob,) = (blob for blob in bucket.list_blobs(prefix="a/shards/train/") if blob.name.endswith(".tar"))
    content = blob.download_as_bytes()
    blob.upload_from_string(content[:-20_000])
    with pytest.raises(FormatError, match="truncated"):
        [sample.read() for sample in samples]
    blob.delete()
    with pytest.raises(FileNotFoundError):
        samples[0].read()


def test_tars_are_indexed_once(net, caplog):
    """With the index beside it a tar is not read as a whole; without it once; then only the labels of its classes."""
    shard = shard_of(net)
    path, size = str(shard.relative_to(net.folder)), shard.stat().st_size
    index = shard.with_name(shard.stem + INDEX_SUFFIX)
    net.fault = once("cut")
    names = f"{net.url}/data/shards/{{train,val}}/{{{shard.name},g0001-000000-f69785fab308.tar}}"
    with pytest.raises(FormatError, match="HTTP status 404: neither a dataset nor a tar file that is there"):
        open_samples(names)
    net.sent.clear()
    assert_same_tars(open_samples(url_of(net, shard)))
    assert net.sent[path] < size / 4
    index.unlink()
    shutil.rmtree(net.folder.parent / "caches")
    net.sent.clear()
    assert_same_tars(open_samples(url_of(net, shard)))
    assert net.sent[path] > size
    net.sent.clear()
    assert_same_tars(open_samples(url_of(net, shard), "train"))
    assert net.sent[path] < 4 * 1500
    with pytest.raises(FormatError, match=r"no sample of split 'val'"):
        open_samples(url_of(net, shard), "val")
    (val,) = (net.folder / "data" / "shards" / "val").glob("*.tar")
    shutil.copy(val, shard)  # replaced
    assert len(open_samples(url_of(net, shard))) == 4
    assert open_samples(url_of(net, shard)).splits == ("val",)
    shutil.copy(golden.DATASET / path.removeprefix("data/"), shard)
    shutil.copy(val.with_name(val.stem + INDEX_SUFFIX), index)  # that of another tar
    assert_same_tars(open_samples(url_of(net, shard)))
    assert "the index beside it does not fit, so the tar is read" in caplog.text


def assert_same_tars(samples):
    assert np.array_equal(samples.records, HERE.records)
    assert (samples.snapshot, samples.splits) == (None, ("train",))
    assert [flow for _, flow in samples.flows] == [flow for _, flow in HERE.flows]


def test_local_tars_are_indexed_once(net, monkeypatch):
    shard = shard_of(net)
    reads = []
    through = tars.index_tar
    monkeypatch.setattr(tars, "index_tar", lambda file, name: reads.append(name) or through(file, name))
    assert_same_tars(open_samples(f"{shard.parent}/*.tar"))
    assert not reads  # there is an index beside it
    shard.with_name(shard.stem + INDEX_SUFFIX).unlink()
    other = shutil.copy(shard, shard.with_name("other.tar"))
    for _ in range(2):
        assert_same_tars(open_samples(str(other)))
    assert reads == [str(other)]
    kept = list((net.folder.parent / "caches").glob("**/*.index"))
    assert len(kept) == 2
    for file in kept:
        file.write_bytes(file.read_bytes()[:-7])  # damaged: made again
    assert_same_tars(open_samples(str(other)))
    assert reads == [str(other)] * 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file, not a tar"),
        (b"x" * 3000, "not a whole tar file"),
        (bytes(10240), "no sample"),
    ],
)
def test_tars_that_are_none(net, content, said):
    (net.folder / "a.tar").write_bytes(content)
    for place in (f"{net.url}/a.tar", str(net.folder / "a.tar")):
        with pytest.raises(FormatError, match=said):
            open_samples(place)


def test_foreign_tars_and_names(net):
    subprocess.run(
        ["tar", "cf", net.folder / "b.tar", "-C", Path(__file__).parent, "faults.py"], check=True, timeout=60
    )
    for place, said in (
        (f"{net.url}/b.tar", "'faults.py' is no member of a sample"),
        (f"{net.url}/*.tar", "a web server does not list its files: name them with braces"),
        (f"{net.url}/{{a,b.tar", "{a,b"),
        (f"{net.url}/none.tar", "HTTP status 404: neither a dataset nor a tar"),
        (f"{net.folder}/none.tar", "neither a dataset's folder nor a tar file that is there"),
    ):
        with pytest.raises(FormatError, match=re.escape(said)):
            open_samples(place)


def test_processes_that_open_the_same_tar_index_it_once(net):
    shard = shard_of(net)
    shard.with_name(shard.stem + INDEX_SUFFIX).unlink()
    fork = multiprocessing.get_context("fork")
    racing = [fork.Process(target=open_samples, args=(url_of(net, shard),)) for _ in range(4)]
    for process in racing:
        process.start()
    for process in racing:
        process.join(60)
    assert [process.exitcode for process in racing] == [0] * 4
    assert net.sent[str(shard.relative_to(net.folder))] < 1.5 * shard.stat().st_size


def test_samples_are_arrays(tmp_path):
    assert [sample.key for sample in HERE] == sorted(sample.key for sample in HERE)
    some = HERE.take([5, 2])
    assert [sample.key for sample in some] == [HERE[5].key, HERE[2].key]
    assert some[0].read() == HERE[5].read()
    assert len(HERE.take(np.arange(8) > 5)) == 2
    assert identity(some)["sha256"] != identity(HERE)["sha256"]
    assert identity(HERE.take(range(8))) == identity(HERE)
    with pytest.raises(IndexError):
        HERE[8]
    for place in ("a@b", "c"):
        shutil.copytree(golden.DATASET, tmp_path / place)
    assert open_samples(f"{tmp_path}/a@b").snapshot == open_samples(f"{tmp_path}/a@b@0001").snapshot == "0001"
    both = f"{{{tmp_path}/a@b,{tmp_path}/c}}/shards/train/*.tar"
    with pytest.raises(FormatError, match=r"stands in .*, too"):
        trainable_samples(open_samples(both), ("flow",))


def test_opening_needs_no_patience_where_the_answer_is_no(net):
    """A user who mistyped is told at once; only what may change is asked for again."""
    with pytest.raises(FormatError):
        open_samples(f"{net.url}/nothing")
    assert max(net.asked.values()) == 1


def test_threads_of_one_process_share_a_client(net):
    samples = open_samples(f"{net.url}/data", "train")
    found = []
    threads = [threading.Thread(target=lambda: found.append(samples[2].read((FLOW,)))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [HERE[2].read((FLOW,))] * 16


def test_torch_is_not_needed_to_read():
    code = "import sys, train.remote, train.cache, train.tars; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.fixture
def s3(monkeypatch):
    """A bucket of an S3 on loopback."""
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    remote._filesystem_of.cache_clear()  # it is of another server
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.mkdir("samples")
    yield filesystem
    server.stop()
    remote._filesystem_of.cache_clear()


def test_s3(s3, net, tmp_path):
    s3.put(f"{golden.DATASET}/", "samples/a", recursive=True)
    here = "s3://samples/a"
    samples = trainable_samples(open_samples(here, "train"), ("flow",))
    assert_same(samples)
    assert all((a == b).all() for a, b in zip(views(samples, 2), views(HERE, 0), strict=True))
    assert_same(open_samples(here, "train", Cache(tmp_path / "cache", 1_000_000)))
    assert_same(open_samples(f"{here}/shards/t*/*.tar"))
    assert len(open_samples(f"{here}/shards/{{train,val}}/*.tar")) == 12
    for place, said in (
        (f"{here}@0009", "no snapshot 0009; there are 0001"),
        ("s3://no-such-bucket/a", "no dataset is published there"),
        (f"{here}/shards/x.tar", "neither a dataset nor a tar"),
    ):
        with pytest.raises(FormatError, match=said):
            open_samples(place)
    (shard,) = s3.glob("samples/a/shards/train/*.tar")
    content = s3.cat_file(shard)
    s3.pipe_file(shard, content[:-20_000])
    with pytest.raises(FormatError, match="truncated"):
        [sample.read() for sample in samples]
    s3.rm(shard)
    with pytest.raises(FileNotFoundError):
        samples[0].read()
