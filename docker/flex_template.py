"""What the Dataflow template's launcher starts: `kinetics-prep run` with the template's parameters as its options.

The launcher passes `--name=value` for each parameter, and Beam's own options in the same way. A parameter is an option
of `kinetics-prep run` with underscores for dashes. It cannot be given twice, so those options that can take several
values with spaces between them: `--retry="corrupt too-short"`. Lists in Cloud Storage are copied onto this machine.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from apache_beam.io.filesystems import FileSystems
from click import Option

from pipeline.cli import main, run_command


def run_arguments(arguments: Sequence[str], folder: Path) -> list[str]:
    """The arguments of `kinetics-prep run`; lists in Cloud Storage are copied into `folder`."""
    options = {option.opts[0]: option for option in run_command.params if isinstance(option, Option)}
    translated = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        option = options.get(name.replace("_", "-"))
        if option is None:
            translated.append(argument)  # Beam's
            continue
        values = value.split() if option.multiple else [value]
        if option.name == "manifests":
            values = [_local(place, folder) for place in values]
        translated += [f"{option.opts[0]}={value}" for value in values]
    return translated


def _local(place: str, folder: Path) -> str:
    """A list's path on this machine. It keeps its name, which messages give, in a folder of its own."""
    if "://" not in place:
        return place
    copy = Path(tempfile.mkdtemp(dir=folder)) / place.rpartition("/")[2]
    with FileSystems.open(place) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return str(copy)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(["run", *run_arguments(sys.argv[1:], Path(folder))])
