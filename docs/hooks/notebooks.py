"""Pages of the notebooks: their cells as Markdown, in order. Outputs are not in the repository, and so not shown."""

import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
_OTHER = re.compile(r"\]\((?P<name>[a-z-]+)\.ipynb\)")
_WRITES = re.compile(r"%%writefile (?P<name>\S+\.(?P<language>\w+))\n")


def pages() -> dict[str, str]:
    """Return the page of each notebook, by path below ``docs/``."""
    return {f"notebooks/{path.stem}.md": page(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}


def page(path: Path) -> str:
    """Return a notebook's page: its title, where to get it, and its cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    title, *rest = (_shown(cell["cell_type"], "".join(cell["source"])) for cell in cells)
    heading, _, introduction = title.partition("\n\n")
    origin = f"*This page is a notebook without its outputs: [download it]({path.name}) and run it in Jupyter.*"
    return "\n\n".join([heading, introduction.strip(), origin, *rest]) + "\n"


def _shown(kind: str, source: str) -> str:
    """Return a cell as Markdown: commands and files that a code cell writes have their own language."""
    if kind == "markdown":
        return _OTHER.sub(r"](\g<name>.md)", source)
    if source.startswith("!"):
        return f"```sh\n{source[1:]}\n```"
    if written := _WRITES.match(source):
        return f'```{written["language"]} title="{written["name"]}"\n{source[written.end() :]}\n```'
    return f"```python\n{source}\n```"
