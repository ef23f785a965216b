"""The commands of `kinetics-prep` that look at a dataset that is there, or change what is published in it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from manifests.clip import printable
from manifests.index import LEDGER, read_snapshot
from manifests.lease import LeaseHeld
from manifests.sample import FormatError
from manifests.storage import open_output
from pipeline.generations import compact, unpublished, withdraw
from pipeline.lease import run_lease
from pipeline.ledger import read_entries, totals
from pipeline.preview import png, preview, read_sample
from pipeline.report import write_report
from pipeline.verify import verify
from pipeline.video import VideoError

DECODE_ALL = -1  # what `--decode` without a number stands for


class Location(click.ParamType):
    """A path on this machine or in a bucket."""

    name = "path"

    def __init__(self, opened: Callable[[str], Path], *, exists: bool = False) -> None:
        self.opened, self.exists = opened, exists

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Raise `click.BadParameter` for a URL that cannot be used, or where nothing is though something must be."""
        try:
            path = self.opened(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if self.exists and not path.exists():
            self.fail(f"{value!r} does not exist", param, ctx)
        return path


DATASET = Location(open_output, exists=True)


@click.command("compact", short_help="Publish all clips as one generation.")
@click.argument("dataset", type=DATASET)
def compact_command(dataset: Path) -> None:
    """Publish all clips of the current snapshot as one generation: the shards of a fresh run with the same outcomes.

    Older snapshots and their shards stay.

    Example: kinetics-prep compact k400
    """
    try:
        with run_lease(dataset):
            snapshot = compact(dataset)
    except (FormatError, LeaseHeld, OSError) as error:
        raise click.ClickException(str(error)) from error
    samples = sum(shard.samples for shard in snapshot.shards)
    click.echo(f"snapshot {snapshot.name}: {samples} samples in {len(snapshot.shards)} shards")


@click.command("purge", short_help="Take clips down, for good.")
@click.argument("dataset", type=DATASET)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
def purge_command(dataset: Path, keys: tuple[str, ...]) -> None:
    """Remove clips from every shard, snapshot and finished clip; no later run brings them back.

    Shards that held them are rewritten, in older snapshots too, and the report page is removed. Keys that start with a
    dash stand after two dashes.

    Example: kinetics-prep purge k400 -- -abcdefghij_000010_000020
    """
    try:
        with run_lease(dataset):
            withdraw(dataset, keys)
    except (FormatError, LeaseHeld, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    snapshot = read_snapshot(dataset)
    click.echo(f"{len(set(keys))} taken down" + (f"; snapshot {snapshot.name} is the current one" if snapshot else ""))


@click.command("status", short_help="Count what became of the listed clips.")
@click.argument("dataset", type=DATASET)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status_command(dataset: Path, as_json: bool) -> None:
    """Count what became of the listed clips: listed = ok + failed, by reason.

    Example: kinetics-prep status k400 --json
    """
    try:
        if not (dataset / LEDGER).exists():
            raise FormatError(f"{dataset}: no ledger, no run has ended there yet")
        if as_json:
            click.echo(json.dumps(totals(read_entries(dataset)), indent=1))
        else:
            print_totals(dataset)
    except FormatError as error:
        raise click.ClickException(str(error)) from error


@click.command("verify", short_help="Check shards, indexes and videos.")
@click.argument("dataset", type=DATASET)
@click.option(
    "--decode",
    type=click.IntRange(min=DECODE_ALL),
    is_flag=False,
    flag_value=DECODE_ALL,
    default=0,
    help="Decode N samples as well, or all of them when N is left out.",
    metavar="[N]",
)
def verify_command(dataset: Path, decode: int) -> None:
    """Check the hashes and the index of every shard, and on request decode samples.

    Exit status 1 when anything differs; what differs is named.

    Example: kinetics-prep verify k400 --decode 100
    """
    try:
        result = verify(dataset, None if decode == DECODE_ALL else decode)
    except FormatError as error:
        raise click.ClickException(str(error)) from error
    for problem in result.problems:
        click.echo(printable(problem), err=True)
    click.echo(
        f"snapshot {result.snapshot}: {result.shards} shards, {result.samples} samples, {result.decoded} decoded, "
        f"{len(result.problems)} problems"
    )
    sys.exit(1 if result.problems else 0)


@click.command("preview", short_help="Show a sample as a picture.")
@click.argument("dataset", type=DATASET)
@click.argument("key")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A .png file.")
def preview_command(dataset: Path, key: str, output: Path) -> None:
    """Write a picture of a sample: frames above, colour-coded flow below.

    A key that starts with a dash stands after two dashes.

    Example: kinetics-prep preview k400 -o clip.png -- -abcdefghij_000010_000020
    """
    if output.suffix.lower() != ".png":
        raise click.UsageError(f"{output}: only .png is written")
    try:
        output.write_bytes(png(preview(read_sample(dataset, key))))
    except (FormatError, VideoError, OSError) as error:
        raise click.ClickException(str(error)) from error


@click.command("report", short_help="Write the report page.")
@click.argument("dataset", type=DATASET)
def report_command(dataset: Path) -> None:
    """Write DATASET/report.html: totals, failures by reason, frames and flow of a few clips.

    Example: kinetics-prep report k400
    """
    try:
        click.echo(write_report(dataset))
    except (FormatError, VideoError, OSError) as error:
        raise click.ClickException(str(error)) from error


def print_totals(dataset: Path) -> None:
    """Print what became of the listed clips."""
    counts = totals(read_entries(dataset))
    click.echo(f"listed  {counts['listed']:>8}")
    click.echo(f"ok      {counts['ok']:>8}")
    click.echo(f"failed  {sum(counts['failed'].values()):>8}")
    for reason, number in counts["failed"].items():
        click.echo(f"  {reason:<16}{number:>6}")
    if waiting := len(unpublished(dataset)):
        click.echo(f"finished{waiting:>8}  and not published: a run publishes when it ends")


COMMANDS = (status_command, verify_command, preview_command, report_command, compact_command, purge_command)
