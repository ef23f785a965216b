"""The command `kinetics-prep`: parses, calls one function, and turns its errors into messages."""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import click

from flow import VARIANTS
from manifests.clip import printable
from manifests.index import read_snapshot
from manifests.lease import LeaseHeld
from manifests.lists import ListError
from manifests.sample import FlowCoding, FormatError
from pipeline.fetch import YOUTUBE, Source, UrlSource, parse_source, with_net
from pipeline.generations import compact, withdraw
from pipeline.lease import run_lease
from pipeline.ledger import LEDGER, RETRYABLE, read_entries, totals
from pipeline.preview import png, preview, read_sample
from pipeline.report import write_report
from pipeline.run import SpecificationChanged, run
from pipeline.runners import beam_options, fetching_processes, flow_hints
from pipeline.storage import open_output, open_path
from pipeline.verify import verify
from pipeline.video import VideoError, flow_coding
from pipeline.youtube import check_proxy, preflight


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

FLOW_HELP = "TV-L1 flow; tvl1-flat is faster and a little off (README); none: RGB only."
PROXY_VARIABLE = "KINETICS_PREP_PROXY"
DECODE_ALL = -1  # what `--decode` without a number stands for


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """From lists of clips to shards for training: fetch, trim, 25 fps, TV-L1 flow.

    Example: kinetics-prep run --manifest val.csv --source videos/ --output k400
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


@main.command(
    "run", context_settings={"ignore_unknown_options": True}, short_help="Prepare what the lists name and publish it."
)
@click.option(
    "--manifest",
    "manifests",
    multiple=True,
    type=Location(open_path, exists=True),
    help="Lists: Kinetics' CSV or JSON, a CSV path,label[,start,end,split], a folder class/video.mp4, or a folder of "
    "UCF-101 or HMDB-51 with its split files. Several may follow. Without one, all clips of the datasets that are the "
    "sources.",
    metavar="FILE...",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    default=["youtube"],
    show_default=True,
    help="A folder (of <youtube_id>.<ext>, or where a list's paths start), a URL with {youtube_id}, youtube, or "
    "dataset:DIR to reprocess what is stored there; of several, each is asked for what those before it lack.",
)
@click.option("--output", required=True, type=Location(open_output), help="The dataset's folder, or gs://bucket/name.")
@click.option("--flow", type=click.Choice([*VARIANTS, "none"]), default="tvl1", show_default=True, help=FLOW_HELP)
@click.option(
    "--flow-crf",
    type=click.IntRange(0, 51),
    default=FlowCoding.crf,
    show_default=True,
    help="x264's rate factor of stored flow; 0 keeps every 8-bit code.",
)
@click.option(
    "--short-side", type=int, default=256, show_default=True, help="Stored short side in pixels, even, 32 to 1080."
)
@click.option(
    "--classes",
    help="kinetics400, kinetics600, kinetics700, or a file with one label a line. By default kinetics400, for UCF-101 "
    "and HMDB-51 their own, for lists of your own their labels; for a dataset that exists the list it was made with.",
)
@click.option(
    "--retry",
    multiple=True,
    type=click.Choice(["all", *RETRYABLE]),
    metavar="REASON",
    help="Try clips again that failed for good for this reason; may be given several times; 'all' for every reason.",
)
@click.option(
    "--max-failures",
    type=click.IntRange(min=0),
    help="Exit with status 1 when more clips of this run failed; by default any number may.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Clips worked on at a time; by default one a core.")
@click.option(
    "--accelerator",
    default="type:nvidia-l4;count:1;install-nvidia-driver:5xx",
    show_default=True,
    help="On Dataflow: of the machines that compute flow, and of no others; none: processors.",
)
@click.option(
    "--cookies",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of cookies as browsers export it (Netscape's format), for --source youtube; it is never written to.",
)
@click.option(
    "--proxy",
    "proxies",
    multiple=True,
    envvar=PROXY_VARIABLE,
    metavar="URL",
    help="http://, https:// or socks5://HOST:PORT for what is downloaded; several take turns by clip. Those with a "
    f"password belong into the environment variable {PROXY_VARIABLE}: everybody on a machine can read command lines.",
)
@click.option(
    "--downloads-per-minute",
    type=click.FloatRange(min=0, min_open=True),
    help="At most so many downloads from each source with URLs, by all workers together.",
)
@click.argument("others", nargs=-1, type=click.UNPROCESSED, metavar="[BEAM_OPTIONS]...")
def run_command(
    manifests: tuple[Path, ...],
    sources: tuple[str, ...],
    output: Path,
    flow: str,
    flow_crf: int,
    short_side: int,
    classes: str | None,
    retry: tuple[str, ...],
    max_failures: int | None,
    workers: int | None,
    accelerator: str,
    cookies: Path | None,
    proxies: tuple[str, ...],
    downloads_per_minute: float | None,
    others: tuple[str, ...],
) -> None:
    """Prepare every clip of the lists that is not published yet.

    Clips that fail are recorded with a reason, and the rest goes on. The next run tries those again that may come out
    well then, such as timeouts, and others where --retry names their reason. Options that are not listed here go to
    Apache Beam, such as --runner.

    \b
    Examples:
      kinetics-prep run --manifest train.csv val.csv --output k400
      kinetics-prep run --manifest val.csv --source videos/ --source youtube --downloads-per-minute 6 --output k400
      kinetics-prep run --source dataset:k400 --output k400-flat --flow tvl1-flat
      kinetics-prep run --manifest my_videos/ --output mine --flow none
      kinetics-prep run --manifest val.csv --source videos/ --output k400 --retry corrupt --retry too-short
      kinetics-prep run --manifest gs://lists/train.csv --output gs://data/k400 --runner=DataflowRunner \\
        --project=mine --region=europe-west4 --temp_location=gs://data/tmp --sdk_container_image=IMAGE
    """  # noqa: D301 — click reads the backspace as "keep these lines as they are"
    # Words before Beam's first option are further lists: `--manifest lists/*.csv`.
    further = list(takewhile(lambda word: not word.startswith("-"), others))
    try:
        options = beam_options(others[len(further) :], workers or os.cpu_count() or 1)
        rate = downloads_per_minute / fetching_processes(options) if downloads_per_minute else None
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        plan = run(
            [*manifests, *map(open_path, further)],
            _ready_sources(sources, cookies, proxies, rate),
            output,
            flow=None if flow == "none" else flow_coding(flow, flow_crf),
            short_side=short_side,
            classes=classes,
            retry=RETRYABLE if "all" in retry else retry,
            max_failures=max_failures,
            flow_hints=flow_hints(options, flow, accelerator),
            options=options,
        )
    except (ListError, FormatError, SpecificationChanged, LeaseHeld, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        # Beam's threads do not stop for it, and an interpreter that shuts down under them aborts. Nothing needs them:
        # children die with us, the lease is the kernel's, finished clips are on disk.
        click.echo("\nStopped. What is finished is kept: run the same command again to go on.", err=True)
        os._exit(130)
    except RuntimeError as error:
        # Beam wraps what a step raised and names the step in the last line of a long traceback.
        traceback.print_exc()
        raise click.ClickException(
            f"{error}\nThe run has stopped. What is finished is kept: mend the cause and run the same command again."
        ) from error
    for row in plan.listing.rejected:
        click.echo(f"{row.place}: {row.reason}: {printable(row.message)}", err=True)
    already = len(plan.listing.clips) - len(plan.clips) - plan.not_due - plan.withdrawn
    given_up = f"{plan.not_due} failed for good before (--retry), " if plan.not_due else ""
    given_up += f"{plan.withdrawn} taken down, " if plan.withdrawn else ""
    click.echo(
        f"{plan.listing.rows} rows listed, {len(plan.listing.rejected)} rejected, {already} published before, "
        f"{given_up}{len(plan.clips)} clips {'submitted' if plan.submitted else 'worked on'}"
    )
    if plan.submitted:
        click.echo(f"The job goes on by itself. What becomes of it: kinetics-prep status {output}")
        return
    worked_on, failed = {clip.key for clip in plan.clips}, 0
    for entry in read_entries(output):
        if entry["key"] in worked_on and entry["reason"]:
            failed += 1
            message = entry["message"].splitlines() or [""]
            click.echo(f"{entry['key']}: {entry['reason']}: {printable(message[-1])}", err=True)
    click.echo("The dataset so far:")
    _print_totals(output)
    if read_snapshot(output) is None:
        raise click.ClickException("no clip came out well, nothing is published")
    if max_failures is not None and failed > max_failures:
        raise click.ClickException(f"{failed} clips of this run failed, more than --max-failures {max_failures}")


@main.command("compact", short_help="Publish all clips as one generation.")
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


@main.command("purge", short_help="Take clips down, for good.")
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


@main.command("status", short_help="Count what became of the listed clips.")
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
            _print_totals(dataset)
    except FormatError as error:
        raise click.ClickException(str(error)) from error


@main.command("verify", short_help="Check shards, indexes and videos.")
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


@main.command("preview", short_help="Show a sample as a picture.")
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


@main.command("report", short_help="Write the report page.")
@click.argument("dataset", type=DATASET)
def report_command(dataset: Path) -> None:
    """Write DATASET/report.html: totals, failures by reason, frames and flow of a few clips.

    Example: kinetics-prep report k400
    """
    try:
        click.echo(write_report(dataset))
    except (FormatError, VideoError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _print_totals(dataset: Path) -> None:
    counts = totals(read_entries(dataset))
    click.echo(f"listed  {counts['listed']:>8}")
    click.echo(f"ok      {counts['ok']:>8}")
    click.echo(f"failed  {sum(counts['failed'].values()):>8}")
    for reason, number in counts["failed"].items():
        click.echo(f"  {reason:<16}{number:>6}")


def _ready_sources(
    texts: tuple[str, ...], cookies: Path | None, proxies: tuple[str, ...], downloads_per_minute: float | None
) -> list[Source]:
    """The sources, after a look at what they need on this machine; what is missing is said, and stops where it must."""
    sources = with_net(
        [parse_source(text) for text in texts],
        cookies=cookies,
        proxies=[check_proxy(proxy) for proxy in proxies],
        downloads_per_minute=downloads_per_minute,
    )
    if any(isinstance(source, UrlSource) and source.template == YOUTUBE for source in sources):
        findings = preflight(cookies)
        for finding in findings:
            click.echo(f"youtube: {finding.message}", err=True)
        if any(finding.fatal for finding in findings):
            raise ValueError("nothing can be fetched from YouTube on this machine, see above")
    return sources
