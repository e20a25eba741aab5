"""Pages of documentation as tests see them: their blocks of code, the commands in these, their headings and links."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "docs" / "reference" / "configuration.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docker/README.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path != GENERATED),
]
NOT_RUN = re.compile(r"<!-- not run: \S.*-->")


@dataclass(frozen=True)
class Block:
    """A block of code. ``file``: the path that the sentence above it names, as in "`conf/pruner/random.yaml`:"; "" if it names none."""

    line: int
    language: str
    code: str
    file: str
    excused: bool


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    """All blocks of a page but the directives of the site."""
    found, above = [], ""
    for token in tokens(page):
        if token.type in ("inline", "html_block"):
            above = token.content
        elif token.type in ("fence", "code_block") and not token.info.startswith("{"):
            assert token.map is not None
            named = re.search(r"`([\w./-]+\.(?:py|yaml))`:$", above)
            found.append(Block(token.map[0] + 1, token.info, token.content, named[1] if named else "", bool(NOT_RUN.search(above))))
            above = ""
    return found


def commands(code: str) -> list[list[str]]:
    """The words of each command of a shell block, as a shell would split them."""
    lines = [line for line in re.sub(r"\\\n", " ", code).splitlines() if line.strip()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def anchors(page: Path) -> set[str]:
    """What links may name after ``#``: GitHub's slugs of the headings."""
    found: set[str] = set()
    for token, inline in pairwise(tokens(page)):
        if token.type == "heading_open":
            text = "".join(child.content for child in inline.children or [])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(slug if slug not in found else f"{slug}-1")
    return found


def links(page: Path) -> list[str]:
    """Targets of links and pictures that stay inside the project."""
    inside = [child for token in tokens(page) for child in token.children or []]
    targets = [str(child.attrs.get("href") or child.attrs.get("src")) for child in inside if child.type in ("link_open", "image")]
    return [target for target in targets if "://" not in target and not target.startswith("mailto:")]


def paths(page: Path) -> set[str]:
    """Files and folders of the project that a page names in its text, as in "`workers/worker.py`"."""
    inside = [child.content for token in tokens(page) for child in token.children or [] if child.type == "code_inline"]
    top = "|".join(("conf", "docker", "docs", "kernels", "orchestrator", "scripts", "tests", "workers"))
    return {name for name in inside if re.fullmatch(rf"(?:{top})/[\w./*-]*", name)}
