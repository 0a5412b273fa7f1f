"""What the documentation says, held against what there is: messages, options, metrics, pages."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from crackvae import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def texts():
    """Of crackvae's code: constants, and patterns of the texts that it fills in; docstrings are neither."""
    constants, patterns = set(), []
    for path in (ROOT / "crackvae").rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in docstrings:
                constants.add(str(node.value).replace("`", ""))
            elif isinstance(node, ast.JoinedStr):
                fixed = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                if len("".join(filter(None, fixed))) > 8:
                    parts = ["(.*)" if text is None else re.escape(text.replace("`", "")) for text in fixed]
                    patterns.append(re.compile("".join(parts)))
    return constants, patterns


def is_printed(message, constants, patterns):
    """Whether it is a text of crackvae, filled in with dots or with other texts of crackvae."""
    message = message.removeprefix("...: ").removeprefix("...; ")
    if not message.strip(".") or {message, message.removesuffix("..."), f"...{message}"} & constants:
        return True
    found = (pattern.fullmatch(text) for pattern in patterns for text in (message, f"...: {message}"))
    return any(all(is_printed(group, constants, patterns) for group in match.groups()) for match in found if match)


def test_every_message_of_the_troubleshooting_is_one_that_crackvae_prints():
    told = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(), re.M)
    assert len(told) > 20
    constants, patterns = texts()
    assert [message for message in told if not is_printed(message, constants, patterns)] == []


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_every_command_in_a_page_is_one(path):
    """The options, too; names in capitals and dots are the reader's."""
    blocks = re.findall(r"^```\n(.*?)^```", path.read_text(), re.M | re.S)
    lines = [line.split("#")[0].split("&&")[-1] for block in blocks for line in block.splitlines()]
    for line in lines:
        if line.startswith("crackvae ") and "[" not in line and "..." not in line:
            arguments = line.split(">")[0].split()[1:]
            if arguments == ["--version"]:
                continue
            cli._parser().parse_args(arguments)


def test_every_metric_in_the_pages_is_recorded():
    source = (ROOT / "crackvae" / "cluster" / "metrics.py").read_text()
    recorded = set(re.findall(r'(?:Counter|Gauge)(?:, |\()"(?:crackvae_)?(\w+)"', source))
    told = set(re.findall(r"ray_crackvae_(\w+?)(?:_total)?\b", (DOCS / "howto" / "watching.md").read_text()))
    assert told == recorded


def test_every_page_is_in_the_navigation():
    def pages(item):
        if isinstance(item, str):
            yield item
        else:
            for inner in item.values() if isinstance(item, dict) else item:
                yield from pages(inner)

    navigation = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert navigation == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
