"""The report's page as a Jinja template. A Python module, because a Flower app ships no other kind of template file."""

REPORT_PAGE = """{% macro value(row, name, filter="number") -%}
{{ row.values[name] | percent(1) if filter == "percent" else row.values[name] | number }}
{%- endmacro %}
{% macro half(row, name) -%}
{% set width = row.half.get(name) %}
{% if width is not none and width is defined %}<small>{{ width | plus_minus }}</small>{% endif %}
{%- endmacro %}
{% macro tile(name, big, sub, half) -%}
<div><dt>{{ name }}</dt><dd class="big">{{ big }}{% if half %} <small>{{ half }}</small>{% endif %}</dd><dd class="sub">{{ sub }}</dd></div>
{%- endmacro %}
{% macro stages(title, adaptation) -%}
<ul class="notes soft">
{% for seed, notes in adaptation.notes.items() %}{% for note in notes %}<li>{{ title }}, seed {{ seed }}: {{ note }}</li>
{% endfor %}{% endfor %}
</ul>
{%- endmacro %}
{% macro figure(chart, caption) -%}
<figure><div class="chart">{{ chart }}</div><figcaption>{{ caption }}</figcaption></figure>
{%- endmacro %}
{% macro account(table) -%}
<dl class="account">
{% for key, item in table.items() %}
{% if item is mapping %}
  <div class="nested"><dt>{{ key | words }}</dt><dd>{{ account(item) if item else "none" }}</dd></div>
{% elif item is string %}
  <div><dt>{{ key | words }}</dt><dd>{{ item | urlize(target=None, rel="noopener") }}</dd></div>
{% elif item is sequence %}
  <div><dt>{{ key | words }}</dt><dd>{{ item[:12] | join(", ") or "none" }}{% if item | length > 12 %} and {{ item | length - 12 }} more{% endif %}</dd></div>
{% elif item is none %}
  <div><dt>{{ key | words }}</dt><dd>–</dd></div>
{% elif item is boolean %}
  <div><dt>{{ key | words }}</dt><dd>{{ "yes" if item else "no" }}</dd></div>
{% elif item is integer %}
  <div><dt>{{ key | words }}</dt><dd class="n">{{ item | count }}</dd></div>
{% else %}
  <div><dt>{{ key | words }}</dt><dd class="n">{{ "%.4g" | format(item) }}</dd></div>
{% endif %}
{% endfor %}
</dl>
{%- endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ summary.name }} · fed-distill report</title>
<style>
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
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 1px; margin: 36px 0 0; padding: 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.tiles div { background: var(--card); padding: 16px 18px 14px; }
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
svg text { fill: var(--ink); }
svg .tick { fill: var(--soft); font-size: 12px; }
svg .axis { fill: var(--soft); font-size: 12px; }
svg .strong { font-weight: 650; }
svg .grid, svg .base { stroke: var(--line); stroke-width: 1; }
svg .level { stroke: var(--neutral); stroke-width: 1.3; stroke-dasharray: 2 4; stroke-linecap: round; }
svg .whisker { stroke: currentColor; stroke-width: 2; stroke-linecap: round; }
svg .dot { fill: currentColor; stroke: var(--card); stroke-width: 1; }
svg .line { fill: none; stroke: currentColor; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
svg .band { fill: currentColor; opacity: .13; }
svg .mean { stroke: currentColor; stroke-width: 2; }
svg .label { fill: currentColor; font-weight: 560; }
svg .color0 { color: var(--c0); } svg .color1 { color: var(--c1); } svg .color2 { color: var(--c2); }
svg .color3 { color: var(--c3); } svg .color4 { color: var(--c4); } svg .color5 { color: var(--c5); }
svg .neutral { color: var(--neutral); }
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
a { color: var(--c0); }
footer { margin-top: 72px; padding-top: 18px; border-top: 1px solid var(--line); color: var(--soft); font-size: .84rem; }
@media (max-width: 640px) {
  main { padding: 32px 16px 64px; } section { margin-top: 48px; } figure { padding: 14px 14px 12px; }
  .tiles { grid-template-columns: 1fr 1fr; } .tiles div { padding: 12px 14px; } .tiles .big { font-size: 1.3rem; }
  th:first-child { padding-left: 14px; white-space: normal; min-width: 8.2rem; }
}
@media print { body { background: #fff; } figure, .scroll, section > pre { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">fed-distill · run <strong>{{ summary.name }}</strong></p>
  <h1>{{ summary.task | capitalize }} on {{ summary.dataset }}, learned across {{ summary.merchants | count }} merchants</h1>
  <p class="verdict">{{ verdict }}</p>
  {% if poisoning %}<p>{{ poisoning }}</p>{% endif %}
  <dl class="tiles">
    {{ tile("Student's " ~ metric, main[summary.headline] | number, "teacher " ~ (summary.teacher[summary.headline] | number), main.interval[summary.headline] | plus_minus) }}
    {{ tile("Quality kept", summary.retention | percent(1), "of the teacher's", "") }}
    {{ tile("Gap closed", summary.gap_closed | percent, "in AUC " ~ (main.gap_closed_auc | percent), "± " ~ (main.interval.gap_closed | percent) if main.interval.gap_closed is not none else "") }}
    {% if summary.speed %}
    {{ tile("Faster by", (summary.speed.ratio | count) ~ "×", (summary.speed.student_seconds_per_pair | duration) ~ ", not " ~ (summary.speed.teacher_seconds_per_pair | duration), "") }}
    {% endif %}
    {{ tile("Sent in a round", summary.bytes.uplink_per_merchant_round | size, (summary.bytes.downlink_per_merchant_round | size) ~ " received", "") }}
    {{ tile("Weights", summary.student.parameters | count, "teacher " ~ (summary.teacher.parameters | count), "") }}
  </dl>
</header>

<section id="comparison">
  <h2>What each way of training gives</h2>
  <p>Every student below has the same size and is measured on the same test set, whose products or queries none of them has seen.
  {% if summary.seeds | length > 1 %}Numbers are means over {{ summary.seeds | length }} seeds, ± is the half-width of their 95 % interval.{% else %}One seed: how much of a difference is luck cannot be told from this run.{% endif %}</p>
  {% if overview %}{{ figure(overview, "Higher is better. The scale does not begin at zero, so read differences, not lengths.") }}{% endif %}
  <h3>All numbers</h3>
  <div class="scroll" tabindex="0" role="region" aria-label="Comparison table">
  <table>
    <thead><tr><th scope="col">Model</th>
      {% for name in metrics %}<th scope="col">{{ metric_names[name] }}</th>{% endfor %}
      <th scope="col">Mean<br>merchant{{ " *" if unprotected }}</th><th scope="col">Worst<br>merchant{{ " *" if unprotected }}</th><th scope="col">Retention</th><th scope="col">Gap<br>closed</th>
      <th scope="col">Bytes<br>a round</th><th scope="col">Time</th></tr></thead>
    <tbody>
    {% for row in rows %}
    <tr class="{{ row.kind }}"><th scope="row">{{ row.name }}<small>{{ row.note }}</small></th>
      {% for name in metrics %}<td{% if loop.first %} class="head"{% endif %}>{{ value(row, name) }}{{ half(row, name) }}</td>{% endfor %}
      {% if row.kind == "teacher" %}
      <td>–</td><td>–</td><td>–</td><td>–</td><td>–</td><td>–</td>
      {% else %}
      <td>{{ row.values.merchant_accuracy | number(3) }}</td>
      <td>{% if row.values.worst_merchant %}{{ row.values.worst_merchant.accuracy | number(3) }}<small>{{ row.values.worst_merchant.merchant | truncate(18) }}</small>{% else %}–{% endif %}</td>
      <td>{{ value(row, "retention", "percent") }}</td>
      <td>{{ row.values.gap_closed | percent }}{% if row.half.get("gap_closed") is not none %}<small>± {{ row.half.gap_closed | percent }}</small>{% endif %}</td>
      {% if row.federated %}
      <td>↑ {{ row.values.bytes.uplink_per_merchant_round | size }}<small>↓ {{ row.values.bytes.downlink_per_merchant_round | size }}</small>{% if row.values.get("coding") %}<small>↑ {{ row.values.coding.uplink_ratio | number(1) }}× fewer than {{ row.values.coding.uncoded }}</small>{% endif %}</td>
      {% else %}<td>–</td>{% endif %}
      <td>{{ row.values.seconds | duration }}</td>
      {% endif %}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  {% if unprotected %}<p class="soft">* {{ unprotected }}</p>{% endif %}
  {% for row in rows if row.kind not in ("teacher",) and row.values.notes %}
  {% if loop.first %}<ul class="notes soft">{% endif %}
  {% for name, note in row.values.notes.items() %}<li>{{ row.name }}: {% if name == "merchant_accuracy" %}not measured at merchants whose sites did not tell, {{ note }}{% else %}gap closed{{ " in AUC" if name == "gap_closed_auc" }} is not defined on {{ note }}{% endif %}.</li>{% endfor %}
  {% if loop.last %}</ul>{% endif %}
  {% endfor %}
</section>

{% for level, row in (summary.levels or {}).items() %}
{% if loop.first %}
<section id="levels">
  <h2>From the teacher down to the student</h2>
  <p>Each assistant learned from the level above it, the student from the teacher and the last assistant; below are the same student in one step from the teacher, and without a teacher. All are the server's own, before any merchant has trained.</p>
  <div class="scroll" tabindex="0" role="region" aria-label="Levels of the chain">
  <table>
    <thead><tr><th scope="col">Level</th><th scope="col">Weights</th>{% for name in metrics %}<th scope="col">{{ metric_names[name] }}</th>{% endfor %}<th scope="col">Retention</th></tr></thead>
    <tbody>
    <tr><th scope="row">teacher</th><td>{{ summary.teacher.parameters | count }}</td>{% for name in metrics %}<td>{{ summary.teacher[name] | number }}</td>{% endfor %}<td>{{ 1 | percent(1) }}</td></tr>
{% endif %}
    <tr class="{{ "main" if level == "student" }}"><th scope="row">{{ level }}</th><td>{{ row.parameters | count }}</td>{% for name in metrics %}<td>{{ row[name] | number }}<small>{{ row.interval[name] | plus_minus }}</small></td>{% endfor %}<td>{{ row.retention | percent(1) }}</td></tr>
{% if loop.last %}
    </tbody>
  </table>
  </div>
</section>
{% endif %}
{% endfor %}

{% if curves %}
<section id="learning">
  <h2>How it learned</h2>
  {{ figure(curves, "Measured after every round on validation products, which are neither trained on nor tested on. Dashed: students trained without federation, on the same validation products. Bands are 95 % intervals over the seeds.") }}
</section>
{% endif %}

{% if spread %}
<section id="merchants">
  <h2>Who gains: the spread over merchants</h2>
  <p>A mean can hide a merchant that is served badly. Each dot is a merchant, the bar is the mean, and the least well served is named. {{ winners }}</p>
  {{ figure(spread, ("Not protected *. " if unprotected else "") ~ "Accuracy on each merchant's own test examples, averaged over the seeds. A merchant with few test examples moves far by chance; the worst merchant in the table above is looked for among those with at least 20.") }}
</section>
{% endif %}

{% if traffic %}
<section id="bytes">
  <h2>What it costs to send</h2>
  {{ figure(traffic, "Bytes of the serialized messages of all rounds, up and down, for one merchant. Upper left is best: quality for few bytes.") }}
</section>
{% endif %}

{% for title, row in summary.get("answers", {}).items() %}
{% if loop.first %}
<section id="answers">
  <h2>Who took part</h2>
  <p>Merchants, counted once in each round. Late ones did not answer by the deadline, absent ones had no site there, and resting ones were outside of their site's hours; refused are all others that were left out: for what they sent, for a failure, or by their own limits. A round that too few took part in was asked again.</p>
  <div class="scroll" tabindex="0" role="region" aria-label="Who took part">
  <table>
    <thead><tr><th scope="col">Federation</th><th scope="col">Rounds</th><th scope="col">Asked</th><th scope="col">Merged</th><th scope="col">Refused</th><th scope="col">Late</th><th scope="col">Absent</th><th scope="col">Resting</th><th scope="col">Rounds<br>asked again</th></tr></thead>
    <tbody>
{% endif %}
    <tr class="{{ "main" if title == summary.federation }}"><th scope="row">{{ title }}</th><td>{{ row.rounds | count }}</td><td>{{ row.asked | count }}</td><td>{{ row.merged | count }}</td><td>{{ row.refused | count }}</td><td>{{ row.late | count }}</td><td>{{ row.absent | count }}</td><td>{{ row.resting | count }}</td><td>{{ row.retried | count }}</td></tr>
{% if loop.last %}
    </tbody>
  </table>
  </div>
  {% for title, row in summary.answers.items() if row.reasons %}
  <details><summary>Why, in {{ title }}</summary><ul class="notes soft">
  {% for reason, times in row.reasons %}<li>{{ reason }}{% if times > 1 %} ({{ times | count }} times){% endif %}</li>
  {% endfor %}</ul></details>
  {% endfor %}
</section>
{% endif %}
{% endfor %}

{% for title, row in summary.federations.items() if row.adaptation %}
{% if loop.first %}
<section id="adaptation">
  <h2>Domain adaptation after the last round</h2>
  <p>The merged student is fine-tuned on the server's own examples, taught by the teacher again and fine-tuned once more. A stage that made it worse on validation was undone, and is said below.</p>
  <div class="scroll" tabindex="0" role="region" aria-label="Before and after adaptation">
  <table>
    <thead><tr><th scope="col">Federation</th>{% for name in metrics %}<th scope="col">{{ metric_names[name] }}<br>before → after</th>{% endfor %}<th scope="col">At each merchant{{ " *" if unprotected }}: mean, worst<br>before → after</th></tr></thead>
    <tbody>
{% endif %}
    <tr class="{{ "main" if title == summary.federation }}"><th scope="row">{{ title }}</th>
      {% for name in metrics %}<td>{% if row.adaptation.before %}{{ row.adaptation.before[name] | number }} → {{ row.adaptation.after[name] | number }}{% else %}–{% endif %}</td>{% endfor %}
      <td>{% if row.adaptation.personal %}{% set personal = row.adaptation.personal %}{{ personal.before.mean | number(3) }} → {{ personal.after.mean | number(3) }}<small>worst {{ personal.before.worst_merchant.accuracy | number(3) }} → {{ personal.after.worst_merchant.accuracy | number(3) }}</small>{% else %}not asked for{% endif %}</td></tr>
{% if loop.last %}
    </tbody>
  </table>
  </div>
  {{ stages(summary.federation, main.adaptation) if main.adaptation }}
  {% if summary.federations | length > 1 %}
  <details><summary>The stages of the other federations</summary>
  {% for title, row in summary.federations.items() if row.adaptation and title != summary.federation %}{{ stages(title, row.adaptation) }}{% endfor %}
  </details>
  {% endif %}
</section>
{% endif %}
{% endfor %}

<section id="privacy">
  <h2>Privacy</h2>
  <p>{{ privacy }}</p>
  {% if unprotected %}
  {% for sentence in promises %}<p>{{ sentence }}</p>
  {% endfor %}
  <p>What is marked * in the comparison is not protected. {{ unprotected }}</p>
  <div class="scroll" tabindex="0" role="region" aria-label="What leaves a merchant">
  <table>
    <thead><tr><th scope="col">What leaves a merchant</th><th scope="col">How it is protected</th></tr></thead>
    <tbody>{% for part in summary.privacy.reveals %}<tr><th scope="row">{{ part.what }}</th><td class="text">{{ part.how }}</td></tr>{% endfor %}</tbody>
  </table>
  </div>
  {% endif %}
  {% set audit = summary.privacy.audit %}
  {% if audit.auc is not none %}
  <h3>What attacks found</h3>
  <p>The federation was trained again without half of each merchant's examples, and attackers were asked which half. An AUC of 0.5 is
  guessing, 1 is certainty; {{ audit.strongest | words }} came farthest. At 1 % false alarms no attack found more than
  {{ audit.tpr_at_1pct | percent(1) }} of the members. {{ audit_bound }}</p>
  <div class="scroll" tabindex="0" role="region" aria-label="Attacks">
  <table>
    <thead><tr><th scope="col">Attack</th><th scope="col">AUC</th><th scope="col">What the attacker sees and does</th></tr></thead>
    <tbody>{% for name, auc in audit.attacks.items() %}<tr><th scope="row">{{ name | words }}</th><td>{{ auc | number(3) }}</td><td class="text">{{ audit.threat_models[name] }}</td></tr>{% endfor %}</tbody>
  </table>
  </div>
  {% endif %}
</section>

{% if summary.data %}
<section id="data">
  <h2>The data</h2>
  <p>{% if unprotected %}The server's own tables: sizes and classes of merchants' tables are left out, since this run is private.{% else %}What was read, what was left out and why, and how the rest was split.{% endif %} No product or query of the test set occurs in training.</p>
  <div class="data">{{ account(summary.data) }}</div>
</section>
{% endif %}

<section id="repeat">
  <h2>Do it again</h2>
  <p>The run's folder holds the complete experiment. This repeats it under another name:</p>
  <pre>{{ command }}</pre>
  <details><summary>The experiment, every default included</summary><pre>{{ experiment }}</pre></details>
</section>

<section id="words">
  <h2>Words used here</h2>
  <dl class="words">
  {% for word, meaning in glossary.items() %}<div><dt>{{ word }}</dt><dd>{{ meaning }}</dd></div>
  {% endfor %}
  </dl>
</section>

<footer>{{ summary.rounds }} rounds · {{ summary.seeds | length }} seed{{ "s" if summary.seeds | length > 1 }} ({{ summary.seeds | join(", ") }}) · {{ summary.seconds | duration }} in all · positive class “{{ summary.positive }}”
{% for name, version in summary.versions.items() %} · {{ name }} {{ version }}{% endfor %}</footer>
</main>
</body>
</html>
"""
