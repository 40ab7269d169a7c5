"""The base template of all reports and the macros that they share.

Templates are Python modules, because a Flower app cannot contain other template files.
"""

# ruff: noqa: E501 -- a web page

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined, Template
from markupsafe import Markup

from fed_distill.reporting import wording

STYLE = """
:root {
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d2127; --soft: #5b636e; --line: #e4e1db; --wash: #f1f5fc;
  --c0: #1f5fbf; --c1: #b8520a; --c2: #0c7866; --c3: #9c2f78; --c4: #6d6200; --c5: #5b45ad; --neutral: #747d89;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f25; --ink: #e8e6e1; --soft: #a2a9b3; --line: #30353d; --wash: #1c2738;
    --c0: #82b1ff; --c1: #ffa765; --c2: #5ad0b9; --c3: #f192cc; --c4: #d8c858; --c5: #b9a8ff; --neutral: #949da9;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1180px; margin: 0 auto; padding: 56px 28px 96px; }
header p { max-width: 46rem; }
.eyebrow { margin: 0; color: var(--soft); font-size: .875rem; letter-spacing: .02em; }
h1 { margin: .1em 0 .5em; font-size: clamp(1.7rem, 4.5vw, 2.5rem); line-height: 1.15; letter-spacing: -.022em; font-weight: 650; text-wrap: balance; }
h2 { margin: 0 0 .5em; font-size: 1.3rem; line-height: 1.3; letter-spacing: -.012em; font-weight: 640; }
h3 { margin: 1.6em 0 .4em; font-size: 1rem; font-weight: 640; }
section { margin-top: 64px; }
section > p { max-width: 46rem; }
p { margin: 0 0 1em; }
.verdict { text-wrap: pretty; font-size: clamp(1.1rem, 2.4vw, 1.3rem); line-height: 1.5; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(196px, 1fr)); gap: 1px; margin: 36px 0 0; padding: 0;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.tiles div { box-shadow: 0 0 0 1px var(--line); padding: 16px 18px 14px; }
.tiles dt { color: var(--soft); font-size: .82rem; }
.tiles dd { margin: 0; }
.tiles small { display: inline; }
.tiles .big { white-space: nowrap; font-size: 1.5rem; line-height: 1.35; letter-spacing: -.02em; font-weight: 600; }
.tiles .sub { color: var(--soft); font-size: .82rem; }
.scroll, .chart { overflow-x: auto; -webkit-overflow-scrolling: touch; }
.scroll { border: 1px solid var(--line); border-radius: 12px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.35; }
th, td { padding: 9px 11px; text-align: right; white-space: nowrap; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 500; vertical-align: bottom; font-size: .8rem; line-height: 1.25; }
th:first-child { text-align: left; padding-left: 18px; position: sticky; left: 0; background: var(--card); }
td:last-child, thead th:last-child { padding-right: 18px; }
tbody th { font-weight: 560; }
td.text { text-align: left; white-space: normal; }
small { display: block; color: var(--soft); font-size: .76rem; font-weight: 400; }
tr.main th, tr.main td { background: var(--wash); }
tr.main th { box-shadow: inset 3px 0 var(--c0); }
tr.main td.head { font-weight: 650; }
td.head { font-weight: 560; }
figure { margin: 18px 0 0; padding: 20px 22px 16px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
figcaption { margin-top: 10px; max-width: 46rem; }
svg { display: block; width: 100%; min-width: 640px; max-width: 1000px; height: auto; margin: 0 auto; overflow: visible;
  font-size: 13px; }
svg text { font-family: inherit; }
.wide svg, .narrow svg { min-width: 0; } .narrow { display: none; }
ul.notes { margin: .6em 0 0; padding-left: 1.2em; }
ul.notes li { margin: .2em 0; }
pre { margin: 0; padding: 14px 18px; overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  font: .86rem/1.55 ui-monospace, "SF Mono", "Cascadia Code", "DejaVu Sans Mono", monospace; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; } details pre { margin-top: 10px; }
dl { margin: 0; }
.account { font-size: .9rem; }
.account div { display: flex; justify-content: space-between; gap: 16px; padding: 5px 0; border-bottom: 1px solid var(--line); }
.account dt { color: var(--soft); } .account dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.account .nested { display: block; border-bottom: 0; padding-top: 12px; }
.account .nested > dt { color: var(--ink); font-weight: 600; } .account .nested > dd { text-align: left; }
.data > .account { columns: 2 340px; column-gap: 56px; }
.data > .account > div { break-inside: avoid; }
.words { columns: 2 320px; column-gap: 48px; font-size: .92rem; }
.words div { break-inside: avoid; margin-bottom: 14px; }
.words dt { font-weight: 600; } .words dd { margin: 0; color: var(--soft); line-height: 1.5; }
.answers { padding-left: 1.2em; max-width: 52rem; } .answers li { margin: .5em 0; }
.warning { padding: 14px 18px; border: 1px solid var(--c1); border-left-width: 4px; border-radius: 10px; background: var(--card); max-width: 52rem; }
.promise { margin-top: 28px; padding: 20px 22px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.promise h3 { margin-top: 0; } .promise table { width: auto; } .promise p, .promise ul { max-width: 52rem; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 6px 24px; margin: 14px 0; font-size: .92rem; max-width: 58rem; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; }
tr.control th, tr.control td { color: var(--soft); }
td.label { text-align: left; }
a { color: var(--c0); }
nav { display: flex; flex-wrap: wrap; gap: 6px 20px; margin-top: 28px; font-size: .9rem; } nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
footer { margin-top: 72px; padding-top: 18px; border-top: 1px solid var(--line); color: var(--soft); font-size: .84rem; }
@media (max-width: 640px) {
  main { padding: 32px 16px 64px; } section { margin-top: 48px; } figure { padding: 14px 14px 12px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } .tiles div { padding: 12px 14px; } .tiles .big { font-size: 1.3rem; }
  .facts { grid-template-columns: 1fr; gap: 2px; } .facts dd { margin-bottom: 8px; }
  .wide { display: none; } .narrow { display: block; }
  th:first-child { padding-left: 14px; white-space: normal; min-width: 8.2rem; }
}
@media print { body { background: #fff; } figure, .scroll, section > pre { break-inside: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{% block title %}{% endblock %}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">fed-distill · {{ kind }} <strong>{{ name }}</strong></p>
  {% block header %}{% endblock %}
</header>
<!-- contents -->

{% block findings %}{% endblock %}

<section id="repeat">
  <h2>Do it again</h2>
  <p>{% block again %}{% endblock %}</p>
  <pre tabindex="0">{{ command }}</pre>
  {% block files %}{% endblock %}
  <details><summary>The {{ source }}, every default included</summary><pre tabindex="0">{{ toml }}</pre></details>
</section>

<section id="words">
  <h2>Words used here</h2>
  <dl class="words">
  {% for word, meaning in glossary.items() %}<div><dt>{{ word }}</dt><dd>{{ meaning }}</dd></div>
  {% endfor %}
  </dl>
</section>

<footer>{% block footer %}{% endblock %}</footer>
</main>
</body>
</html>
"""

SECTIONS = re.compile(r'<section id="([a-z-]+)">\s*<h2>([^<]+)</h2>')
"""Id and title of each section of a page."""

PARTS = """{% macro figure(chart, caption) -%}
<figure><div class="chart">{{ chart }}</div><figcaption>{{ caption }}</figcaption></figure>
{%- endmacro %}
"""


def render_page(template: str, source: str, glossary: Mapping[str, str], **values: Any) -> str:
    """Render ``template``, which extends ``page`` and may import from ``parts``.

    :param template: source of the template
    :param source: name of the configuration file in the page
    :param glossary: meanings by word
    :param values: ``kind``, ``name``, ``command`` and ``toml`` of the page, and values for the template
    """
    page = _compiled(template).render(style=Markup(STYLE), source=source, glossary=glossary, **values)
    links = "".join(f'<a href="#{place}">{title}</a>' for place, title in SECTIONS.findall(page))
    return page.replace("<!-- contents -->", f'<nav aria-label="Contents">{links}</nav>', 1)


@cache
def _compiled(template: str) -> Template:
    """Compile a template, once per process."""
    loader = DictLoader({"page": PAGE, "parts": PARTS, "report": template})
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": wording.number,
        "signed": wording.signed,
        "plus_minus": wording.plus_minus,
        "percent": wording.percent,
        "size": wording.size,
        "duration": wording.duration,
        "count": wording.count,
        "words": lambda name: str(name).replace("_", " "),
    }
    return environment.get_template("report")
