"""The report page of a dataset: one HTML file without any outside resource, and the exact lists beside it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from manifests.files import names_in, write_file
from manifests.index import Shard, Snapshot, read_snapshot
from manifests.page import Cell, Html, Number, bars, cards, page, percent, table, unbroken
from manifests.sample import FRAME_RATE
from pipeline.account import COLUMNS, FAILURES, Account, Resampled, Share, take_account
from pipeline.generations import REPORT, REPORT_LISTS, snapshot_names
from pipeline.ledger import PERMANENT, REASONS, WITHDRAWN
from pipeline.pictures import pictures
from pipeline.progress import STAGES
from pipeline.turns import GPU
from pipeline.units import core_time, size

SNAPSHOTS_SHOWN = 20
DURATION_BARS = 13
BAR_SECONDS = (0.2, 0.4, 1, 2, 5, 10, 20, 60)
WINDOW_FRAMES = 64  # that a training takes of a clip
SHARES_OF_FRAMES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5)  # bounds of bars


def write_report(folder: Path) -> Path:
    """Write `report.html` and the lists that it names into a dataset's folder, and give the page's path.

    Raises:
        FormatError: a damaged dataset.
    """
    account = take_account(folder, folder / REPORT_LISTS)
    sections = dataset_sections(folder, account)
    title = "/".join(folder.resolve().parts[-2:])
    write_file(folder / REPORT, page(title, [*sections[:1], _downloads(folder), *sections[1:]]).encode())
    return folder / REPORT


def dataset_sections(folder: Path, account: Account) -> list[str]:
    """What became of the clips, what is stored, what it took, frames and flow of a few samples: a piece of HTML each.

    Time and memory do not grow with the dataset, but for what `account` holds.
    """
    snapshot = read_snapshot(folder)
    sections: list[str] = [
        _totals(account, snapshot),
        _failures(account),
        _attrition(account),
        _classes_and_reasons(account),
    ]
    if account.ok:
        sections += [_durations(account), _resampling(account), _bytes(account)]
    sections += [_work(account)]
    if snapshot is not None:
        sections += [_generations(folder, snapshot), pictures(folder, snapshot), _specification(snapshot)]
    return sections


def _totals(account: Account, snapshot: Snapshot | None) -> Html:
    failed, rejected = account.failed.total(), account.rows.total()
    shown: dict[str, Cell] = {"listed": account.listed, "ok": account.ok, "failed": failed, "rows rejected": rejected}
    shown |= {"with flow": len(account.flow_bytes), "of video": _time(sum(account.frames) / FRAME_RATE)}
    published = sum(shard.samples for shard in snapshot.shards) if snapshot is not None else 0
    if snapshot is not None:
        stored = sum(shard.bytes for shard in snapshot.shards)
        shown |= {"in shards": _size(stored), "shards": len(snapshot.shards), "snapshot": snapshot.name}
    differs = "" if published == account.ok else f"<p>The current snapshot holds {published:,} clips.</p>"
    return Html(
        f"{cards(shown)}<p>{account.listed:,} listed = {account.ok:,} ok + {failed:,} failed + {rejected:,} rows that "
        f"became no clip. With flow: {_of(len(account.flow_bytes), account.ok)} of the clips that came out well.</p>"
        f"{differs}"
    )


def _downloads(folder: Path) -> Html:
    names = names_in(folder / REPORT_LISTS)
    links = {name: f'<a href="{REPORT_LISTS}/{name}" download>{name}</a>' for name in COLUMNS if name in names}
    failures = links.pop(FAILURES, None)
    parts = []
    if links:
        parts.append(
            f"<p>The exact list of what came out well: {', '.join(links.values())}. "
            "<code>kinetics-prep run --manifest</code> reads it.</p>"
        )
    if failures:
        parts.append(f"<p>What failed, with reasons and messages: {failures}.</p>")
    return Html("".join(parts))


def _failures(account: Account) -> Html:
    failed = account.failed
    clips = _reasons_table(account, failed, "Clips", account.clips.total())
    rows = ""
    if account.rows:
        lists = table(
            ("List", "Reason", "Rows"),
            [(name, reason, number) for (name, reason), number in sorted(account.rows_of_lists.items())],
            ("all", None, account.rows.total()),
        )
        rows = (
            f"<h3>Rows that became no clip</h3>{_reasons_table(account, account.rows, 'Rows', account.listed)}{lists}"
        )
    return Html(f"<h2>Failures by reason</h2>{clips}{rows}")


def _reasons_table(account: Account, reasons: Counter[str], unit: str, listed: int) -> Html:
    lines: list[Sequence[Cell]] = []
    for reason, number in reasons.most_common():
        key, message = account.examples[reason]
        example = Html(f"<pre>{escape(key)}: {escape(message)}</pre>")
        again = unbroken(_next_run(reason))
        lines.append((unbroken(reason), number, percent(number / listed), again, REASONS[reason].meaning, example))
    all_of_them = ("all", reasons.total(), percent(reasons.total() / listed) if listed else None, None, None, None)
    return table(
        ("Reason", unit, f"Of all {unit.lower()}", "The next run", "Meaning", "An example"), lines, all_of_them
    )


def _next_run(reason: str) -> str:
    if reason == WITHDRAWN:
        return "never"
    return "--retry" if REASONS[reason].policy == PERMANENT else "tries again"


def _attrition(account: Account) -> Html:
    if not account.clips:
        return Html("")
    total = Share(account.clips.total(), account.failed.total())
    by_split, by_both = account.shares("split"), account.shares("label", "split")
    splits = table(
        ("Split", "Listed", "OK", "Failed", "Lost"),
        [(split or "no split", *_counts(share)) for (split,), share in by_split.items()],
        ("all", *_counts(total)),
    )
    # Where there is one split only, its numbers are those of all.
    names = sorted((split for (split,) in by_split), key=lambda split: split or "") if len(by_split) > 1 else []
    classes = table(
        ("Class", "Listed", "OK", "Failed", "Lost", *(f"OK in {split or 'no split'}" for split in names)),
        [
            (_label(label), *_counts(share), *(_ok_of(by_both.get((label, split))) for split in names))
            for (label,), share in account.shares("label").items()
        ],
        ("all", *_counts(total), *(_ok_of(by_split[(split,)]) for split in names)),
    )
    return Html(
        "<h2>Attrition</h2><p>Clips that were listed and are lost, by split and by class, the worst first.</p>"
        f"{splits}<h3>Clips by class</h3>{classes}"
    )


def _counts(share: Share) -> tuple[int, int, int, Number]:
    return share.listed, share.listed - share.failed, share.failed, percent(share.lost)


def _ok_of(share: Share | None) -> Number:
    return Number("–" if share is None else f"{share.listed - share.failed:,} of {share.listed:,}")


def _classes_and_reasons(account: Account) -> Html:
    reasons = [reason for reason, _ in account.failed.most_common()]
    if not reasons:
        return Html("")
    counts: Counter[tuple[str | None, str]] = Counter()
    for kind, number in account.clips.items():
        if kind.reason is not None:
            counts[kind.label, kind.reason] += number
    failed = {label: share.failed for (label,), share in account.shares("label").items() if share.failed}
    order = sorted(failed, key=lambda label: -failed[label])
    rows: list[Sequence[Cell]] = [
        (_label(label), failed[label], *(counts[label, reason] for reason in reasons)) for label in order
    ]
    total: Sequence[Cell] = ("all", account.failed.total(), *(account.failed[reason] for reason in reasons))
    return Html(f"<h2>Failures by class and reason</h2>{table(('Class', 'Failed', *reasons), rows, total)}")


def _durations(account: Account) -> Html:
    frames = np.array(account.frames)
    seconds = frames / FRAME_RATE
    low, median, high = np.quantile(seconds, [0.05, 0.5, 0.95])
    words = (
        f"<p>5 % last up to {low:.4g} s, half up to {median:.4g} s, 95 % up to {high:.4g} s; the shortest has "
        f"{frames.min()} frames, the longest {frames.max():,}. Fewer than {WINDOW_FRAMES} frames, which a training "
        f"takes: {_of(int((frames < WINDOW_FRAMES).sum()), len(frames))}.</p>"
    )
    short = np.array(account.missing_frames)
    if len(short):
        words += (
            f"<p>Shorter than listed: {_of(len(short), len(frames))}; of these half lack up to "
            f"{np.median(short) / FRAME_RATE:.2g} s, the worst {short.max() / FRAME_RATE:.3g} s.</p>"
        )
    return Html(f"<h2>Durations</h2>{bars('Clips by duration', duration_counts(frames))}{words}")


def duration_counts(frames: np.ndarray) -> dict[str, int]:
    """Clips by their duration in seconds, from the shortest to the longest, in few bars of equal width."""
    span_seconds = (frames.max() - frames.min()) / FRAME_RATE
    width = next((width for width in BAR_SECONDS if span_seconds / width < DURATION_BARS - 1), BAR_SECONDS[-1])
    step = round(width * FRAME_RATE)
    numbers, counts = np.unique(frames // step, return_counts=True)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return {
        f"{number * width:.4g}–{(number + 1) * width:.4g} s": found.get(number, 0)
        for number in range(int(numbers[0]), int(numbers[-1]) + 1)
    }


def _resampling(account: Account) -> Html:
    frames = np.array(account.frames)
    kinds = {"Duplicated": account.duplicated, "Dropped": account.dropped}
    rows: list[Sequence[Cell]] = []
    for name, resampled in kinds.items():
        counts = np.array(resampled.counts)
        shares = counts / frames
        quantiles = [percent(float(value)) for value in np.quantile(shares, [0.5, 0.95, 1])]
        affected = int((counts > 0).sum())
        total = int(counts.sum())
        rows.append((name, affected, percent(affected / len(frames)), total, percent(total / frames.sum()), *quantiles))
    head = ("Frames", "Clips with any", "Of clips", "Frames in all", "Of stored", "Median clip", "95 %", "Worst")
    drawn = "".join(
        f"<h3>{name} frames, as a share of a clip's stored frames</h3>{bars(name, _share_counts(resampled, frames))}"
        f"{_most(name, resampled)}"
        for name, resampled in kinds.items()
        if resampled.most
    )
    return Html(
        f"<h2>Duplicated and dropped frames</h2><p>By resampling to {FRAME_RATE} fps: a slower source shows frames "
        f"again, between which nothing moves; of a faster one frames are left out.</p>{table(head, rows)}{drawn}"
    )


def _share_counts(resampled: Resampled, frames: np.ndarray) -> dict[str, int]:
    shares = np.array(resampled.counts) / frames
    bounds = [*SHARES_OF_FRAMES, np.inf]
    found = {"none": int((shares == 0).sum())}
    for low, high in pairwise(bounds):
        name = f"{100 * low:g}–{100 * high:g} %" if np.isfinite(high) else f"over {100 * low:g} %"
        found[name] = int(((shares > low) & (shares <= high)).sum())
    return found


def _most(name: str, resampled: Resampled) -> Html:
    rows = [(key, number, frames) for number, key, frames in sorted(resampled.most, reverse=True)]
    return table(("Clips with most", name, "Stored frames"), rows)


def _bytes(account: Account) -> Html:
    rgb, flow = np.array(account.rgb_bytes), np.array(account.flow_bytes)
    seconds = sum(account.frames) / FRAME_RATE
    rows: list[Sequence[Cell]] = []
    for name, sizes in (("RGB", rgb), ("flow", flow)):
        if len(sizes):
            quantiles = [_size(value) for value in np.quantile(sizes, [0.5, 0.95])]
            # Where some clips have no flow, its bytes are those of the others' seconds; they differ by little.
            ten_seconds = _size(sizes.sum() / (seconds * len(sizes) / len(rgb)) * 10)
            rows.append((name, len(sizes), _size(sizes.sum()), _size(sizes.mean()), *quantiles, ten_seconds))
    total = (rgb.sum() + flow.sum(), (rgb.sum() + flow.sum()) / len(rgb))
    head = ("Stream", "Clips", "In all", "A clip", "Median", "95 %", "Of 10 s")
    last = ("both", len(rgb), _size(total[0]), _size(total[1]), None, None, _size(total[0] / seconds * 10))
    return Html(f"<h2>Bytes</h2>{table(head, rows, last)}")


def _work(account: Account) -> Html:
    rows: list[Sequence[Cell]] = []
    for stage in (stage for stage in (*STAGES, GPU) if stage in account.seconds):
        seconds = np.array(account.seconds[stage], np.float64)
        median, high = (_time(value) for value in np.quantile(seconds, [0.5, 0.95]))
        rows.append((stage, len(seconds), median, high, _time(seconds.sum())))
    attempts = sorted({number for number, _ in account.attempts})
    tried: list[Sequence[Cell]] = [
        (Number(str(number)), account.attempts[number, True], account.attempts[number, False]) for number in attempts
    ]
    when = (
        f"<p>The last attempts are of {account.first_tried} to {account.last_tried}.</p>" if account.first_tried else ""
    )
    return Html(
        "<h2>Seconds a stage</h2><p>Wall-clock time that each clip's last attempt spent in a stage, several clips at a "
        f"time.</p>{table(('Stage', 'Clips', 'Median', '95 %', 'Sum'), rows)}"
        f"<h2>Attempts</h2>{table(('Attempts', 'OK', 'Failed'), tried)}{when}"
        f"<h2>Versions</h2>{table(('Programs', 'Clips'), account.versions.most_common())}"
    )


def _generations(folder: Path, snapshot: Snapshot) -> Html:
    generations: dict[int, list[Shard]] = {}
    for shard in snapshot.shards:
        generations.setdefault(int(Path(shard.path).name[1:].split("-")[0]), []).append(shard)
    rows = [(f"{number:04d}", *_sum(shards)) for number, shards in sorted(generations.items())]
    made_by = Counter(", ".join(f"{name} {version}" for name, version in made.items()) for made in snapshot.provenance)
    names = snapshot_names(folder)
    older = len(names) - SNAPSHOTS_SHOWN
    more = f"<p>{older:,} older ones are not shown.</p>" if older > 0 else ""
    return Html(
        f"<h2>Generations and snapshots</h2><p>What the current snapshot, {escape(snapshot.name)}, consists of.</p>"
        f"{table(('Generation', 'Shards', 'Clips', 'Bytes'), rows, ('all', *_sum(snapshot.shards)))}"
        f"{table(('Made by', 'Generations'), made_by.most_common())}"
        f"<h3>Snapshots, and what each added</h3>{_snapshots(folder, names[-SNAPSHOTS_SHOWN - 1 :])}{more}"
    )


def _snapshots(folder: Path, names: Sequence[str]) -> Html:
    """The newest snapshots against those before them; the first of more than are shown is only compared with."""
    rows: list[Sequence[Cell]] = []
    before: dict[str, int] = {}
    for name in names:
        snapshot = read_snapshot(folder, name)
        assert snapshot is not None  # it is one of those that are there
        samples = {shard.path: shard.samples for shard in snapshot.shards}
        added, gone = (
            sum(one[path] for path in one.keys() - other.keys())
            for one, other in ((samples, before), (before, samples))
        )
        rows.append((name, *_sum(snapshot.shards), added, gone))
        before = samples
    rows = rows[-SNAPSHOTS_SHOWN:]
    return table(("Snapshot", "Shards", "Clips", "Bytes", "In new shards", "In shards that went"), reversed(rows))


def _sum(shards: Sequence[Shard]) -> tuple[int, int, Number]:
    return len(shards), sum(shard.samples for shard in shards), _size(sum(shard.bytes for shard in shards))


def _specification(snapshot: Snapshot) -> str:
    text = escape(snapshot.specification.name)
    rows = list(_flat(snapshot.specification.to_json()))
    return f"<h2>Specification {text}</h2>{table(('Field', 'Value'), rows)}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "none" if value is None else str(value)


def _label(label: str | None) -> Cell:
    return Html("<i>no label</i>") if label is None else label


def _of(number: int, total: int) -> str:
    return f"{number:,}" if not total else f"{number:,} ({percent(number / total)})"


def _time(seconds: float) -> Number:
    return Number(core_time(seconds))


def _size(count: float) -> Number:
    return Number(size(count))
