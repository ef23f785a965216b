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

import apache_beam as beam

from manifests.clip import Clip
from pipeline import steps
from pipeline.steps import Job


def prepare(root: beam.Pipeline, clips: list[Clip], job: Job) -> None:
    """From clips to a published snapshot: each clip is fetched, encoded, given flow; the good ones become shards."""
    (
        root
        | "List clips" >> beam.Create(clips)
        | "Spread clips" >> beam.Reshuffle()
        | "Fetch and encode" >> beam.Map(steps.fetch_and_encode, job)
        | "Compute flow" >> beam.Map(steps.compute_flow, job)
        | "Collect outcomes" >> beam.combiners.ToList()
        | "Write ledger" >> beam.Map(steps.write_ledger, job)
        | "Cut into shards" >> beam.FlatMap(steps.cut_into_shards, job)
        | "Spread shards" >> beam.Reshuffle()
        | "Write shards" >> beam.Map(steps.build_shard, job)
        | "Collect shards" >> beam.combiners.ToList()
        | "Publish snapshot" >> beam.Map(steps.publish, job)
    )
