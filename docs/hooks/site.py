"""MkDocs hook: add the generated reference pages, the notebooks, and the repository's files that pages link to.

The reference is in the repository too, for those who read it there: ``python -m docs.hooks.site`` writes it again after
a change of the code, and a test compares it.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.hooks import commands, errors, keys, notebooks, parts, stored

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "source"
"""Folder of the site with files of the repository from outside of ``docs/``."""
CHANGELOG = "CHANGELOG.md"
_LINK = re.compile(r"(?<!\!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def generated() -> dict[str, str]:
    """Return the Markdown of the pages that are made from the code and the notebooks, by path below ``docs/``."""
    return {
        "reference/experiment.md": keys.experiment_page(),
        "reference/studies.md": keys.studies_page(),
        "reference/site.md": keys.site_page(),
        "reference/serve.md": keys.serve_page(),
        "reference/commands.md": commands.page(),
        "reference/parts.md": parts.page(),
        "reference/errors.md": errors.page(),
        "changelog.md": (ROOT / CHANGELOG).read_text(encoding="utf-8"),
        **notebooks.pages(),
    }


def outside(text: str, page: str) -> Iterator[tuple[re.Match[str], Path]]:
    """Yield the links of a page to existing paths of the repository outside of ``docs/``.

    :param page: path of the page below ``docs/``
    """
    folder = posixpath.join("docs", posixpath.dirname(page))
    for link in _LINK.finditer(text):
        place = posixpath.normpath(posixpath.join(folder, link["target"]))
        if "://" not in link["target"] and not place.startswith(("docs/", "..")) and (ROOT / place).exists():
            yield link, Path(place)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated pages, and files of the repository that pages link to."""
    for path, text in generated().items():
        if (written := files.get_file_from_path(path)) is not None:
            files.remove(written)
        files.append(File.generated(config, path, content=text))
    for page in files.documentation_pages():
        for _, place in outside(page.content_string, page.src_uri):
            uri = f"{SOURCE}/{place.as_posix()}"
            if (ROOT / place).is_file() and place.suffix != ".md" and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Check stored tables and say where they come from; link to the site's copies of the repository's files.

    A link to a folder, or to a page for readers of the repository, becomes its text.
    """
    uri = page.file.src_uri
    if uri not in stored.OTHERS:
        if differences := stored.problems(markdown):
            raise PluginError(
                f"{uri}: {differences[0]}: change the page, or store the table again (docs/hooks/stored.py)"
            )
        markdown = stored.captioned(markdown)
    for link, place in outside(markdown, uri):
        copy = "changelog.md" if place == Path(CHANGELOG) else f"{SOURCE}/{place.as_posix()}"
        if files.get_file_from_path(copy) is None:
            shown = f"{link['text']} (`{place.as_posix()}`)" if place.as_posix() not in link["text"] else link["text"]
        else:
            back = posixpath.relpath(copy, posixpath.dirname(uri) or ".")
            shown = f"[{link['text']}]({back}{link['anchor'] or ''})"
        markdown = markdown.replace(link[0], shown)
    return markdown


def write() -> None:
    """Write the generated pages of the reference into the repository."""
    for path, text in generated().items():
        if path.startswith("reference/"):
            (ROOT / "docs" / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
