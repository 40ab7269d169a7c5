"""Links of the README and the documentation lead to files and headings that exist. Nothing here asks the network."""

import posixpath
import re
from pathlib import Path

from markdown.extensions.toc import slugify

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(```+)[^\n]*\n.*?^\1\s*$", re.M | re.S)
LINK = re.compile(r"\]\((?P<target>[^)\s#]*)(?:#(?P<anchor>[^)\s]*))?\)")
HEADING = re.compile(r"^#{1,6} +(?P<text>.*?)(?: *\{ *#(?P<id>[^ }]+) *\})? *$", re.M)
NAMED = re.compile(r'id="([^"]+)"')


def anchors(text: str) -> set[str]:
    """Anchors of a page: those that it names, and its headings by the rule that GitHub and Python-Markdown share."""
    text = FENCE.sub("", text)
    found = {*NAMED.findall(text)}
    for heading in HEADING.finditer(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"])
        found.add(heading["id"] or slugify(plain, "-"))
    return found


def broken(pages: dict[str, str]) -> list[str]:
    """Links without a target, as ``page: link``."""
    problems = []
    for page, text in pages.items():
        for link in LINK.finditer(FENCE.sub("", text)):
            if ":" in link["target"]:  # another site
                continue
            place = posixpath.normpath(
                posixpath.join(posixpath.dirname(page), link["target"] or posixpath.basename(page))
            )
            if place not in pages and not (ROOT / place).exists():
                problems.append(f"{page}: {link['target']} does not exist")
            elif link["anchor"] and link["anchor"] not in anchors(pages.get(place, "")):
                problems.append(f"{page}: {link['target']} has no #{link['anchor']}")
    return problems


def test_links_lead_to_files_and_headings(pages):
    assert broken(pages) == []


def test_a_broken_link_is_found():
    pages = {
        "docs/a.md": "[gone](b.md) [file](c.md#here) [heading](c.md#there) [own](#a-title)\n\n# A title",
        "docs/c.md": "## Here\n\n```sh\n# There\n```",
    }
    assert broken(pages) == ["docs/a.md: b.md does not exist", "docs/a.md: c.md has no #there"]
