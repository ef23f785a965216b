"""The command `i3d-tables`: runs the cells of a list that are missing, and renders the paper's tables from them."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from shlex import join

import click

from manifests.clip import printable
from manifests.files import write_file
from manifests.sample import FormatError
from train.cells import COMMAND, RESULT, Cell, read_cells
from train.tables import found_of, read_results, tables
from train.tables_page import tables_markdown, tables_page

LIST = click.argument("cells", type=click.Path(exists=True, dir_okay=False, path_type=Path))
OUTPUT = click.option(
    "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of all cells."
)


@click.group("i3d-tables", context_settings={"help_option_names": ["-h", "--help"]})
def tables_command() -> None:
    """The paper's tables: a TOML file lists cells, each of which is one command that anybody could type.

    train/cells.py describes the file.
    """


@tables_command.command("list")
@LIST
@OUTPUT
def list_cells(cells: Path, output: Path) -> None:
    """Say of each cell what it found, or the command that finds it.

    Example: i3d-tables list paper.toml --output cells
    """
    try:
        every = read_cells(cells, output).cells
        done = read_results(every)
    except (FormatError, OSError) as error:
        raise click.ClickException(printable(str(error))) from error
    for cell in every:
        found = found_of([done[cell]]) if cell in done else None
        said = f"top-1 {found.top1:.1f} [{found.low:.1f}, {found.high:.1f}]" if found else join(cell.command)
        click.echo(f"{cell.name}: {printable(said)}")
    click.echo(f"{len(done)} of {len(every)} cells are done")


@tables_command.command("run")
@LIST
@OUTPUT
def run_cells(cells: Path, output: Path) -> None:
    """Run the cells that are missing, in their order; what a stopped one has done is not done again.

    A cell that fails is named at the end, and those after it that need its network; the others go on.

    Example: i3d-tables run paper.toml --output cells
    """
    try:
        every = read_cells(cells, output).cells
        failed = {}
        for number, cell in enumerate(every, start=1):
            if problem := _run(cell, f"{number} of {len(every)}: {cell.name}"):
                click.echo(f"{cell.name}: {problem}", err=True)
                failed[cell.name] = problem
    except (FormatError, OSError) as error:
        raise click.ClickException(printable(str(error))) from error
    if failed:
        told = "\n".join(f"  {name}: {problem}" for name, problem in failed.items())
        raise click.ClickException(f"{len(failed)} of {len(every)} cells are missing:\n{told}")


@tables_command.command("render")
@LIST
@OUTPUT
@click.option("--page", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The HTML file.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="The tables alone, as Markdown.")
def render_tables(cells: Path, output: Path, page: Path, markdown: Path | None) -> None:
    """Write the tables, the paper's figures beside those of the cells that are done.

    Example: i3d-tables render paper.toml --output cells --page tables.html
    """
    try:
        cell_list = read_cells(cells, output)
        results = read_results(cell_list.cells)
        made = tables(cell_list, results)
        whole = tables_page(f"Tables of {printable(cells.name)}", made, results, len(cell_list.cells))
        write_file(page.resolve(), whole.encode())
        if markdown is not None:
            write_file(markdown.resolve(), tables_markdown(made).encode())
    except (FormatError, OSError) as error:
        raise click.ClickException(printable(str(error))) from error
    click.echo(page)


def _run(cell: Cell, title: str) -> str | None:
    """Run a cell's command if it is missing; gives what went wrong.

    Raises:
        FormatError: the folder holds the result of another command.
        OSError: it cannot be written to.
    """
    note = cell.folder.with_name(f"{cell.folder.name}.{COMMAND}")
    if note.is_file() and json.loads(note.read_bytes()) != list(cell.command):
        raise FormatError(
            f"{cell.folder}: was begun by another command ({note} has it); remove both, or choose another --output"
        )
    if (cell.folder / RESULT).is_file():
        return None
    for path in cell.needs:
        if not path.exists() and not path.with_name(f"{path.name}.index").exists():
            return f"{path} is not there yet"
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_file(note, json.dumps(list(cell.command)).encode())
    click.echo(f"[{title}]\n$ {printable(join(cell.command))}")
    status = _child(cell.command)
    return None if status == 0 else f"{cell.command[0]} ended with status {status}"


def _child(command: tuple[str, ...]) -> int:
    """Run a program of this environment to its end, however long it trains; SIGTERM is passed on, and ends us, too."""
    program, *arguments = command
    beside = Path(sys.executable).with_name(program)
    child = subprocess.Popen([beside if beside.exists() else program, *arguments], stdin=subprocess.DEVNULL)

    def stop(number: int, _: object) -> None:
        child.send_signal(number)
        child.wait()
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.wait()  # the terminal has told it, too
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
