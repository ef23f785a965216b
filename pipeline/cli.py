"""The command `kinetics-prep`: parses, calls one function, and turns its errors into messages."""

import json
import logging
import os
import time
import traceback
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import click

from flow import VARIANTS
from manifests.clip import printable
from manifests.index import read_snapshot
from manifests.lease import LeaseHeld
from manifests.lists import ListError
from manifests.sample import FlowCoding, FormatError
from manifests.storage import open_output, open_path
from pipeline import turns
from pipeline.dataset_commands import COMMANDS, Location, print_totals
from pipeline.estimate import estimate, lines, to_json
from pipeline.fetch import YOUTUBE, Source, UrlSource, parse_source, with_net
from pipeline.job import TooManyFailures
from pipeline.ledger import RETRYABLE, read_entries
from pipeline.run import Plan, SpecificationChanged, make_plan, run
from pipeline.runners import beam_options, fetching_processes, flow_hints
from pipeline.video import flow_coding
from pipeline.youtube import check_proxy, preflight

FLOW_HELP = "TV-L1 flow; tvl1-flat is faster and a little off (README); none: RGB only."
ROWS_SHOWN = 20  # of those that became no clip; the ledger and the report have them all
PROXY_VARIABLE = "KINETICS_PREP_PROXY"


@dataclass(frozen=True)
class Arguments:
    """What `run` and `plan` are given."""

    manifests: tuple[Path, ...]
    sources: tuple[str, ...]
    output: Path
    flow: str
    flow_crf: int
    short_side: int
    classes: str | None
    retry: tuple[str, ...]
    max_failures: int | None
    workers: int | None
    accelerator: str
    cookies: Path | None
    proxies: tuple[str, ...]
    downloads_per_minute: float | None
    others: tuple[str, ...]

    @property
    def lists(self) -> list[Path]:
        """Words before Beam's first option are further lists: `--manifest lists/*.csv`."""
        return [*self.manifests, *map(open_path, takewhile(_is_no_option, self.others))]

    @property
    def for_beam(self) -> tuple[str, ...]:
        """The other words."""
        return tuple(dropwhile(_is_no_option, self.others))

    @property
    def clips_at_a_time(self) -> int:
        """By default one a core."""
        return self.workers or os.cpu_count() or 1

    def parsed_sources(self, downloads_per_minute: float | None) -> list[Source]:
        """Where videos come from; each at most at that rate. Raises `ValueError`."""
        return with_net(
            [parse_source(text) for text in self.sources],
            cookies=self.cookies,
            proxies=[check_proxy(proxy) for proxy in self.proxies],
            downloads_per_minute=downloads_per_minute,
        )

    def what_to_make(self) -> dict[str, Any]:
        """Arguments that `run` and `make_plan` share."""
        return {
            "flow": None if self.flow == "none" else flow_coding(self.flow, self.flow_crf),
            "short_side": self.short_side,
            "classes": self.classes,
            "retry": RETRYABLE if "all" in self.retry else self.retry,
        }


def _is_no_option(word: str) -> bool:
    return not word.startswith("-")


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
    help="A folder (of <youtube_id>.<ext> or <key>.<ext>, or where a list's paths start), a URL with {youtube_id}, "
    "tar:WHERE (archives of cut clips: one, a folder, a .txt list), youtube, or dataset:DIR to reprocess what is "
    "stored there; of several, each is asked for what those before it lack.",
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
    help="http://, https:// or socks5://HOST:PORT for YouTube and URLs, not for archives; several take turns by clip. "
    f"Those with a password belong into the environment variable {PROXY_VARIABLE}: command lines are no secret.",
)
@click.option(
    "--downloads-per-minute",
    type=click.FloatRange(min=0, min_open=True),
    help="At most so many downloads from each source with URLs, by all workers together.",
)
@click.argument("others", nargs=-1, type=click.UNPROCESSED, metavar="[BEAM_OPTIONS]...")
def run_command(**typed: Any) -> None:
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
    started, asked = time.monotonic(), Arguments(**typed)
    try:
        options = beam_options(asked.for_beam, asked.clips_at_a_time)
        rate = asked.downloads_per_minute
        rate = rate / fetching_processes(options) if rate else None
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        plan = run(
            asked.lists,
            asked.parsed_sources(rate),
            asked.output,
            **asked.what_to_make(),
            max_failures=asked.max_failures,
            flow_hints=flow_hints(options, asked.flow, asked.accelerator),
            options=options,
            announce=partial(_announce, cookies=asked.cookies),
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
    _tell_of_plan(plan)
    if plan.submitted:
        click.echo(f"The job goes on by itself. What becomes of it: kinetics-prep status {asked.output}")
        return
    failed, gpu_seconds = _tell_of_failures(plan)
    if gpu_seconds:
        click.echo(f"GPUs busy {turns.busy_share(gpu_seconds, time.monotonic() - started):.0%} of the time")
    click.echo("The dataset so far:")
    print_totals(asked.output)
    if read_snapshot(asked.output) is None:
        raise click.ClickException("no clip came out well, nothing is published")
    if asked.max_failures is not None and failed > asked.max_failures:
        raise click.ClickException(str(TooManyFailures(failed, asked.max_failures)))


@main.command(
    "plan",
    context_settings={"ignore_unknown_options": True},
    short_help="Say what a run would do and cost.",
    params=list(run_command.params),  # a command line of `run` is one of `plan`
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Clips to measure: drawn by a fixed seed, really fetched and prepared, and not kept.",
)
@click.option(
    "--cores",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Of another machine, for which to say the wall-clock time as well.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines; times in seconds.")
def plan_command(sample: int, cores: int, as_json: bool, **typed: Any) -> None:
    """Say what `run` with the same arguments would do, and what it would cost, from a measured sample.

    Nothing is written to the output. Bytes, core-hours and GPU-hours are those of clips prepared one at a time; the
    wall-clock time is that of workers which never wait.

    Example: kinetics-prep plan --manifest val.csv --source videos/ --output k400 --sample 20
    """
    asked = Arguments(**typed)
    try:
        beam_options(asked.for_beam, asked.clips_at_a_time)  # refuses what `run` would
        sources = asked.parsed_sources(asked.downloads_per_minute)
        plan = make_plan(asked.lists, sources, asked.output, **asked.what_to_make())
        _require_tools(plan, asked.cookies)
        values = to_json(plan, estimate(plan, sample), asked.clips_at_a_time, cores)
    except (ListError, FormatError, SpecificationChanged, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(values, indent=1) if as_json else "\n".join(lines(values)))


def _tell_of_plan(plan: Plan) -> None:
    already = len(plan.listing.clips) - len(plan.clips) - plan.not_due.total() - plan.withdrawn
    given_up = f"{plan.not_due.total()} failed for good before (--retry), " if plan.not_due else ""
    given_up += f"{plan.withdrawn} taken down, " if plan.withdrawn else ""
    click.echo(
        f"{plan.listing.rows} rows listed, {len(plan.listing.rejected)} rejected, {already} published before, "
        f"{given_up}{len(plan.clips)} clips {'submitted' if plan.submitted else 'worked on'}"
    )


def _tell_of_failures(plan: Plan) -> tuple[int, float]:
    """Name the clips of the run that failed; gives their number, and the seconds that all its clips had a GPU."""
    worked_on, failed, gpu_seconds = {clip.key for clip in plan.clips}, 0, 0.0
    for entry in read_entries(plan.job.output):
        if entry["key"] not in worked_on:
            continue
        gpu_seconds += entry["seconds"].get(turns.GPU, 0.0)
        if entry["reason"]:
            failed += 1
            message = entry["message"].splitlines() or [""]
            click.echo(f"{entry['key']}: {entry['reason']}: {printable(message[-1])}", err=True)
    return failed, gpu_seconds


def _announce(plan: Plan, cookies: Path | None) -> None:
    """Say before the work what is to be done, and which rows became no clip; raises as `_require_tools` does."""
    for row in plan.listing.rejected[:ROWS_SHOWN]:
        click.echo(f"{row.place}: {row.reason}: {printable(row.message)}", err=True)
    if (more := len(plan.listing.rejected) - ROWS_SHOWN) > 0:
        click.echo(f"… and {more} more rows, see kinetics-prep report", err=True)
    click.echo(f"{len(plan.clips)} of {plan.listing.rows} rows to work on", err=True)
    _require_tools(plan, cookies)


def _require_tools(plan: Plan, cookies: Path | None) -> None:
    """Say what this machine lacks to fetch the plan's clips from YouTube; raise `ValueError` where it cannot."""
    from_youtube = any(isinstance(source, UrlSource) and source.template == YOUTUBE for source in plan.job.sources)
    if from_youtube and any(clip.origin == "youtube" for clip in plan.clips):
        findings = preflight(cookies)
        for finding in findings:
            click.echo(f"youtube: {finding.message}", err=True)
        if any(finding.fatal for finding in findings):
            raise ValueError("nothing can be fetched from YouTube on this machine, see above")


for command in COMMANDS:
    main.add_command(command)
