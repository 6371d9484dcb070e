"""The ``tweaknn`` command: assembles the subcommands and turns errors into one sentence and an exit code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from tweaknn.errors import TweaknnError

COMMANDS = {
    "diagnose": "Accuracy of each class, the worst ones, what they are taken for.",
    "synapses": "Algorithm 1 for every neuron, as a Parquet table.",
    "join": "Find synapses that mend the target classes; write a Δnn file.",
    "evaluate": "Base and tweaked network side by side.",
    "compare": "Our methods beside every rival, on the same splits.",
    "report": "One self-contained page about a result.",
    "train": "Train a network, pruning it to a budget on the way.",
    "structure": "Layers before and after pruning.",
    "export": "Write a tweaked network as ONNX or pt2.",
    "demo": "All of it on real digits, in a minute.",
}
"""Subcommands, one module each; imported only when called, since torch takes seconds to load."""


class LazyGroup(TyperGroup):
    """Imports a subcommand's module when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if _exists(name)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS or not _exists(cmd_name):
            return None
        module = importlib.import_module(f"tweaknn.cli.{cmd_name}")
        single = typer.Typer(add_completion=False)
        single.command(name=cmd_name, help=module.command.__doc__)(module.command)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


def _exists(name: str) -> bool:
    return importlib.util.find_spec(f"tweaknn.cli.{name}") is not None


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Say the version and end.")) -> None:
    """Edit trained classifiers: mend the classes that matter, prune what is not needed."""
    if version:
        from tweaknn import __version__

        typer.echo(f"tweaknn {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 bad input or usage, 3 nothing found that helps, 130 interrupted."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Like :func:`main`, returning the exit code."""
    from tweaknn.cli.console import err, forget

    forget()
    command: Any = typer.main.get_command(app)
    try:
        command.main(args=arguments, prog_name="tweaknn")
        return 0
    except SystemExit as stop:  # usage errors and --help end here
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        err.print("Interrupted; nothing was written.", style="yellow")
        return 130
    except TweaknnError as error:
        if os.environ.get("TWEAKNN_DEBUG"):
            raise
        err.print(f"Error: {error}", style="red", markup=False)
        return error.exit_code


if __name__ == "__main__":
    main()
