"""The job that Dataflow would be given: built, looked at, and executed from its serialised form."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.portability.api import beam_runner_api_pb2
from click.testing import CliRunner

from manifests.storage import open_output, open_path
from pipeline import lease, steps
from pipeline.cli import main
from pipeline.fetch import parse_source
from pipeline.job import TooManyFailures
from pipeline.lease import LeaseLost
from pipeline.ledger import Outcome
from pipeline.run import make_plan

ROOT = Path(__file__).parents[1]
IMAGE = "example.org/kinetics-prep:1"
LIST = "label,youtube_id,time_start,time_end,split\nyoga,AAAAAAAAAAA,0,1,val\nzumba,-BBBBBBBBBB,0,1,val\n"
ACCELERATOR = "beam:resources:accelerator:v1"


def prep(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def submit(bucket, monkeypatch, *arguments, **keywords):
    """Do all that a submission does but for the last request: the job and its pipeline lie in the bucket then."""
    # It would ask the real service about the bucket.
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda *_: None)
    here = f"gs://{bucket.name}"
    google = ("--project=mine", "--region=europe-west4", f"--temp_location={here}/tmp", "--no_auth")
    run = ("run", "--runner=DataflowRunner", *google, f"--sdk_container_image={IMAGE}", "--output", f"{here}/out")
    return prep(*run, f"--template_location={here}/job.json", *arguments, **keywords)


def submitted(bucket):
    """The job, and its pipeline."""
    (pipeline,) = (blob for blob in bucket.list_blobs(prefix="tmp/") if blob.name.endswith("/pipeline.pb"))
    proto = beam_runner_api_pb2.Pipeline.FromString(pipeline.download_as_bytes())
    return json.loads(bucket.blob("job.json").download_as_bytes()), proto


def environments(pipeline):
    """The environment of each step that runs our functions, by the step's name."""
    steps = {
        step.unique_name: step.environment_id
        for step in pipeline.components.transforms.values()
        if step.environment_id and not step.subtransforms
    }
    return {name.split("/")[0]: pipeline.components.environments[place] for name, place in steps.items()}


@pytest.fixture
def val(bucket):
    bucket.blob("val.csv").upload_from_string(LIST)
    return "--manifest", f"gs://{bucket.name}/val.csv"


def test_the_flow_step_alone_has_a_gpu(bucket, val, monkeypatch):
    source = ("--source", "https://example.org/{youtube_id}.mp4")
    assert "2 clips submitted" in submit(bucket, monkeypatch, *val, *source, "--max_num_workers=7")
    job, pipeline = submitted(bucket)
    found = environments(pipeline)
    hints = {name: {urn: value.decode() for urn, value in found[name].resource_hints.items()} for name in found}
    assert hints.pop("Compute flow") == {
        ACCELERATOR: "type:nvidia-l4;count:1;install-nvidia-driver:5xx",
        "beam:resources:min_ram_bytes:v1": "24000000000",
        "beam:resources:cpu_count:v1": "8",
    }
    assert {"Read the plan", "Fetch and encode", "Write shards", "Publish snapshot"} <= hints.keys()
    assert not any(ACCELERATOR in hint for hint in hints.values())
    payloads = {beam_runner_api_pb2.DockerPayload.FromString(place.payload).container_image for place in found.values()}
    assert payloads == {IMAGE}
    environment = job["environment"]
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    assert environment["workerPools"][0]["autoscalingSettings"]["maxNumWorkers"] == 7
    options = environment["sdkPipelineOptions"]["options"]
    assert options["save_main_session"] is False
    assert not [blob.name for blob in bucket.list_blobs() if "main_session" in blob.name]


@pytest.mark.parametrize(("option", "value"), [("--flow", "none"), ("--accelerator", "none")])
def test_without_flow_or_without_a_gpu_there_is_no_hint(bucket, val, monkeypatch, option, value):
    submit(bucket, monkeypatch, *val, "--source", "https://example.org/{youtube_id}.mp4", option, value)
    assert not any(place.resource_hints for place in environments(submitted(bucket)[1]).values())


def test_a_job_that_is_under_way_holds_the_output(bucket, val, monkeypatch):
    source = ("--source", "https://example.org/{youtube_id}.mp4")
    submit(bucket, monkeypatch, *val, *source)
    assert "another run" in submit(bucket, monkeypatch, *val, *source, status=1)


def test_the_list_does_not_travel_in_the_job(bucket, monkeypatch):
    """Dataflow takes jobs of 10 MB: 650,000 clips are 130 MB."""
    rows = "".join(f"yoga,{number:011d},0,10,val\n" for number in range(2500))
    bucket.blob("val.csv").upload_from_string(LIST + rows)
    source = ("--source", "https://example.org/{youtube_id}.mp4")
    submit(bucket, monkeypatch, "--manifest", f"gs://{bucket.name}/val.csv", *source)
    _, pipeline = submitted(bucket)
    assert len(pipeline.SerializeToString()) < 200_000
    assert len(list(bucket.list_blobs(prefix="out/.scratch/plan/"))) == 3


@pytest.mark.parametrize("missing", ["--project", "--region", "--temp_location", "--sdk_container_image"])
def test_what_dataflow_wants_is_named(bucket, val, missing):
    here = f"gs://{bucket.name}"
    given = {"--project": "p", "--region": "r", "--temp_location": here, "--sdk_container_image": IMAGE}
    options = [f"{name}={value}" for name, value in given.items() if name != missing]
    run = ("run", *val, "--source", "https://example.org/{youtube_id}", "--runner=DataflowRunner", *options)
    assert f"wants {missing}" in prep(*run, "--output", f"{here}/out", status=2)


def test_an_output_of_this_machine_is_refused(bucket, val, tmp_path):
    options = ("--project=p", "--region=r", f"--temp_location=gs://{bucket.name}/t", f"--sdk_container_image={IMAGE}")
    run = ("run", *val, "--source", "https://example.org/{youtube_id}", "--runner=DataflowRunner", *options)
    assert "wants an output in a bucket" in prep(*run, "--output", tmp_path / "out", status=1)


EXECUTE = """
import sys
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

pipeline = beam_runner_api_pb2.Pipeline.FromString(open(sys.argv[1], "rb").read())
for environment in pipeline.components.environments.values():
    environment.urn = "beam:env:harness_subprocess_python:v1"
    environment.payload = sys.argv[2].encode()
FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([])).wait_until_finish()
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """A worker's Python whose copy of the project is the installed wheel, and not this checkout."""
    folder = tmp_path_factory.mktemp("worker")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    for name in ("manifests", "flow", "model", "pipeline", "train"):  # setuptools leaves a build/ where it works
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run(wheel, check=True, timeout=300)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=120)
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (file,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(file)], check=True, timeout=120)
    # Its packages, as a folder: what this environment links to, such as this checkout, is not followed.
    (found,) = {Path(entry) for entry in sys.path if entry.endswith("site-packages") and Path(entry).is_dir()}
    (site / "packages.pth").write_text(f"{found}\n")
    shown = [str(python), "-c", "import pipeline.cli; print(pipeline.cli.__file__)"]
    where = subprocess.run(shown, check=True, capture_output=True, text=True, cwd=folder, timeout=120).stdout
    assert Path(where.strip()).is_relative_to(site)
    return python


@pytest.mark.slow
def test_the_serialised_pipeline_runs_in_a_worker_made_from_the_wheel(
    bucket, val, monkeypatch, tmp_path, make_video, serve, worker
):
    (tmp_path / "videos").mkdir()
    for name in ("AAAAAAAAAAA", "-BBBBBBBBBB"):
        make_video(tmp_path / "videos" / f"{name}.mp4", seconds=1)
    source = ("--source", serve(tmp_path / "videos") + "/{youtube_id}.mp4", "--short-side", 32)
    submit(bucket, monkeypatch, *val, *source)
    (tmp_path / "pipeline.pb").write_bytes(submitted(bucket)[1].SerializeToString())
    command = f"{worker} -m apache_beam.runners.worker.sdk_worker_main"
    arguments = [str(worker), "-c", EXECUTE, str(tmp_path / "pipeline.pb"), command]
    work = tmp_path / "work"
    work.mkdir()
    clean = {name: os.environ[name] for name in ("PATH", "STORAGE_EMULATOR_HOST", "HOME") if name in os.environ}
    done = subprocess.run(arguments, cwd=work, env=clean, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    output = f"gs://{bucket.name}/out"
    assert json.loads(prep("status", output, "--json")) == {"listed": 2, "ok": 2, "failed": {}}
    assert "2 decoded, 0 problems" in prep("verify", output, "--decode")
    prep("run", *val, *source, "--output", tmp_path / "here")
    here = {p.relative_to(tmp_path / "here").as_posix(): p.read_bytes() for p in (tmp_path / "here").glob("shards/*/*")}
    assert {name: bucket.blob(f"out/{name}").download_as_bytes() for name in here} == here
    assert bucket.get_blob("out/.lease").metadata["holder"] == ""
    assert not list(bucket.list_blobs(prefix="out/.scratch"))


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("folder", (), "sources that its machines reach"),
        ("tar:a.tar", (), "sources that its machines reach, not a.tar"),
        ("youtube", ("--cookies", "cookies.txt"), "cookies.txt, is not on its machines"),
        ("https://h/{youtube_id}", ("--proxy", "http://u:p@h:1"), "password would be stored with the job"),
    ],
)
def test_what_its_machines_do_not_have_is_refused(bucket, val, tmp_path, monkeypatch, source, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.tar").touch()
    (tmp_path / "cookies.txt").write_text("# Netscape HTTP Cookie File\n")
    assert said in submit(bucket, monkeypatch, *val, "--source", source, *options, status=1)
    assert not list(bucket.list_blobs(prefix="out/.scratch"))


def test_the_last_step_may_be_done_again(bucket, val, monkeypatch):
    """Dataflow does so when its worker dies, and after a failure: it must neither publish twice nor disturb others."""
    source = ("--source", "https://example.org/{youtube_id}.mp4")
    submit(bucket, monkeypatch, *val, *source)
    output = open_output(f"gs://{bucket.name}/out")
    holder = bucket.get_blob("out/.lease").metadata["holder"]
    plan = make_plan([open_path(val[1])], [parse_source(source[1])], output, flow=None)
    job = replace(plan.job, lease=holder, max_failures=1)
    outcomes = [Outcome(clip, "missing", "gone") for clip in plan.clips]
    with pytest.raises(TooManyFailures):
        steps.finish(job, outcomes, [])
    other = lease.take(output)
    bucket.blob("out/.scratch/plan/000000.jsonl").upload_from_string("{}")
    with pytest.raises(LeaseLost):
        steps.finish(job, outcomes, [])
    assert bucket.blob("out/.scratch/plan/000000.jsonl").exists()
    lease.release(output, other)

    again = lease.take(output)
    job = replace(job, lease=again)
    for _ in range(2):
        with pytest.raises(TooManyFailures):
            steps.finish(job, outcomes, [])
    entries = [json.loads(line) for line in bucket.blob("out/ledger/outcomes.jsonl").download_as_bytes().splitlines()]
    assert [entry["attempts"] for entry in entries] == [2, 2]
