"""Draw README, documentation and a report in a browser, wide and narrow, and look for what hinders some readers.

    python -m docs.hooks.pictures runs/quickstart --to pictures

A Chromium draws each page at 1280 and at 390 pixels, light and dark, and axe-core checks all but the README, whose
style is GitHub's. The exit code is 1 if axe finds something serious or critical, or if a page is wider than the screen.
Requires ``fed-distill[browser-test]``, the site that ``make docs`` builds, and a Chromium: ``FED_DISTILL_CHROMIUM``
names it, or ``playwright install chromium`` has installed it.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import markdown

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (1280, 390)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SERIOUS = ("serious", "critical")
README = "README"
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fed-distill</title>
<meta name="viewport" content="width=device-width"><style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 54rem; margin: auto; padding: 1rem; font: 16px/1.5 sans-serif; overflow-wrap: anywhere; }}
img {{ max-width: 100%; }} pre, table {{ display: block; overflow-x: auto; }} td, th {{ padding: .3em .7em; }}
</style></head><body><main>{body}</main></body></html>"""


def pages(site: Path, report: Path, readme: Path) -> dict[str, str]:
    """Return the address of each page by its name: README, report and every page of the site."""
    found = {path.relative_to(site).with_suffix("").as_posix(): path for path in sorted(site.glob("**/*.html"))}
    found.pop("404", None)  # its links are those of a server
    return {name: path.resolve().as_uri() for name, path in {README: readme, "report": report, **found}.items()}


def hindrances(page: Any) -> Iterator[str]:
    """Yield what axe finds that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    for found in Axe().run(page).response["violations"]:
        if found["impact"] in SERIOUS:
            nodes = found["nodes"]
            yield f"{found['id']} ({found['impact']}), {len(nodes)} times: {' '.join(nodes[0]['html'][:120].split())}"


def too_wide(page: Any, width: int) -> Iterator[str]:
    """Yield a message if the page is wider than the screen."""
    if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
        yield f"{wide} pixels wide on a screen of {width}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw all pages and print what is wrong with them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, whose report is drawn")
    parser.add_argument("--to", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="folder that make docs wrote")
    given = parser.parse_args(arguments)
    from playwright.sync_api import sync_playwright

    given.to.mkdir(parents=True, exist_ok=True)
    body = markdown.markdown((ROOT / "README.md").read_text(encoding="utf-8"), extensions=["tables", "fenced_code"])
    readme = given.to / "README.html"
    body = body.replace('src="docs/', f'src="{(ROOT / "docs").as_uri()}/')
    readme.write_text(_PAGE.format(body=body), encoding="utf-8")
    wrong = 0
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ.get("FED_DISTILL_CHROMIUM"), args=["--no-sandbox"])
        for name, address in pages(given.site, given.run / "report.html", readme).items():
            for width in WIDTHS:
                for scheme in SCHEMES:
                    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                    page.goto(address)
                    place = given.to / f"{name.replace('/', '-')}-{width}-{scheme}.png"
                    page.screenshot(path=place)
                    for problem in (*too_wide(page, width), *(() if name == README else hindrances(page))):
                        wrong += 1
                        sys.stdout.write(f"{name}, {width} pixels, {scheme}: {problem}\n")
                    page.close()
        browser.close()
    sys.stdout.write(f"{wrong} problems; pictures: {given.to}\n")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
