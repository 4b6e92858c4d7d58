"""The lowest versions that setup.py's install_requires allows, as pip's constraints, one a line.

    python tools/lowest.py > constraints.txt

A bound `>=2.7` becomes `==2.7`, so pip says so where there is no such release. Standard library alone: it runs before anything
is installed.
"""

import ast
import re
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.py"
BOUND = re.compile(r"([\w-]+)>=([\w.]+)")


def lowest(setup: str) -> list[str]:
    """`name==lower` of every requirement of the text of a setup.py.

    Raises:
        ValueError: a requirement that is not a name and a lower bound.
    """
    keywords = [
        keyword for node in ast.walk(ast.parse(setup)) if isinstance(node, ast.Call) for keyword in node.keywords
    ]
    (requires,) = (ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg == "install_requires")
    return [_lowest(requirement) for requirement in requires]


def _lowest(requirement: str) -> str:
    bound = BOUND.fullmatch(requirement)
    if bound is None:
        raise ValueError(f"install_requires must be names with a lower bound, got {requirement!r}")
    return "{}=={}".format(*bound.groups())


if __name__ == "__main__":
    try:
        print(*lowest(SETUP.read_text(encoding="utf-8")), sep="\n")
    except ValueError as error:
        sys.exit(f"{SETUP}: {error}")
