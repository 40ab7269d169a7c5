"""The benchmark of explanations has a row for each class."""

from experiments.benchmarks.explain import table
from fed_distill import load_student
from fed_distill.data import load


def test_each_class_of_the_test_set_has_its_areas(tiny_run):
    student, data = load_student(tiny_run.result.folder), load(tiny_run.experiment.data)
    lines = table(student, data.test, pairs=3, seed=0).splitlines()
    present = [name for number, name in enumerate(student.classes) if (data.test.labels == number).any()]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == present
    for line in lines[2:]:
        pairs, explained, random = line.strip("| ").split(" | ")[1:]
        assert 1 <= int(pairs) <= 3
        assert 0 <= float(explained) <= 1 and 0 <= float(random) <= 1
