"""The notebooks run from top to bottom, show what their text says, and are stored without outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from docs.hooks import notebooks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_has_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}, "a version of Python depends on the machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_has_all_that_its_notebook_has(path):
    page = notebooks.page(path)
    for cell in nbformat.read(path, as_version=4).cells:
        first, *rest = cell.source.replace(".ipynb)", ".md)").splitlines()
        assert [line for line in rest if line not in page] == []
        assert first.removeprefix("!").removeprefix("%%writefile ") in page
    assert f"]({path.name})" in page


def test_commands_and_written_files_have_their_language(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# Title\n\nText, [other](other.ipynb)."),
        nbformat.v4.new_code_cell("%%writefile a.toml\nx = 1"),
        nbformat.v4.new_code_cell("!ls a.toml"),
        nbformat.v4.new_code_cell("1 + 1"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "own.ipynb")
    heading, text, origin, *code = notebooks.page(tmp_path / "own.ipynb").split("\n\n")
    assert (heading, text) == ("# Title", "Text, [other](other.md).")
    assert "(own.ipynb)" in origin
    assert code == ['```toml title="a.toml"\nx = 1\n```', "```sh\nls a.toml\n```", "```python\n1 + 1\n```\n"]


def executed(name, folder, monkeypatch):
    """Run a notebook in ``folder``, check its commands' exit codes, and return the text output of each code cell."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(folder))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.source.startswith("!"):
            cell.source += "\nassert _exit_code == 0"
    NotebookClient(
        notebook, timeout=1000, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(outputs, code, kind="text/plain"):
    """Return what the cell that contains ``code`` shows last."""
    (found,) = [output for source, output in outputs.items() if code in source]
    return found[-1]["data"][kind]


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_the_quickstart_shows_what_teacher_and_federation_add(tmp_path, monkeypatch):
    outputs = executed("quickstart", tmp_path, monkeypatch)
    table = shown(outputs, "run(Experiment.read", "text/html")
    assert all(f"<td>{row}</td>" in table for row in ("server alone", "all data pooled", "fedavg-kd"))
    lines = shown(outputs, "the teacher adds").splitlines()
    adds = {
        line.rsplit(None, 1)[0]: float(line.rsplit(None, 1)[1]) for line in lines if "add" in line or "alone" in line
    }
    assert len(adds) == 4
    assert min(adds.values()) > 0, "the text speaks of gains"
    assert adds["of that, each client alone"] < adds["federation adds"] < adds["what moving the data would add"]
    best = shown(outputs, "student.rank(").splitlines()[1]
    assert "SLPN JN400 18kg" in best, "the title that names the brand and the model of the query"


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_the_privacy_study_shows_that_a_larger_epsilon_costs_less(tmp_path, monkeypatch):
    outputs = executed("privacy", tmp_path, monkeypatch)
    lines = [line.split() for line in shown(outputs, "table.round").splitlines()[1:]]
    gain = {(unit, float(epsilon)): float(above) for _, unit, epsilon, _, _, _, above, _ in lines}
    spent = {(unit, float(epsilon)): float(value) for _, unit, epsilon, value, *_ in lines}
    assert set(gain) == {
        ("none", float("inf")),
        *((unit, size) for unit in ("example", "label") for size in (2.0, 8.0)),
    }
    for unit in ("example", "label"):
        assert gain[unit, 2.0] < gain[unit, 8.0]
        assert all(spent[unit, size] <= size for size in (2.0, 8.0))
    assert all(gain["example", size] < gain["label", size] for size in (2.0, 8.0)), "the stronger promise costs more"
    assert gain["example", 8.0] < gain["none", float("inf")]
    assert shown(outputs, "errorbar", "image/png")
    (ledger,) = [output for source, output in outputs.items() if source.startswith("!fed-distill ledger")]
    assert "merchant-1 " in "".join(part["text"] for part in ledger if part["output_type"] == "stream")
