"""The whole Beam pipeline, and nothing else.

What Beam gives on one machine, and what is ours. Found by attacking a hundred-line pipeline on Beam 2.77's in-process
runner with threads (`docs/spike.md` has the runs):

- Beam gives the chain of steps, threads, and the same code on Dataflow. Names travel through it, never payloads.
- It deals the clips out to its threads once, up front. So it gets several threads a worker (`pipeline.turns`).
- A step that raises ends the run without a second try, though bundles that are already running go on to their end. So a
  clip's own faults must not raise: they are outcomes.
- It keeps nothing across a crash. So every step leaves its result under a final name, at once and atomically, and
  looks there first: a run that was killed goes on where it stood.
- A killed parent leaves children running, and a hanging child hangs the run. So children have a deadline, a process
  group and a parent-death signal of their own (`pipeline.process`), and an output has a lease (`manifests.lease`).
- Steps are pickled: what they share with the main thread (the progress display) is module state, not an argument.
"""

from collections.abc import Mapping

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsIter

from pipeline import steps
from pipeline.job import Job, read_part
from pipeline.ledger import Outcome


def prepare(root: beam.Pipeline, parts: list[str], job: Job, flow_hints: Mapping[str, str]) -> None:
    """From the plan's parts to a published snapshot: clips are fetched, encoded, given flow; good ones become shards.

    Archives of clips come first, wave after wave; what they lack is fetched clip by clip.

    Args:
        root: the pipeline to fill.
        parts: names of those of the plan that `job.write_plan` has written.
        job: what is to be done with each clip.
        flow_hints: Beam's resource hints for the step that computes flow; the others run on any machine.
    """
    archives: tuple[AsIter, ...] = ()
    for wave, named in enumerate(job.archives, start=1):
        problems = (
            root
            | f"Name archives {wave}" >> beam.Create(named)
            | f"Spread archives {wave}" >> beam.Reshuffle()
            | f"Take clips from archives {wave}" >> beam.FlatMap(steps.take_from_archive, job, *archives)
        )
        archives = (*archives, AsIter(problems))  # what is told of a wave comes when it is through
    outcomes = (
        root
        | "Name the plan's parts" >> beam.Create(parts)
        | "Read the plan" >> beam.FlatMap(read_part, job)
        | "Spread clips" >> beam.Reshuffle()
        | "Fetch and encode" >> beam.Map(steps.fetch_and_encode, job, *archives)
        | "Compute flow" >> beam.Map(_compute_flow, job).with_resource_hints(**flow_hints)
    )
    shards = (
        root
        | "Begin the shards" >> beam.Create([job])
        | "Cut into shards" >> beam.FlatMap(steps.cut_into_shards, AsIter(outcomes))
        | "Spread shards" >> beam.Reshuffle()
        | "Write shards" >> beam.Map(steps.build_shard, job)
    )
    (
        root
        | "Begin the end" >> beam.Create([job])
        | "Publish snapshot" >> beam.Map(steps.finish, AsIter(outcomes), AsIter(shards))
    )


def _compute_flow(outcome: Outcome, job: Job) -> Outcome:
    """The step, counted for runners that show Beam's counters; a bundle that is done again counts again."""
    outcome = steps.compute_flow(outcome, job)
    Metrics.counter("clips", outcome.reason or "ok").inc()
    return outcome
