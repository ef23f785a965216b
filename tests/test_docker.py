"""What of docker/ can be checked without Docker: pins that agree, paths and options that exist, programs that run."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import click
import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from google.cloud.dataflow_v1beta3.types import LaunchFlexTemplateRequest, TemplateMetadata

from flow import VARIANTS
from manifests.index import read_snapshot
from pipeline.cli import run_command
from pipeline.ledger import RETRYABLE

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
PYPROJECT = (ROOT / "pyproject.toml").read_text()
OPTIONS = {name: option for option in run_command.params if isinstance(option, click.Option) for name in option.opts}
PROGRAMS = Path(sys.executable).parent


def stages() -> dict[str, list[list[str]]]:
    """Of every stage its instructions, as lists of words, after those of the stage it begins with."""
    found = {}
    for line in DOCKERFILE.splitlines():
        words = line.split()
        if words and words[0] == "FROM":
            current = found[words[3]] = list(found.get(words[1], []))
        elif words and found and not line.startswith("#"):
            current.append(words)
    return found


def read_json(name: str) -> dict:
    return json.loads((DOCKER / name).read_text())


def compose() -> dict:
    """compose.yaml with the defaults of its variables."""
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DOCKER / "compose.yaml").read_text()))


def test_what_the_images_copy_exists_and_is_sent_to_the_builder():
    sent = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    copied = {word for stage in stages().values() for name, *words in stage if name == "COPY" for word in words[:-1]
              if not any(word.startswith("--from") for word in words)}  # fmt: skip
    copied = {word for word in copied if not word.startswith("--")}
    assert {"pyproject.toml", "docker/nightly.sh", "docker/flex_template.py"} <= copied
    for path in copied:
        assert (ROOT / path).exists()
        assert f"!{path.split('/')[0]}" in sent
    packages = json.loads(re.search(r"^packages = (\[.*\])$", PYPROJECT, re.MULTILINE)[1])
    assert set(packages) <= copied


def test_pins_agree():
    pins = dict(line.split("==", 1) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    images = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", DOCKERFILE, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) - set(stages())
    assert bases == {f"${{{name}}}" for name in images}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", images["PYTHON_IMAGE"])
    assert images["BEAM_IMAGE"] == f"apache/beam_python3.11_sdk:{pins['apache-beam']}"
    assert re.fullmatch(r"\S+/python311-template-launcher-base:\d{8}_RC\d\d", images["LAUNCHER_IMAGE"])
    version = re.search(r'^version = "(.*)"$', PYPROJECT, re.MULTILINE)[1]
    assert {service["image"] for service in compose()["services"].values()} == {f"kinetics-prep:{version}"}


@pytest.mark.parametrize(
    ("target", "user"), [("prep", "1000"), ("train", "1000"), ("dataflow", "0"), ("template", "0")]
)
def test_images_install_pinned_versions_and_run_as(target, user):
    stage = stages()[target]
    assert [words[1] for words in stage if words[0] == "USER"][-1] == user
    assert any("PIP_CONSTRAINT=/etc/constraints.txt" in words for words in stage if words[0] == "ENV")
    wanted = re.findall(r"\.whl\)\[([\w,]+)\]", " ".join(word for words in stage for word in words))
    assert wanted
    for extra in wanted[-1].split(","):
        assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE)


def test_the_nightly_run_has_options_that_exist_and_folders_that_are_mounted():
    service = compose()["services"]["nightly"]
    assert service["user"] == "1000:1000"
    snooze, *arguments, program = service["entrypoint"]
    assert (snooze, program) == ("snooze", "nightly")
    hour, minute = (int(arguments[arguments.index(name) + 1]) for name in ("-H", "-M"))
    assert hour in range(24)
    assert minute in range(60)
    options, _, _ = run_command.make_parser(click.Context(run_command)).parse_args(list(service["command"]))
    assert options["max_failures"].isdigit()
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    used = [*options["manifests"], *options["sources"], options["output"]]
    assert {f"/{path.split('/')[1]}" for path in used if path.startswith("/")} == mounted


def test_template_and_launch_are_what_dataflow_reads():
    text = (DOCKER / "flex_template_metadata.json").read_text()
    metadata = TemplateMetadata.from_json(text, ignore_unknown_fields=False)
    for parameter in metadata.parameters:
        assert parameter.label
        assert parameter.help_text
        option = OPTIONS.get(f"--{parameter.name}".replace("_", "-"))
        assert option is not None
        assert parameter.is_optional or option.required

    expressions = {parameter.name: parameter.regexes for parameter in metadata.parameters}
    launch = LaunchFlexTemplateRequest.from_json((DOCKER / "launch.json").read_text(), ignore_unknown_fields=False)
    given = dict(launch.launch_parameter.parameters)
    assert {parameter.name for parameter in metadata.parameters if not parameter.is_optional} <= set(given)
    for flow in (*VARIANTS, "none"):
        assert re.fullmatch(expressions["flow"][0], flow)
    for name, value in [*given.items(), ("retry", "all"), ("retry", " ".join(RETRYABLE)), ("flow_crf", "51")]:
        assert all(re.fullmatch(expression, value) for expression in expressions[name]), (name, value)
    for name, value in [("manifest", "gs://b/a.csv,gs://b/c.csv d"), ("output", "k400"), ("flow_crf", "52")]:
        assert not any(re.fullmatch(expression, value) for expression in expressions[name]), (name, value)


def test_the_template_runs_kinetics_prep(tmp_path, make_video):
    """Underscores, values with spaces, and Beam's own options, as Dataflow's launcher gives them."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"path,label\n{name}.mp4,walk\n")
    make_video(tmp_path / "in" / "a.mp4", seconds=0.5)
    (tmp_path / "in" / "b.mp4").write_bytes(b"no video")
    command = [sys.executable, DOCKER / "flex_template.py", f"--manifest={tmp_path}/a.csv {tmp_path}/b.csv"]
    command += [f"--source={tmp_path}/in", f"--output={tmp_path}/out", "--flow=none", "--short_side=32"]
    command += ["--retry=corrupt too-short", "--max_failures=0", "--job_name=night", "--no_auth"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    assert "1 clips of this run failed, more than --max-failures 0" in done.stderr
    assert sum(shard.samples for shard in read_snapshot(tmp_path / "out").shards) == 1


@pytest.mark.slow
def test_a_failed_night_is_told_and_a_good_one_forgets_it(tmp_path):
    told = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "FAILURE_URL": f"http://127.0.0.1:{server.server_port}/",
    }

    def night(*arguments: str) -> int:
        command = [DOCKER / "nightly.sh", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode

    assert night("--flow=none") == 2  # no --output
    assert told == ["kinetics-prep run ended with status 2"]
    unhealthy = shlex.join(compose()["services"]["nightly"]["healthcheck"]["test"][1:])
    assert (tmp_path / Path(unhealthy.split()[-1]).name).read_text() == told[0] + "\n"
    assert night("--help") == 0
    assert list(tmp_path.glob("night-*")) == []
    server.shutdown()
    server.server_close()
    assert night("--flow=none") == 2  # though nobody hears of it


def test_the_schedule_posts_a_launch_without_placeholders(tmp_path):
    """The script runs with a gcloud that writes down what it is asked for; Google's needs Google."""
    recorder = tmp_path / "gcloud"
    recorder.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        'case "$*" in *describe*) exit 1 ;; esac\n'
        f'while [ $# -gt 0 ]; do [ "$1" != --message-body-from-file ] || cp "$2" {tmp_path}/body; shift; done\n'
    )
    recorder.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TAG": "t1"}
    names = {"PROJECT": "p-1", "REGION": "europe-west4", "BUCKET": "b-1"}
    script = [DOCKER / "schedule_dataflow.sh"]
    assert subprocess.run(script, env=environment, capture_output=True, timeout=60).returncode != 0
    subprocess.run(script, env={**environment, **names}, check=True, capture_output=True, timeout=60)

    body = (tmp_path / "body").read_text()
    assert not re.search(r"BUCKET|PROJECT|REGION|TAG", body)
    launch = LaunchFlexTemplateRequest.from_json(body, ignore_unknown_fields=False).launch_parameter
    assert launch.environment.sdk_container_image == "europe-west4-docker.pkg.dev/p-1/kinetics-prep/dataflow:t1"
    asked = [shlex.split(line.replace("*", "x")) for line in (tmp_path / "asked").read_text().splitlines()]
    build = next(words for words in asked if "builds" in words)
    assert "_IMAGES=europe-west4-docker.pkg.dev/p-1/kinetics-prep,_TAG=t1" in build
    for words in asked:
        for word in words:
            assert not word.startswith(str(DOCKER)) or Path(word).exists()
    template = next(words for words in asked if "flex-template" in words)
    assert launch.container_spec_gcs_path in template
    job = asked[-1]
    assert job[job.index("--schedule") + 1 :][:5] == ["0", "3", "x", "x", "x"]
    assert launch.environment.service_account_email in {word.partition(":")[2] for words in asked for word in words}


def test_options_in_the_readme_exist():
    text = (DOCKER / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"prep run (--[^`\n]*)", text)
    assert len(commands) == 3
    beam = {f"--{name}" for name in PipelineOptions([]).get_all_options()}
    for command in commands:
        used = {word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")}
        assert used <= OPTIONS.keys() | beam
