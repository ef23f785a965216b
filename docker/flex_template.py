"""What the Dataflow template's launcher starts: `kinetics-prep run` with the template's parameters as its options.

The launcher passes `--name=value` for each parameter, and Beam's own options in the same way. A parameter is an option
of `kinetics-prep run` with underscores for dashes. It cannot be given twice, so those options that can take several
values with spaces between them: `--retry="corrupt too-short"`.
"""

import sys
from collections.abc import Sequence

from click import Option

from pipeline.cli import main, run_command


def run_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of `kinetics-prep run`."""
    options = {option.opts[0]: option for option in run_command.params if isinstance(option, Option)}
    translated = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        option = options.get(name.replace("_", "-"))
        if option is None:
            translated.append(argument)  # Beam's
            continue
        values = value.split() if option.multiple else [value]
        translated += [f"{option.opts[0]}={value}" for value in values]
    return translated


if __name__ == "__main__":
    main(["run", *run_arguments(sys.argv[1:])])
