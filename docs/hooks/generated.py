"""Fills what follows from the code into pages: a line `COMMANDS` by every --help, a line `DEFAULTS` by the config's."""

import argparse
import json
import os
from typing import Any

from crackvae import cli
from crackvae.config import Config

os.environ["COLUMNS"] = "110"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    for name, text in (("COMMANDS", _commands), ("DEFAULTS", _defaults)):
        if f"\n{name}\n" in markdown:
            markdown = markdown.replace(f"\n{name}\n", f"\n{text()}\n")
    return markdown


def _commands() -> str:
    parser = cli._parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {"crackvae": parser.format_help()}
    helps |= {f"crackvae {name}": sub.format_help() for name, sub in commands.choices.items()}
    return "\n\n".join(f"## {name}\n\n```text\n{text.strip()}\n```" for name, text in helps.items())


def _defaults() -> str:
    default, reference = (Config(recipe=name).model_dump(mode="json") for name in ("default", "reference"))
    lines = ["```toml", 'recipe = "default"']
    for section in [key for key in default if key != "recipe"]:
        lines.append(f"[{section}]")
        for key, value in default[section].items():
            other = reference[section][key]
            note = "" if other == value else f"  # reference: {json.dumps(other)}"
            lines.append(f"# {key}: none" if value is None else f"{key} = {json.dumps(value)}{note}")
    return "\n".join([*lines, "```"])
