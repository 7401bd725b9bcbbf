"""The command `covidseg`: one command a file, loaded when it is called.

Options are taken from the command line, otherwise from the environment (COVIDSEG_SEGMENT_DEVICE
for `covidseg segment --device`), otherwise from the configuration file, otherwise their default.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import click

from covidseg import __version__
from covidseg.cli.config_file import read_config_file
from covidseg.cli.exit_codes import EXIT_CODES_HELP, error_seam

__all__ = ["main"]

# The one-line helps stand here so that `covidseg --help` loads no command.
_COMMANDS = MappingProxyType(
    {
        "segment": "Label lungs and infection on a chest CT, or a folder of them.",
        "report": "Write pages to read: of one scan, of two, or of a folder of results.",
        "serve": "Answer over HTTP: jobs, and KServe v2 inference.",
        "pacs": "Receive DICOM series, send results back: a node beside a PACS.",
        "module": "Answer the series that mercure, Kaapana or MONAI Deploy hands over.",
        "evaluate": "Compare a label map with the truth.",
        "data": "List, fetch, verify and import data sets.",
        "train": "Train a network.",
        "study": "Compare transfer strategies: sources x strategies x folds.",
        "export": "Turn a training run into a model bundle.",
        "models": "List the model bundles of this installation.",
        "benchmark": "Measure every engine and precision of this machine.",
        "check": "Show what this machine can compute with.",
    }
)


class LazyGroup(click.Group):
    """A group whose commands are the modules of this package, and the seam for their errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the module of a command."""
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"covidseg.cli.{cmd_name}"), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"covidseg.cli.{cmd_name}.{cmd_name} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command where one was misspelt: click knows none before it is loaded."""
        nearest = [] if args[0] in _COMMANDS else get_close_matches(args[0], _COMMANDS, 1)
        if nearest and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {nearest[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; its errors leave as one line and an exit code."""
        with error_seam():
            result: object = super().invoke(ctx)
        return result


@click.group(
    cls=LazyGroup,
    epilog=EXIT_CODES_HELP,
    context_settings={
        "auto_envvar_prefix": "COVIDSEG",
        "help_option_names": ["-h", "--help"],
    },
)
@click.version_option(__version__, prog_name="covidseg")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Defaults for options (TOML, one table a command). "
    "[default: ./covidseg.toml, otherwise ~/.config/covidseg/config.toml]",
)
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Infected lung on chest CT. Research use only; not a medical device."""
    ctx.default_map = read_config_file(config, tuple(_COMMANDS))
