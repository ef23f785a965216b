"""Every command explains itself, with an example."""

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from train.cli import report_command, train_command
from train.eval_command import evaluate_command
from train.filters import filters_command
from train.predict_command import predict_command
from train.table1 import table1_command
from train.transfer_command import transfer_command

COMMANDS = {"run", "plan", "status", "verify", "preview", "report", "compact", "purge"}


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (main, ()),
        *[(main, (name,)) for name in sorted(COMMANDS)],
        (train_command, ()),
        (evaluate_command, ()),
        (predict_command, ()),
        (report_command, ()),
        (filters_command, ()),
        (table1_command, ()),
        (transfer_command, ()),
    ],
)
def test_help_has_an_example(command, arguments):
    result = CliRunner().invoke(command, [*arguments, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output


def test_all_commands_are_tested_here():
    assert set(main.commands) == COMMANDS
