"""The command line page, from the commands' own declarations."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import typer

INTRO = """\
# Command line

Made from the program itself, so it lists every command and option of version {version}.

Settings are written `key=value`, in Hydra's grammar: `fewstep train objective=scm seed=1`. Quote
what the shell would read itself: `"evaluation.metrics=[fd,kid]"`. `fewstep list objectives` (or
`backbones`, `data`, `sweeps`, `recipes`, `extractors`, `metrics`, `launchers`) shows the settings.
Bad input ends with one line and exit code 2; Ctrl-C with 130.
"""


@cache
def root() -> Any:
    """The program itself."""
    from fewstep.cli.app import app

    return typer.main.get_command(app)


def commands() -> dict[str, Any]:
    """Every command by its full name (``extractor train``), in the order of ``--help``."""

    def walk(group: Any, prefix: str) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for name, command in group.commands.items():
            if not command.hidden:
                named[prefix + name] = command
                named |= walk(command, f"{prefix}{name} ") if hasattr(command, "commands") else {}
        return named

    return walk(root(), "")


def page() -> str:
    """The page as Markdown."""
    from fewstep import __version__

    sections = [_section(name, command) for name, command in commands().items()]
    return "\n\n".join([INTRO.format(version=__version__), *sections])


def _section(name: str, command: Any) -> str:
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [_argument(p) for p in shown if p.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(arguments) < len(shown) else []
    usage = " ".join([f"fewstep {name}", *options, *arguments])
    parts = [f"## `fewstep {name}`", f"```text\n{usage}\n```", _prose(command.help or "")]
    if shown:
        rows = [f"| {_names(p)} | {_cell(p.help or '')}{_default(p)} |" for p in shown]
        parts.append("\n".join(["| | |", "| --- | --- |", *rows]))
    return "\n\n".join(filter(None, parts))


def _argument(option: Any) -> str:
    name = option.name.upper() + ("..." if option.nargs == -1 else "")
    return name if option.required else f"[{name}]"


def _names(option: Any) -> str:
    if option.param_type_name == "argument":
        return f"`{option.name.upper()}`"
    value = "" if option.is_flag else f" {_type(option)}"
    return ", ".join(f"`{name}{value}`" for name in option.opts)


def _type(option: Any) -> str:
    kind = str(option.display_type(root().context_class(root()))).strip("<>")
    return kind if "|" in kind else kind.upper()


def _default(option: Any) -> str:
    default = option.default
    if default in (None, False, [], ()) or option.param_type_name == "argument":
        return ""
    return f" Default: `{getattr(default, 'value', default)}`."


def _prose(text: str) -> str:
    """Rich's markup as Markdown; the example becomes a block of its own."""
    text = re.sub(r"\[bold\](.*?)\[/(?:bold)?\]", r"`\1`", text).replace("\\[", "[")
    return re.sub(r"^(Examples?):\s+`(.*?)`", r"\1:\n\n```sh\n\2\n```", text, flags=re.M)


def _cell(text: str) -> str:
    return _prose(" ".join(text.split())).replace("|", "\\|")
