"""What Apache Beam is told: the options of its runners, and the machines that the steps want."""

import argparse
import os

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, WorkerOptions

from pipeline import turns

# Beam's in-process runner. Its default would look for a Prism binary first, download one, or fall back.
IN_PROCESS = "FnApiRunner"
DATAFLOW = "DataflowRunner"
DATAFLOW_DEFAULTS = (
    # One process a machine, so that one holds its GPU and many threads feed it; the work is done without the
    # interpreter's lock or in children.
    "--experiments=no_use_multiple_sdk_containers",
    "--no_save_main_session",  # every step is a function of an installed module
    "--sdk_location=container",
)
# The machine of Dataflow's flow step: one GPU, and cores and memory to decode and encode for it.
FLOW_MACHINE = {"min_ram": "24GB", "cpu_count": "8"}


def is_dataflow(runner: str | None) -> bool:
    """Whether a runner's name is Dataflow's; Beam takes it with its module and in small letters, too."""
    return (runner or "").rpartition(".")[2].lower() == DATAFLOW.lower()


def beam_options(arguments: tuple[str, ...], workers: int) -> PipelineOptions:
    """Beam's options of a command line, with what it does not say.

    Args:
        arguments: the words for Beam.
        workers: clips worked on at a time by the in-process runner, the default; others have options of their own.

    Raises:
        ValueError: an option that Beam does not know, which it would drop with one line in its log; or on Dataflow one
            that is missing.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(parser)
    try:
        known, unknown = parser.parse_known_args(list(arguments))
    except (argparse.ArgumentError, SystemExit) as error:
        raise ValueError(f"Beam options {' '.join(arguments)}: {error}") from error
    if unknown:
        raise ValueError(f"no such option: {' '.join(unknown)} (neither of kinetics-prep nor of Apache Beam)")
    if known.runner is None:
        threads = workers * turns.THREADS_PER_WORKER
        own = [f"--runner={IN_PROCESS}", "--direct_running_mode=multi_threading", f"--direct_num_workers={threads}"]
        turns.limit(workers)
        return PipelineOptions([*own, *arguments])
    if not is_dataflow(known.runner):
        return PipelineOptions(list(arguments))
    options = PipelineOptions([*DATAFLOW_DEFAULTS, *arguments])
    _require_for_dataflow(options)
    return options


def _require_for_dataflow(options: PipelineOptions) -> None:
    cloud = options.view_as(GoogleCloudOptions)
    wanted = {
        "--project": cloud.project,
        "--region": cloud.region,
        "--temp_location=gs://…": cloud.temp_location,
        "--sdk_container_image, an image with this program and FFmpeg in it (docker/README.md)": options.view_as(
            WorkerOptions
        ).sdk_container_image,
    }
    for name, value in wanted.items():
        if not value:
            raise ValueError(f"{DATAFLOW} wants {name}")


def flow_hints(options: PipelineOptions, flow: str, accelerator: str) -> dict[str, str]:
    """Beam's resource hints for the step that computes flow. The other steps get none: a GPU would wait for them."""
    if flow == "none" or accelerator == "none" or not is_dataflow(options.get_all_options()["runner"]):
        return {}
    return {"accelerator": accelerator, **FLOW_MACHINE}


def fetching_processes(options: PipelineOptions) -> int:
    """Among how many processes a rate is divided.

    Raises:
        ValueError: only the runner knows.
    """
    given = options.get_all_options()
    runner = str(given["runner"] or IN_PROCESS).rpartition(".")[2]
    if runner in (IN_PROCESS, "DirectRunner", "BundleBasedDirectRunner"):
        several = given["direct_running_mode"] == "multi_processing"
        return (given["direct_num_workers"] or os.cpu_count() or 1) if several else 1
    if is_dataflow(runner):
        fixed = given["num_workers"] if given["autoscaling_algorithm"] == "NONE" else None
        machines = fixed or given["max_num_workers"]
        if machines and "no_use_multiple_sdk_containers" in (given["experiments"] or []):
            return int(machines)
        needed = "--max_num_workers=N"
    elif given["environment_type"] == "LOOPBACK":
        return 1  # all workers are threads of this process
    else:
        needed = "--environment_type=LOOPBACK, or no --runner"
    raise ValueError(
        f"--downloads-per-minute is divided among the processes that fetch, and how many {runner} starts is not "
        f"known: add {needed}"
    )
