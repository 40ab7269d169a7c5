"""The page of a run's report, a Jinja template over ``page``."""

REPORT_PAGE = """{% extends "page" %}
{% from "parts" import figure %}
{% macro value(row, name, filter="number") -%}
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
{% macro table(label) -%}
<div class="scroll" tabindex="0" role="region" aria-label="{{ label }}">
  <table>
{{ caller() }}
  </table>
  </div>
{%- endmacro %}
{% block title %}{{ summary.name }} · fed-distill report{% endblock %}
{% block header %}
  <h1>{{ summary.task | capitalize }} on {{ dataset }}, learned across {{ summary.merchants | count }} merchants</h1>
  {% if is_tiny %}<p class="warning"><strong>A tiny run.</strong> It shows that the file works: with few merchants, a small teacher and two rounds its numbers mean nothing.</p>{% endif %}
  {% if weak_teacher %}<p class="warning">{{ weak_teacher }}</p>{% endif %}
  <p class="verdict">{{ headline }} {{ verdict }}</p>
  {% if byzantine %}<p>{{ byzantine }}</p>{% endif %}
  <dl class="tiles">
    {% for title, found in adds.items() %}{{ tile(title, found.value | signed if found else "–", "in " ~ metric ~ (" over " ~ bases[found.over] if found and found.get("over") else ""), found.half_width | plus_minus if found else "") }}
    {% endfor %}
    {{ tile("Student's " ~ metric, main[summary.headline] | number, "teacher " ~ (summary.teacher[summary.headline] | number), main.interval[summary.headline] | plus_minus) }}
    {% if not weak_teacher %}{{ tile("Quality kept", summary.retention | percent(1), "of the teacher's " ~ metric, "") }}{% endif %}
    {{ tile("Gap closed", summary.gap_closed | percent, "in AUC " ~ (main.gap_closed_auc | percent) if main.gap_closed_auc is not none else "of what pooling adds to the best student without federation", "± " ~ (main.interval.gap_closed | percent) if main.interval.gap_closed is not none else "") }}
    {% if summary.speed and not is_tiny %}
    {{ tile("Faster by", (summary.speed.ratio | count) ~ "×", (summary.speed.student_seconds_per_pair | duration) ~ " an example, not " ~ (summary.speed.teacher_seconds_per_pair | duration), "") }}
    {% endif %}
    {{ tile("Sent in a round", summary.bytes.uplink_per_merchant_round | size, (summary.bytes.downlink_per_merchant_round | size) ~ " received", "") }}
    {{ tile("Weights", summary.student.parameters | count, "teacher " ~ (summary.teacher.parameters | count), "") }}
  </dl>
{% endblock %}
{% block findings %}
<section id="comparison">
  <h2>What each way of training gives</h2>
  <p>Every student below has the same size and is measured on the same test set, whose {{ "products or queries" if "ndcg@10" in metrics else "groups of rows" }} none of them has seen.
  {% if several %}Numbers are means over {{ summary.seeds | length }} seeds. {% endif %}{{ covers }}{% if several and "test data" in summary.interval_covers %} Metrics other than {{ metric }} have intervals over training seeds only.{% endif %}{% if corrected %} Differences are paired, and their p-values have Holm's correction over the rows of this table.{% endif %}{% if summary.get("chance") %} A model that has learned nothing has {{ metric }} {{ summary.chance | number }}.{% endif %}</p>
  {% if overview %}{{ figure(overview, "Higher is better. The scale does not begin at zero, so read differences, not lengths.") }}{% endif %}
  <h3>All numbers</h3>
  {% call table("Comparison table") %}
    <thead><tr><th scope="col">Model</th>
      {% for name in metrics %}<th scope="col">{{ metric_names[name] }}</th>{% endfor %}
      <th scope="col">Mean<br>merchant{{ " *" if unprotected }}</th><th scope="col">Worst<br>merchant{{ " *" if unprotected }}</th><th scope="col">Worst<br>tenth{{ " *" if unprotected }}</th>{% for name in references.values() %}<th scope="col">Above<br>{{ name }}</th>{% endfor %}<th scope="col">Retention</th><th scope="col">Gap<br>closed</th>
      <th scope="col">Bytes<br>a round</th><th scope="col">Time</th></tr></thead>
    <tbody>
    {% for row in rows %}
    <tr class="{{ row.kind }}"><th scope="row">{{ row.name }}<small>{{ row.note }}</small></th>
      {% for name in metrics %}<td{% if loop.first %} class="head"{% endif %}>{{ value(row, name) }}{{ half(row, name) }}{% if loop.first and row.values.get("with_bm25") %}<small>with BM25 {{ row.values.with_bm25[summary.headline] | number }}{% if row.values.with_bm25.half_width is not none %} ± {{ row.values.with_bm25.half_width | number }}{% endif %}</small>{% endif %}</td>{% endfor %}
      {% if row.kind == "teacher" %}
      <td>–</td><td>–</td><td>–</td>{% for name in references %}<td>–</td>{% endfor %}<td>–</td><td>–</td><td>–</td><td>–</td>
      {% else %}
      <td>{{ row.values.merchant_accuracy | number(3) }}{% if row.values.get("own_students") %}<small>own students {{ row.values.own_students.mean | number(3) }}</small>{% endif %}{% if row.values.get("cold") %}<small>cold start {{ row.values.cold[summary.headline] | number(4) }}</small>{% endif %}</td>
      <td>{% if row.values.worst_merchant %}{{ row.values.worst_merchant.accuracy | number(3) }}<small>{{ row.values.worst_merchant.merchant | truncate(18) }}</small>{% else %}–{% endif %}</td>
      <td>{{ row.values.worst_tenth | number(3) }}</td>
      {% for name in references %}<td>{{ compared(row.values.above[name]) }}{% if name == "server" and row.values.get("with_bm25") and row.values.with_bm25.above_server %}<small>with BM25 {{ compared(row.values.with_bm25.above_server) }}</small>{% endif %}</td>{% endfor %}
      <td>{{ value(row, "retention", "percent") }}</td>
      <td>{{ row.values.gap_closed | percent }}{% if row.half.get("gap_closed") is not none %}<small>± {{ row.half.gap_closed | percent }}</small>{% endif %}</td>
      {% if row.arm %}
      <td>↑ {{ row.values.bytes.uplink_per_merchant_round | size }}<small>↓ {{ row.values.bytes.downlink_per_merchant_round | size }}</small>{% if row.values.get("coding") %}<small>↑ {{ row.values.coding.uplink_ratio | number(1) }}× fewer than {{ row.values.coding.uncoded }}</small>{% endif %}</td>
      {% else %}<td>–</td>{% endif %}
      <td>{{ row.values.seconds | duration }}</td>
      {% endif %}</tr>
    {% endfor %}
    </tbody>
  {% endcall %}
  {% if unprotected %}<p class="soft">* {{ unprotected }}</p>{% endif %}
  {% for row in rows if row.kind not in ("teacher",) and row.values.notes %}
  {% if loop.first %}<ul class="notes soft">{% endif %}
  {% for name, note in row.values.notes.items() %}<li>{{ row.name }}: {% if name == "merchant_accuracy" %}not measured at merchants without a reply from their site, {{ note }}{% else %}{{ {"retention": "retention", "gap_closed": "gap closed", "gap_closed_auc": "gap closed in AUC"}[name] }} is not defined: {{ note }}{% endif %}.</li>{% endfor %}
  {% if loop.last %}</ul>{% endif %}
  {% endfor %}
</section>

{% set cold_rows = rows | selectattr("values.cold_start", "defined") | selectattr("values.cold_start") | list %}
{% if cold_rows %}
<section id="cold-start">
  <h2>Products and customers that training did not see</h2>
  <p>Cold products are in no training example, neither bought nor in a history; cold customers have no training example. Both are ranked among the same candidates as the warm ones. Kinds with fewer than {{ enough }} queries are left out.</p>
  {% call table("Cold and warm products and customers") %}
    <thead><tr><th scope="col">Student</th>{% for kind, found in cold_rows[0].values.cold_start.items() %}{% for name in ("ndcg@10", "recall@20") %}<th scope="col">{{ metric_names[name] }},<br>{{ kind }}<small>{{ found.queries | count }} queries</small></th>{% endfor %}{% endfor %}</tr></thead>
    <tbody>
    {% for row in cold_rows %}
    <tr class="{{ "main" if row.kind == "main" }}"><th scope="row">{{ row.name }}</th>{% for found in row.values.cold_start.values() %}{% for name in ("ndcg@10", "recall@20") %}<td>{{ found[name] | number }}</td>{% endfor %}{% endfor %}</tr>
    {% endfor %}
    </tbody>
  {% endcall %}
</section>
{% endif %}

{% if summary.levels %}
<section id="levels">
  <h2>From the teacher down to the student</h2>
  <p>Each assistant was distilled from the level above it, the student from the teacher and the last assistant; below are the same student distilled from the teacher directly, and trained without a teacher. All were trained by the server, before the federation.</p>
  {% call table("Levels of the chain") %}
    <thead><tr><th scope="col">Level</th><th scope="col">Weights</th>{% for name in metrics %}<th scope="col">{{ metric_names[name] }}</th>{% endfor %}<th scope="col">Retention</th></tr></thead>
    <tbody>
    <tr><th scope="row">teacher</th><td>{{ summary.teacher.parameters | count }}</td>{% for name in metrics %}<td>{{ summary.teacher[name] | number }}</td>{% endfor %}<td>{{ 1 | percent(1) }}</td></tr>
    {% for level, row in summary.levels.items() %}
    <tr class="{{ "main" if level == "student" }}"><th scope="row">{{ level }}</th><td>{{ row.parameters | count }}</td>{% for name in metrics %}<td>{{ row[name] | number }}<small>{{ row.interval[name] | plus_minus }}</small></td>{% endfor %}<td>{{ row.retention | percent(1) }}</td></tr>
    {% endfor %}
    </tbody>
  {% endcall %}
</section>
{% endif %}

{% if curves %}
<section id="learning">
  <h2>Learning curves</h2>
  {{ figure(curves, "Measured after every round on validation examples, which are used neither for training nor for testing. Dashed: students trained without federation, on the same validation examples." ~ (" Bands are 95 % intervals over the seeds." if several else "")) }}
</section>
{% endif %}

{% if spread %}
<section id="merchants">
  <h2>Who gains: the spread over merchants</h2>
  <p>A mean can hide a merchant with low accuracy. Each dot is a merchant, the bar is the mean, and the lowest is named. {{ winners }}</p>
  {{ figure(spread, ("Not protected *. " if unprotected else "") ~ "Accuracy on each merchant's own test examples" ~ (", averaged over the seeds" if several else "") ~ ". The accuracy of a merchant with few test examples is noisy; the worst merchant in the table above is that among merchants with at least 20, or among all if most have fewer.") }}
</section>
{% endif %}

{% if overlap %}
<section id="overlap">
  <h2>Were treated and other customers alike?</h2>
  <p>The propensity is the probability of being treated, estimated from what a customer bought before. Where only one arm has customers, an effect cannot be estimated but only extrapolated. Propensities of {{ arms.clipped | percent(1) }} of the customers were clipped; weighted, the arms are worth {{ arms.effective[0] | count }} treated and {{ arms.effective[1] | count }} other customers.</p>
  {{ figure(overlap, "Test customers: treated upwards, others downwards, as shares of each arm. Arms that were assigned at random have the same shape. campaign_effect.txt has the numbers, and the effects.") }}
</section>
{% endif %}

{% if classes %}
<section id="classes">
  <h2>Which classes it knows</h2>
  <p>The student of this run's method{% if several %}, of seed {{ summary.seed }},{% endif %} on the test set. Precision: of the examples predicted as the class, the share that is. Recall: of the examples of the class, the share predicted as it.</p>
  {% call table("Precision and recall of each class") %}
    <thead><tr><th scope="col">True class</th><th scope="col">Examples</th><th scope="col">Precision</th><th scope="col">Recall</th><th scope="col">F1</th>{% if classes | length <= 12 %}{% for one in classes %}<th scope="col">predicted<br>{{ one.name | truncate(18) }}</th>{% endfor %}{% endif %}</tr></thead>
    <tbody>
    {% for one in classes %}
    <tr><th scope="row">{{ one.name }}</th><td>{{ one.examples | count }}</td><td>{{ one.precision | percent(1) }}</td><td>{{ one.recall | percent(1) }}</td><td>{{ one.f1 | percent(1) }}</td>{% if classes | length <= 12 %}{% set row = loop.index0 %}{% for many in one.predicted %}<td{% if loop.index0 == row %} class="head"{% endif %}>{{ many | count }}</td>{% endfor %}{% endif %}</tr>
    {% endfor %}
    </tbody>
  {% endcall %}
</section>
{% endif %}

{% if disagreeing %}
<section id="disagreements">
  <h2>Where teacher and student disagree</h2>
  <p>Of {{ disagreeing.compared | count }} {% if disagreeing.compared < disagreeing.proxy %}of {{ disagreeing.proxy | count }} {% endif %}proxy examples, teacher and student have the same most probable class for {{ disagreeing.agree | percent(1) }}; the mean Jensen-Shannon divergence of their probabilities is {{ disagreeing.mean | number(3) }} bits. Below are the {{ disagreeing.examples | length | count }} of the largest divergence (1 bit: nothing in common). Either of both may be wrong. The texts are those of the proxy set, which every site holds.</p>
  {% call table("Disagreements of teacher and student") %}
    <thead><tr><th scope="col">Divergence,<br>bits</th><th scope="col">Teacher</th><th scope="col">Student</th><th scope="col">Texts and, of the student's score, the words that add or take most</th></tr></thead>
    <tbody>
    {% for one in disagreeing.examples %}
    <tr><th scope="row">{{ one.divergence | number(3) }}</th>
      {% for found in (one.teacher, one.student) %}{% set best = found.index(found | max) %}<td class="label">{{ disagreeing.classes[best] }}<small>{{ found[best] | percent }}</small></td>
      {% endfor %}
      <td class="text">{% for text in (one.text, one.pair) if text is not none %}{{ text }}{% if one.words and one.words[loop.index0] %}<small>{% for word in one.words[loop.index0] %}{{ "%+.3f" | format(word.contribution) }} {{ word.text }}{{ ", " if not loop.last }}{% endfor %}</small>{% elif not loop.last %}<br>{% endif %}{% endfor %}</td></tr>
    {% endfor %}
    </tbody>
  {% endcall %}
</section>
{% endif %}

{% if traffic %}
<section id="bytes">
  <h2>What it costs to send</h2>
  {{ figure(traffic, "Bytes of the serialized messages of all rounds, up and down, for one merchant. Upper left is best: quality for few bytes.") }}
</section>
{% endif %}

{% if summary.get("answers") %}
<section id="answers">
  <h2>Who took part</h2>
  <p>Merchants, counted once in each round. Late: no answer by the deadline. Absent: the site was not connected. Resting: outside the hours of the site. Refused: excluded because of an invalid uplink, a failure, or the merchant's own limits. Rounds with too few participants were repeated.</p>
  {% call table("Who took part") %}
    <thead><tr><th scope="col">Federation</th><th scope="col">Rounds</th><th scope="col">Selected</th><th scope="col">Merged</th><th scope="col">Refused</th><th scope="col">Late</th><th scope="col">Absent</th><th scope="col">Resting</th><th scope="col">Rounds<br>repeated</th></tr></thead>
    <tbody>
    {% for title, row in summary.answers.items() %}
    <tr class="{{ "main" if title == summary.federation }}"><th scope="row">{{ title }}</th><td>{{ row.rounds | count }}</td><td>{{ row.asked | count }}</td><td>{{ row.merged | count }}</td><td>{{ row.refused | count }}</td><td>{{ row.late | count }}</td><td>{{ row.absent | count }}</td><td>{{ row.resting | count }}</td><td>{{ row.retried | count }}</td></tr>
    {% endfor %}
    </tbody>
  {% endcall %}
  {% for title, row in summary.answers.items() if row.reasons %}
  <details><summary>Why, in {{ title }}</summary><ul class="notes soft">
  {% for reason, times in row.reasons %}<li>{{ reason }}{% if times > 1 %} ({{ times | count }} times){% endif %}</li>
  {% endfor %}</ul></details>
  {% endfor %}
</section>
{% endif %}

{% if summary.federations.values() | selectattr("adaptation") | list %}
<section id="adaptation">
  <h2>Domain adaptation after the last round</h2>
  <p>The aggregated student is fine-tuned on the server's own examples, distilled from the teacher and fine-tuned again. A stage that did not improve the validation score by more than 1.1 times its standard error was undone, as listed below.</p>
  {% call table("Before and after adaptation") %}
    <thead><tr><th scope="col">Federation</th>{% for name in metrics %}<th scope="col">{{ metric_names[name] }}<br>before → after</th>{% endfor %}<th scope="col">At each merchant{{ " *" if unprotected }}: mean, worst<br>before → after</th></tr></thead>
    <tbody>
    {% for title, row in summary.federations.items() if row.adaptation %}
    <tr class="{{ "main" if title == summary.federation }}"><th scope="row">{{ title }}</th>
      {% for name in metrics %}<td>{% if row.adaptation.before %}{{ row.adaptation.before[name] | number }} → {{ row.adaptation.after[name] | number }}{% else %}–{% endif %}</td>{% endfor %}
      <td>{% if row.adaptation.personal %}{% set personal = row.adaptation.personal %}{{ personal.before.mean | number(3) }} → {{ personal.after.mean | number(3) }}<small>worst {{ personal.before.worst_merchant.accuracy | number(3) }} → {{ personal.after.worst_merchant.accuracy | number(3) }}</small>{% else %}–{% endif %}</td></tr>
    {% endfor %}
    </tbody>
  {% endcall %}
  {{ stages(summary.federation, main.adaptation) if main.adaptation }}
  {% if summary.federations | length > 1 %}
  <details><summary>The stages of the other federations</summary>
  {% for title, row in summary.federations.items() if row.adaptation and title != summary.federation %}{{ stages(title, row.adaptation) }}{% endfor %}
  </details>
  {% endif %}
</section>
{% endif %}

<section id="privacy">
  <h2>Privacy</h2>
  <p>{{ privacy }}</p>
  {% if unprotected %}
  {% for sentence in promises %}<p>{{ sentence }}</p>
  {% endfor %}
  <p>What is marked * in the comparison is not protected. {{ unprotected }}</p>
  {% call table("What leaves a merchant") %}
    <thead><tr><th scope="col">What leaves a merchant</th><th scope="col">How it is protected</th></tr></thead>
    <tbody>{% for part in summary.privacy.reveals %}<tr><th scope="row">{{ part.what }}</th><td class="text">{{ part.how }}</td></tr>{% endfor %}</tbody>
  {% endcall %}
  {% endif %}
  {% set audit = summary.privacy.audit %}
  {% if audit.auc is not none %}
  <h3>What attacks found</h3>
  <p>The federation was trained again without half of each merchant's examples, and attackers guessed which half. An AUC of 0.5 is
  guessing, 1 is certainty; {{ audit.strongest | words }} was the strongest. At 1 % false positives no attack identified more than
  {{ audit.tpr_at_1pct | percent(1) }} of the members. {{ audit_bound }}</p>
  {% call table("Attacks") %}
    <thead><tr><th scope="col">Attack</th><th scope="col">AUC</th><th scope="col">What the attacker sees and does</th></tr></thead>
    <tbody>{% for name, auc in audit.attacks.items() %}<tr><th scope="row">{{ name | words }}</th><td>{{ auc | number(3) }}</td><td class="text">{{ audit.threat_models[name] }}</td></tr>{% endfor %}</tbody>
  {% endcall %}
  {% endif %}
</section>

{% if summary.data %}
<section id="data">
  <h2>The data</h2>
  <p>{% if unprotected %}The server's own tables; sizes and classes of merchants' tables are omitted because this run is private.{% else %}Rows read and dropped, with reasons, and the split of the rest.{% endif %} Rows of a group, such as those of a product, a query or a text, are never split between training and test.</p>
  <details><summary>All counts</summary><div class="data">{{ account(data) }}</div></details>
</section>
{% endif %}
{% endblock %}
{% block files %}
  <p>The other files of the run, beside this page:</p>
  <dl class="facts">{% for name, content in files.items() %}<dt><a href="{{ name }}">{{ name }}</a></dt><dd>{{ content }}</dd>{% endfor %}</dl>
{% endblock %}
{% block again %}The run's folder holds the complete experiment. This repeats it under another name:{% endblock %}
{% block footer %}{{ summary.rounds }} rounds · {{ summary.seeds | length }} seed{{ "s" if summary.seeds | length > 1 }} ({{ summary.seeds | join(", ") }}) · {{ summary.seconds | duration }} in all · positive class “{{ summary.positive }}”
{% for name, version in summary.versions.items() %} · {{ name }} {{ version }}{% endfor %}{% endblock %}
"""
