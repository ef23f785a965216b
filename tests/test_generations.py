"""Generations, retries, compaction and takedowns over random histories with crashes; no Beam and no video."""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from manifests.files import canonical_json
from manifests.index import published_keys, read_index, read_records, read_snapshot, write_records
from manifests.sample import FormatError
from pipeline import steps
from pipeline.fetch import FolderSource
from pipeline.generations import all_snapshots, compact, finish_interrupted, withdraw
from pipeline.ledger import (
    PERMANENT,
    REASONS,
    Outcome,
    note_failure,
    read_ledger,
    record_outcomes,
    record_rejected,
    totals,
)
from pipeline.run import make_plan
from pipeline.shards import FinishedClips
from pipeline.stored import dataset_source
from pipeline.verify import verify

CLIPS = 14
KEYS = [f"video{i:06d}_000000_000010" for i in range(CLIPS)]
FATES = (None, None, None, "corrupt", "timeout", "too-short", "missing")
# Where a run is killed: with its clips done, its ledger written, some shards, all shards, a snapshot without its root.
KILLS = ("clips", "ledger", "a shard", "shards", "snapshot")


def write_list(folder, numbers):
    """A list in Kinetics' form; two splits, and a test split without labels."""
    rows = ["label,youtube_id,time_start,time_end,split"]
    rows += [f"{'walk' if i % 2 else 'jump'},video{i:06d},0,10,{'train' if i % 3 else 'val'}" for i in sorted(numbers)]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.txt").write_text("jump\nwalk\n")
    return folder / "list.csv"


def members_of(clip, job):
    """What a clip that came out well would be stored as, with a made-up video."""
    rgb = f"video of {clip.key}".encode() * (1 + int(clip.video[5:]) % 3)
    metadata = {
        "format_version": 1, "key": clip.key, "label": clip.label, "split": clip.split, "flow": None, "memberships": [],
        "class_index": job.classes.index[clip.label],
        "classes": {"name": job.classes.name, "sha256": job.classes.sha256},
        "rgb": {"frames": 9, "width": 64, "height": 64, "sha256": hashlib.sha256(rgb).hexdigest()},
    }  # fmt: skip
    return {"rgb.mp4": rgb, "json": canonical_json(metadata), "cls": str(metadata["class_index"]).encode()}


def run(folder, output, numbers, fates, retry=(), kill=None):
    """A run as `pipeline.run` does it, with fates in place of fetching; gives the keys that were worked on."""
    finish_interrupted(output)
    plan = make_plan(
        [write_list(folder, numbers)], [FolderSource(str(folder))], output, flow=None,
        classes=str(folder / "classes.txt"), retry=retry,
    )  # fmt: skip
    record_rejected(output, plan.listing)
    outcomes = []
    for clip in plan.clips:
        reason = fates[clip.key] if plan.job.finished.read(clip, complete=True) is None else None
        outcomes.append(Outcome(clip, reason, reason or ""))
        if reason:
            note_failure(output, outcomes[-1])
        else:
            plan.job.finished.write(clip, members_of(clip, plan.job), complete=True)
    worked_on = {clip.key for clip in plan.clips}
    if kill == "clips":
        return worked_on
    planned = steps.cut_into_shards(plan.job, outcomes)
    shards = [steps.build_shard(shard, plan.job) for shard in (planned[:1] if kill == "a shard" else planned)]
    if kill in ("a shard", "shards"):
        return worked_on
    root = (output / "index.json").read_bytes() if (output / "index.json").exists() else None
    if kill == "ledger":
        record_outcomes(output, outcomes)
        return worked_on
    steps.finish(plan.job, outcomes, shards)
    if kill == "snapshot" and shards:
        (output / "index.json").unlink() if root is None else (output / "index.json").write_bytes(root)
    return worked_on


def shard_files(output, snapshot=None):
    """Path and bytes of a snapshot's shards and indexes."""
    shards = (snapshot or read_snapshot(output)).shards
    return {path: (output / path).read_bytes() for shard in shards for path in (shard.path, shard.index_path)}


class Histories(RuleBasedStateMachine):
    """A dataset under runs, kills, compactions and takedowns, beside a model of what it must hold."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.output = self.folder / "output"
        self.output.mkdir()
        self.fate = {}  # of each clip that was worked on: its reason, None for well
        self.published, self.withdrawn, self.crashed = set(), set(), False

    def teardown(self):
        if hasattr(self, "folder"):
            if self.published:
                finish_interrupted(self.output)
                self.a_compacted_dataset_is_a_fresh_one()
            shutil.rmtree(self.folder)

    @rule(
        numbers=st.sets(st.integers(0, CLIPS - 1), min_size=1),
        fates=st.lists(st.sampled_from(FATES), min_size=CLIPS, max_size=CLIPS),
        retry=st.sampled_from([(), (), ("corrupt",), ("corrupt", "too-short")]),
        kill=st.sampled_from([None, None, *KILLS]),
    )
    def a_run(self, numbers, fates, retry, kill):
        worked_on = run(self.folder, self.output, numbers, dict(zip(KEYS, fates, strict=True)), retry, kill)
        listed = {KEYS[i] for i in numbers}
        due = {
            key
            for key in listed - self.published - self.withdrawn
            if self.fate.get(key) is None or REASONS[self.fate[key]].policy != PERMANENT or self.fate[key] in retry
        }
        assert worked_on == due
        finished = {path.stem for path in (self.output / "clips").glob("*/*.tar")}
        for key in worked_on:
            self.fate[key] = None if key in finished else fates[KEYS.index(key)]
        if kill in (None, "snapshot"):
            self.published |= {key for key in worked_on if self.fate[key] is None}
        if kill is None:
            finish_interrupted(self.output)
        self.crashed = kill is not None

    @rule()
    def a_compaction(self):
        if not self.published or read_snapshot(self.output) is None:
            return
        finish_interrupted(self.output)
        self.crashed = False
        before = all_snapshots(self.output)
        compact(self.output)
        assert [s for s in all_snapshots(self.output) if s in before] == before
        after = read_snapshot(self.output)
        assert compact(self.output) == after  # once is enough

    @rule(number=st.integers(0, CLIPS - 1))
    def a_takedown(self, number):
        key = KEYS[number]
        if key not in self.fate:
            with pytest.raises(ValueError, match=f"no clip '{key}' there"):
                withdraw(self.output, [key])
            return
        withdraw(self.output, [key])
        self.crashed = False
        self.withdrawn.add(key)
        self.published.discard(key)
        left = [path for path in self.output.rglob("*") if path.is_file() and "ledger" not in path.parts]
        assert not [path for path in left if key.encode() in path.read_bytes() or key in path.name]

    @invariant()
    def it_holds_what_it_must(self):
        if not hasattr(self, "output") or self.crashed:
            return
        snapshot = read_snapshot(self.output)
        keys = sorted(published_keys(self.output, snapshot)) if snapshot else []
        assert keys == sorted(self.published)
        counts = totals(read_ledger(self.output).values())
        assert counts["listed"] == counts["ok"] + sum(counts["failed"].values())
        for earlier in all_snapshots(self.output):
            assert self.withdrawn.isdisjoint(published_keys(self.output, earlier))  # and reads every index
        named = {file.name for s in all_snapshots(self.output) for file in map(Path, shard_files(self.output, s))}
        assert {path.name for path in self.output.glob("shards/*/*")} == named

    def a_compacted_dataset_is_a_fresh_one(self):
        compact(self.output)
        with tempfile.TemporaryDirectory() as other:
            numbers = [KEYS.index(key) for key in self.published]
            (Path(other) / "output").mkdir()
            run(Path(other), Path(other) / "output", numbers, dict.fromkeys(KEYS))
            assert shard_files(self.output) == shard_files(Path(other) / "output")


QUICK_TO_FAIL = Phase.explicit, Phase.reuse, Phase.generate  # shrinking histories takes minutes
TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=30, stateful_step_count=12, deadline=None, phases=QUICK_TO_FAIL)


def test_a_takedown_that_is_killed_is_finished_by_the_next_run(tmp_path, monkeypatch):
    """At each write and each removal of a file, once."""
    output = tmp_path / "output"
    output.mkdir()
    run(tmp_path, output, range(0, 8), dict.fromkeys(KEYS))
    run(tmp_path, output, range(4, 12), dict.fromkeys(KEYS))
    compact(output)

    class Killed(BaseException):
        pass

    def killed_after(moments, name, original):
        def step(*arguments, **options):
            moments[0] -= 1
            if moments[0] < 0:
                raise Killed
            return original(*arguments, **options)

        monkeypatch.setattr(Path, name, step)

    finished, moment = False, 0
    while not finished:
        copy = tmp_path / f"copy{moment}"
        shutil.copytree(output, copy)
        moments = [moment]
        for name in ("replace", "unlink"):
            killed_after(moments, name, getattr(Path, name))
        try:
            withdraw(copy, [KEYS[5]])
            finished = True
        except Killed:
            pass
        monkeypatch.undo()
        verify_without(copy, KEYS[5], begun=moment > 0)
        moment += 1
        shutil.rmtree(copy)
    assert moment > 10


def verify_without(output, key, begun):
    """The next run finishes the takedown, if that had come as far as the ledger."""
    assert read_snapshot(output) is not None  # readable at every moment
    finish_interrupted(output)
    assert verify(output).problems == ()
    if begun:
        assert read_ledger(output)[key]["reason"] == "withdrawn"
        for path in output.rglob("*"):
            assert "ledger" in path.parts or not path.is_file() or key.encode() not in path.read_bytes()


def test_failures_survive_a_killed_run(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    fates = dict.fromkeys(KEYS) | {KEYS[1]: "corrupt", KEYS[2]: "timeout"}
    assert len(run(tmp_path, output, range(4), fates, kill="clips")) == 4
    assert read_ledger(output) == {}
    assert run(tmp_path, output, range(4), dict.fromkeys(KEYS)) == {KEYS[0], KEYS[2], KEYS[3]}
    ledger = read_ledger(output)
    assert (ledger[KEYS[1]]["reason"], ledger[KEYS[1]]["attempts"]) == ("corrupt", 1)
    assert (ledger[KEYS[2]]["reason"], ledger[KEYS[2]]["attempts"]) == (None, 2)
    assert not (output / "ledger" / "failures").exists()


def test_nothing_to_compact(tmp_path):
    with pytest.raises(FormatError, match="nothing is published"):
        compact(tmp_path)


def test_a_damaged_note_of_a_failure_is_named(tmp_path):
    (tmp_path / "ledger" / "failures").mkdir(parents=True)
    (tmp_path / "ledger" / "failures" / "x.json").write_text(json.dumps({"key": "x"}))
    with pytest.raises(FormatError, match=r"x\.json: not an entry"):
        finish_interrupted(tmp_path)


def test_finished_clips_of_a_takedown_go_too(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    run(tmp_path, output, range(3), dict.fromkeys(KEYS), kill="ledger")
    withdraw(output, KEYS[:1])
    left = {path.name for folder in (output / "clips").iterdir() for path in folder.iterdir()}
    assert left == {f"{key}.tar" for key in KEYS[1:3]}
    assert FinishedClips(next((output / "clips").iterdir())).members(KEYS[1])["rgb.mp4"].startswith(b"video of")
    assert run(tmp_path, output, range(3), dict.fromkeys(KEYS)) == set(KEYS[1:3])


def test_a_takedown_after_a_killed_run_is_not_undone(tmp_path):
    """By the notes of failures that the killed run left, nor by a finished clip that its ledger does not know."""
    output = tmp_path / "output"
    output.mkdir()
    run(tmp_path, output, range(4), dict.fromkeys(KEYS) | {KEYS[1]: "timeout"})
    run(tmp_path, output, range(5), dict.fromkeys(KEYS) | {KEYS[1]: "timeout"}, kill="clips")
    (output / "report.html").write_text(KEYS[1])
    withdraw(output, [KEYS[1], KEYS[4]])
    assert not (output / "report.html").exists()
    assert run(tmp_path, output, range(5), dict.fromkeys(KEYS), retry=("timeout",)) == set()
    ledger = read_ledger(output)
    assert {ledger[key]["reason"] for key in (KEYS[1], KEYS[4])} == {"withdrawn"}
    assert not [path for path in output.rglob("*") if KEYS[4] in path.name]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "../../escaped"}, "malformed split"),
        ({"label": "\x1b[2J"}, "label"),
        ({"start_seconds": "x"}, "describes no clip"),
        ({"end_seconds": 11.0}, "that clip's key is"),
        ({"source": {"origin": "file", "video": "/etc/passwd"}}, "must name a file inside"),
        ({"source": {"origin": "youtube", "video": "../private0"}}, "malformed id"),
        ({"source": None}, "describes no clip"),
    ],
)
def test_a_hostile_dataset_is_no_source(tmp_path, monkeypatch, changes, said):
    honest = members_of

    def hostile(clip, job):
        good = honest(clip, job)
        described = {"source": {"origin": "youtube", "video": clip.video}, "start_seconds": 0.0, "end_seconds": 10.0}
        return {**good, "json": canonical_json({**json.loads(good["json"]), **described, **changes})}

    other, output = tmp_path / "other", tmp_path / "output"
    other.mkdir()
    output.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[__name__], "members_of", hostile)
        run(tmp_path, other, range(2), dict.fromkeys(KEYS))
    with pytest.raises(FormatError, match=said):
        make_plan([], [dataset_source(f"dataset:{other}")], output, flow=None)
    assert not list(output.iterdir())


def test_an_index_with_a_path_for_a_key_is_refused(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    run(tmp_path, output, range(1), dict.fromkeys(KEYS))
    (shard,) = read_snapshot(output).shards
    records = read_index(output, shard).copy()
    records["key"] = b"../../escaped"
    with pytest.raises(FormatError, match="is no sample's key"):
        read_records(write_records(records), "index")
