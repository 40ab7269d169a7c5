"""The report stands alone, is made from the run's folder, and says what the summary says."""

import re
from copy import deepcopy
from html.parser import HTMLParser

import pytest

from fed_distill.errors import CheckpointError
from fed_distill.reporting.glossary import GLOSSARY
from fed_distill.reporting.report import FILES, render, write_report
from fed_distill.reporting.store import EXPERIMENT, read_records, read_summary

MAIN = "fedavg-kd+fedsubavg"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text by section, and checks that tags are balanced."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.rows, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture
def page(run_folder):
    return Page(write_report(run_folder).read_text())


def test_the_report_loads_nothing_from_elsewhere(run_folder, page):
    html = (run_folder / "report.html").read_text()
    outside = [
        value
        for _, name, value in page.attributes
        if name in ("src", "href", "xlink:href", "data", "action", "srcset") and not value.startswith("#")
    ]
    links = ["https://creativecommons.org/licenses/by/4.0/"]  # the license of the data
    assert outside == [*links, *FILES]
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert "<script" not in html
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_comparison_shows_the_summarys_numbers(run_folder, page):
    summary = read_summary(run_folder)
    row = next(row for row in page.rows if row[0].startswith(MAIN) and len(row) > 8)
    student, half = summary["student"], summary["intervals"]["student"]
    for cell, metric in zip(row[1:5], ("ndcg@10", "auc", "macro_f1", "accuracy"), strict=True):
        assert cell.replace("\u202f", " ") == f"{student[metric]:.4f}± {half[metric]:.4f}"
    assert row[5] == f"{student['merchant_accuracy']:.3f}"
    assert row[6].startswith(f"{student['worst_merchant']['accuracy']:.3f}")
    assert row[7] == f"{student['worst_tenth']:.3f}"
    above = summary["federations"][MAIN]["above"]
    for cell, name in zip(row[8:10], ("server", "fedavg"), strict=True):
        assert cell.startswith(f"+{above[name]['value']:.4f} ± {above[name]['half_width']:.4f}, p ")
    assert row[10] == f"{100 * summary['retention']:.1f}\u202f%"
    assert row[11].startswith(f"{100 * summary['gap_closed']:.0f}\u202f%±")
    assert row[12].replace("\u202f", " ") == "↑ 611 kB↓ 1.2 MB"


def test_everything_compared_is_in_the_table(page):
    table = [row[0] for row in page.rows if len(row) > 8][1:]
    names = [
        "teacher",
        "server alone",
        "each merchant alone",
        "all data pooled",
        "FedAvg, no teacher",
        MAIN,
        "fedavg-kd",
        "fedmd",
    ]
    assert len(table) == len(names)
    assert all(cell.startswith(name) for cell, name in zip(table, names, strict=True))


def test_the_charts_show_every_federation(run_folder):
    html = write_report(run_folder).read_text()
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(charts) == 8, "each for wide and for narrow pages"
    for chart in charts:
        assert all(f">{name}<" in chart for name in (MAIN, "fedavg-kd", "fedmd", "FedAvg, no teacher"))
    curves = charts[2]
    for name in (MAIN, "fedavg-kd", "fedmd", "FedAvg, no teacher"):
        assert curves.count(f"<title>{name}, round") == 10
    assert all(f">{name}<" in curves for name in ("server alone", "all data pooled"))


def test_the_curve_is_the_mean_of_the_seeds(run_folder):
    values = [
        record["valid"]["ndcg@10"]
        for record in read_records(run_folder)
        if (record["federation"], record["round"]) == (MAIN, 4)
    ]
    html = write_report(run_folder).read_text()
    assert len(values) == 3
    assert f"<title>{MAIN}, round 4: {sum(values) / 3:.4f}</title>" in html


def test_names_from_the_data_are_escaped(run_folder):
    html = write_report(run_folder).read_text()
    assert "<b>" not in html


def test_adaptation_account_command_words_and_privacy_are_told(run_folder, page):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    assert f"fed-distill run {run_folder}/experiment.toml --name pricerunner-again" in text
    assert "seed 1: distillation: undone, it fell to 0.9630" in text
    assert "rows read 35,311" in text and "duplicate 401" in text
    assert "run had no differential privacy" in text
    assert all(word in text for word in GLOSSARY)
    assert "learning_rate = 0.003" in text


def test_the_report_can_be_written_again_and_is_the_same(run_folder):
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first


def test_one_seed_says_that_luck_cannot_be_told(one_seed_summary):
    html = render(one_seed_summary, [], "", "runs/one")
    assert "With one seed, differences may be due to chance" in html
    Page(html)


def test_a_run_with_next_to_nothing_in_it_has_a_report(one_seed_summary):
    main = one_seed_summary["federations"][MAIN]
    main |= {
        "adaptation": None,
        "worst_merchant": None,
        "gap_closed": None,
        "notes": {"gap_closed": "a reason"},
    }
    bare = one_seed_summary | {
        "controls": {},
        "federations": {MAIN: main},
        "intervals": {"student": main["interval"], "controls": {}},
        "by_merchant": {"counts": {}, "controls": {}, "federations": {MAIN: {}}},
        "gap_closed": None,
        "speed": None,
        "data": {},
    }
    html = render(bare, [], "", "runs/bare")
    Page(html)
    assert f"{MAIN}: gap closed is not defined: a reason." in html
    assert "Who gains" not in html and "Learning curves" not in html


def test_personal_adaptation_is_shown_before_and_after(summary):
    summary["federations"][MAIN]["adaptation"]["personal"] = {
        "before": {"mean": 0.6, "worst_merchant": {"merchant": "a", "accuracy": 0.5}},
        "after": {"mean": 0.75, "worst_merchant": {"merchant": "a", "accuracy": 0.625}},
    }
    html = render(summary, [], "", "runs/personal")
    assert "0.600 → 0.750" in html and "worst 0.500 → 0.625" in html


def test_a_run_that_has_not_ended_has_no_report(run_folder):
    (run_folder / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="is not finished"):
        write_report(run_folder)


def test_a_run_without_its_experiment_is_named(run_folder):
    (run_folder / EXPERIMENT).unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*experiment\.toml"):
        write_report(run_folder)


def test_the_contents_link_every_section(page):
    sections = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href") and value.startswith("#")]
    assert links == [f"#{name}" for name in sections] and len(links) > 6


def test_a_tiny_run_says_that_its_numbers_mean_nothing(summary):
    assert "numbers mean nothing" not in render(summary, [], "", "runs/x")
    tiny = render({**summary, "name": f"{summary['name']}-tiny"}, [], "", "runs/x")
    assert tiny.index("numbers mean nothing") < tiny.index("<h2>")


def test_each_class_has_its_precision_recall_and_confusions(summary):
    counted = {**summary, "classes": ["exact", "other", "never"], "confusion": [[6, 2, 0], [1, 11, 0], [0, 0, 0]]}
    rows = {row[0]: [cell.replace("\u202f", " ") for cell in row] for row in Page(render(counted, [], "", "x")).rows}
    assert rows["exact"][1:] == ["8", "85.7 %", "75.0 %", "80.0 %", "6", "2", "0"]  # 6/7, 6/8, 2*6/(7+8)
    assert rows["other"][1:] == ["12", "84.6 %", "91.7 %", "88.0 %", "1", "11", "0"]  # 11/13, 11/12, 22/25
    assert rows["never"][1:5] == ["0", "–", "–", "0.0 %"]


@pytest.mark.parametrize(
    ("teacher", "student", "half", "warned"),
    [(0.763, 0.865, 0.01, True), (0.860, 0.865, 0.01, False), (0.90, 0.865, 0.01, False), (0.763, 0.865, None, True)],
)
def test_a_teacher_below_the_student_without_it_is_named_and_nothing_is_kept_of_it(
    summary, teacher, student, half, warned
):
    metric = summary["headline"]
    changed = deepcopy(summary)
    changed["teacher"][metric] = teacher
    name = "student" if "student" in changed["controls"] else "server"
    changed["controls"][name][metric] = student
    changed["intervals"]["controls"][name][metric] = half
    page = render(changed, [], "", "runs/x")
    assert ("its soft labels may harm" in page) is warned
    verdict = re.search(r'class="verdict">(.*?)</p>', page, re.DOTALL)[1]
    assert ("of the teacher's" in verdict.replace("&#39;", "'")) is not warned


def test_the_tiles_name_what_is_subtracted(summary):
    gain = {"value": 0.01, "half_width": 0.002, "p_value": 0.01, "covers": [], "p_adjusted": 0.02}
    over = {"teacher": "student", "federation": "server", "federation_without_teacher": "student"}
    summary["adds"] = {name: {**gain, "over": base} for name, base in over.items()}
    page = render(summary, [], "", "runs/x")
    tiles = re.findall(r"<dt>([^<]*adds)</dt>.*?<dd class=\"sub\">([^<]*)</dd>", page)
    assert tiles == [
        ("The teacher adds", "in nDCG@10 over labels only"),
        ("Federation adds", "in nDCG@10 over server alone"),
        ("Federation without a teacher adds", "in nDCG@10 over labels only"),
    ]
    for one in summary["adds"].values():
        del one["over"]
    assert "in nDCG@10</dd>" in render(summary, [], "", "runs/x"), "a run of an earlier version does not say it"


SEEDS = "averaged over the seeds", "Bands are 95 % intervals over the seeds", "intervals over training seeds only"


def test_seeds_and_p_values_are_explained_only_where_there_are_some(summary, one_seed_summary):
    assert SEEDS[2] not in render(summary, [], "", "runs/x"), "all intervals are over seeds"
    for run, covered in ((summary, ["training seeds", "test data"]), (one_seed_summary, ["test data"])):
        run["interval_covers"] = covered
    several, one = (render(run, [], "", "runs/x") for run in (summary, one_seed_summary))
    assert "Holm's correction" in several and SEEDS[0] in several
    assert SEEDS[2] in several
    assert "Holm's correction" not in one and not any(sentence in one for sentence in SEEDS)


def test_a_tiny_run_has_no_speed(summary):
    assert "Faster by" in render(summary, [], "", "runs/x")
    assert "Faster by" not in render({**summary, "name": f"{summary['name']}-tiny"}, [], "", "runs/x")


def test_a_table_is_called_as_its_file(summary):
    named = render({**summary, "dataset": "table", "dataset_name": "avis.csv"}, [], "", "runs/x")
    assert "<h1>Relevance on avis.csv, learned across 31 merchants</h1>" in named
    del summary["dataset_name"]
    assert "<h1>Relevance on pricerunner, learned" in render(summary, [], "", "runs/x"), "of an earlier version"
