"""The command `i3d-tables`: runs the cells of a list that are missing, and renders the paper's tables from them."""

from pathlib import Path
from shlex import join

import click

from manifests.clip import printable
from manifests.files import check_writable, write_file
from manifests.sample import FormatError
from train.cells import Cell, read_cells
from train.children import ProgramFailed, run_program
from train.tables import found_of, is_done, read_results, tables
from train.tables_page import tables_markdown, tables_page
from train.transfer import RESULT

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
        found = found_of(done[cell]) if cell in done else None
        said = f"top-1 {found.text}" if found else join(cell.command)
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
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command goes on") from None
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
    files = [path.resolve() for path in (cells, page, markdown) if path is not None]
    if len(set(files)) < len(files):
        raise click.ClickException("the list, --page and --markdown are not all different files")
    try:
        for file in files[1:]:
            check_writable(file)
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
    """Run a cell's command if it is missing; gives what went wrong."""
    try:
        if is_done(cell):
            return None
        for path in cell.needs:
            if not path.exists() and not path.with_name(f"{path.name}.index").exists():
                return f"{path} is not there yet"
        click.echo(f"[{title}]")
        cell.folder.mkdir(parents=True, exist_ok=True)
        run_program(cell.command)
        if not (cell.folder / RESULT).is_file():
            return f"{cell.command[0]} wrote no {RESULT}"
        write_file(cell.note, cell.identity.encode())
    except (ProgramFailed, FormatError, OSError) as error:
        return str(error)
    return None
