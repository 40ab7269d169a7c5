"""The page of a study's report, a Jinja template over ``reporting.page``."""

# ruff: noqa: E501 -- a web page

STUDY_PAGE = """{% extends "page" %}
{% from "parts" import figure %}
{% macro numbers(label, table, labels, soft) -%}
<div class="scroll" tabindex="0" role="region" aria-label="{{ label }}">
  <table>
    <thead><tr>{% for title in table[0] %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for line in table[1:] %}
    <tr{% if loop.index in soft %} class="control"{% endif %}>{% for cell in line %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td{% if loop.index <= labels %} class="label"{% endif %}>{{ cell }}</td>{% endif %}{% endfor %}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
{%- endmacro %}
{% block title %}{{ study.title or study.name }} · fed-distill study{% endblock %}
{% block header %}
  <h1>{{ study.title or "Study " ~ study.name }}</h1>
  <p class="verdict">{{ answer }}</p>
  {% if sentences %}
  <ul class="answers">
  {% for series, sentence in sentences %}<li><strong>{{ series }}</strong>: {{ sentence }}</li>
  {% endfor %}
  </ul>
  {% endif %}
  {% if audit %}<p class="{{ "warning" if audit.startswith("WARNING") else "soft" }}">{{ audit }}</p>{% endif %}
  {% if unfinished %}
  <p class="warning">{{ unfinished }} What follows is about those that have finished; <a href="#unfinished">the rest is listed below</a>.</p>
  {% endif %}
{% endblock %}
{% block findings %}
<section id="compared">
  <h2>What was compared</h2>
  <p>Every combination of the following was trained on {{ seeds | length }} seed{{ "s" if seeds | length > 1 }}{% if study.data_seeds | length > 1 %} for each of {{ study.data_seeds | length }} splits of the data{% endif %}{% if study.exclude %}, but for those that the study leaves out{% endif %}:
  one small student across merchants who keep their data, distilled from {{ study.base.teacher.model }} on {{ study.base.data.dataset }} ({{ study.base.data.task }}), unless the list says otherwise.</p>
  <dl class="facts">
  {% for axis in study.axes %}<dt>{{ axis.name }}</dt><dd>{% for choice in axis.choices %}{{ "∞ (no privacy)" if choice.label == "inf" else choice.label }}{{ ", " if not loop.last }}{% endfor %}</dd>
  {% endfor %}
  {% for table in study.exclude %}<dt>left out</dt><dd>{% for axis, labels in table.items() %}{{ axis }} {{ labels if labels is string else labels | join(" or ") }}{{ " with " if not loop.last }}{% endfor %}</dd>
  {% endfor %}
  {% if controls %}<dt>compared with</dt><dd>{{ controls | join(", ") }}: trained once for each seed, without privacy</dd>{% endif %}
  {% if study.audit %}<dt>attacked</dt><dd>the cells of {{ "the first seed" if study.audit.seeds == 1 else study.audit.seeds ~ " seeds" }}, with {{ study.audit.shadows }} shadow students and {{ study.audit.canaries }} canaries; each cell's own report tells every attack</dd>{% endif %}

  <dt>cells</dt><dd>{{ finished }} of {{ cells }} finished</dd>
  </dl>
  {% if seeds | length == 1 %}<p>One training seed: how much of a difference another one would change cannot be told from this study.</p>{% endif %}
</section>

{% for chart in figures %}
<section id="{{ chart.name }}">
  <h2>{{ chart.title }}</h2>
  {{ figure(chart.svg, chart.caption) }}
</section>
{% endfor %}

<section id="numbers">
  <h2>All numbers</h2>
  <p>Means over the seeds; ± is the half-width of the 95 % interval{% if covers %}, that of the headline metric over {{ covers }}, of others over seeds{% endif %}. Differences are paired, and their p-values have Holm's correction over the rows of their column. ε and δ are the largest that any seed has spent.{% if study.baseline %} A gain is a difference to {{ study.baseline[0] }} “{{ study.baseline[1] }}” with all else equal.{% endif %}{% if without_units %} {{ without_units }}{% endif %}</p>
  {{ numbers("Table of results", table, study.axes | length, range(1, controls_shown + 1)) }}
  {% if gains %}
  <h3>What each {{ study.baseline[0] }} adds to “{{ study.baseline[1] }}”</h3>
  <p>± of a line is as above, that of the mean is over the lines. These intervals are not corrected for the number of lines.</p>
  {{ numbers("Table of gains", gains, study.axes | length - 1, range(gains | length - 2, gains | length)) }}
  {% endif %}
</section>

{% if tuning %}
<section id="tuning">
  <h2>How the settings were chosen</h2>
  {% for sentence in tuning.sentences %}<p>{{ sentence }}</p>
  {% endfor %}
  {{ numbers("Table of trials", tuning.table, tuning.words, []) }}
</section>
{% endif %}

<section id="promises">
  <h2>What is promised, to whom, and on which assumptions</h2>
  {% if promises %}
  <p>Differential privacy bounds what anybody can learn about one unit of data, however much else they know. ε bounds by how much:
  seeing the result changes the odds of any guess about that unit by at most the factor given. δ is a small chance that the bound fails.</p>
  {% else %}
  <p>No finished cell promises anything: a determined reader of what merchants send may learn something about the examples behind it.</p>
  {% endif %}
  {% for promise in promises %}
  <div class="promise">
    <h3>{{ promise.unit.title }}</h3>
    <p>{{ promise.unit.promise }}</p>
    <dl class="facts">
      <dt>who must be trusted</dt><dd>{{ promise.trusted }}</dd>
      {% if promise.unit.counts %}<dt>n, what is counted</dt><dd>{{ promise.unit.counts }}; here {{ promise.counted }}</dd>{% endif %}
      <dt>how ε is added up</dt><dd>{{ promise.accountants }}</dd>
      {% if promise.unit.assumption %}<dt>assumed</dt><dd>{{ promise.unit.assumption }}</dd>{% endif %}
      {% if promise.reveals %}<dt>also revealed</dt><dd>{% for item in promise.reveals %}{{ item }}{{ "<br>" | safe if not loop.last }}{% endfor %}</dd>{% endif %}
    </dl>
    <div class="scroll" tabindex="0" role="region" aria-label="Budgets">
    <table>
      <thead><tr><th scope="col">ε</th><th scope="col">odds change by at most</th><th scope="col">δ</th><th scope="col">noise multiplier</th></tr></thead>
      <tbody>{% for budget in promise.budgets %}<tr><th scope="row">{{ budget.epsilon }}</th><td>×{{ budget.odds }}</td><td>{{ budget.delta }}</td><td>{{ budget.noise }}</td></tr>{% endfor %}</tbody>
    </table>
    </div>
  </div>
  {% endfor %}
  <h3>What holds for every number here</h3>
  <ul class="notes">
  {% for assumption in assumptions %}<li>{{ assumption }}</li>
  {% endfor %}
  </ul>
</section>

{% if problems %}
<section id="unfinished">
  <h2>What has not finished</h2>
  <ul class="notes">
  {% for title, problem in problems %}<li><strong>{{ title }}</strong>: {{ problem }}</li>
  {% endfor %}
  </ul>
</section>
{% endif %}
{% endblock %}
{% block again %}The study's folder holds the complete study. This command continues unfinished cells, repeats failed ones and updates this page; with another <code>--out</code> it starts from scratch:{% endblock %}
{% block files %}
  <p class="soft">Every cell is a run of its own in <code>cells/</code>, named by the fingerprint in <code>results.csv</code>, with its own report. Figures are in <code>figures/</code> as SVG and PNG; all results are in <code>results.parquet</code> and <code>results.csv</code>, the table above in <code>summary.csv</code>.</p>
{% endblock %}
{% block footer %}seeds {{ seeds | join(", ") }}{% for line in versions %} · {{ line }}{% endfor %}{% if versions | length > 1 %} · cells were made by different versions{% endif %}{% endblock %}
"""
