"""What the pages say is so: their Python runs, their shell commands parse, their links lead somewhere.

Python blocks of README and docs run in the order of their page, offline and in an empty folder. A block that cannot (it
needs the network, a cluster or a GPU) says so in a comment on the line before: ``<!-- not run: needs the network -->``.
Pages that are written while the site is built (`docs/hooks/pages.py`) are looked at like the others; `make docs` holds
anchors and navigation to account.
"""

from __future__ import annotations

import doctest
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

import deo_cube
from deo_cube import cli, errors
from deo_cube.train.__main__ import parse as parse_train

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?P<before>[^\n]*)\n+```python[^\n]*\n(?P<code>.*?)```", re.S)
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```", re.S | re.M)


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "hooks" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = hooks()
WRITTEN = {
    p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
    for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
#: Pages that are made: those of the models and the command line. Notebooks have tests of their own.
MADE = {f"docs/{path}": text for path, text in [*HOOKS.model_pages(), ("reference/cli.md", HOOKS.command_page())]}
PAGES = {**WRITTEN, **MADE}


def blocks(text: str) -> list[tuple[int, str]]:
    """Line number and code of each block that runs."""
    text = "\n" + text
    return [
        (text[: m.start("code")].count("\n"), m["code"]) for m in BLOCK.finditer(text) if "not run:" not in m["before"]
    ]


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text)])
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(PAGES[page]):
        # Padded, so that a traceback names the page's own line.
        exec(compile("\n" * line + code, page, "exec"), names)
    matplotlib.pyplot.close("all")


#: Modules with an example in a docstring: the reference shows it.
EXAMPLES = [p for p in sorted((ROOT / "deo_cube").rglob("*.py")) if ">>> " in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_examples_of_the_reference_give_what_they_say(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deo_cube.embedding.plan import measure_rate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deo_cube.bench.measure_rate", functools.partial(measure_rate, seconds=0.01))
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not found.failed


def commands() -> list[tuple[str, str]]:
    """Page and text of each command in a shell block."""
    found = []
    for page, text in PAGES.items():
        for match in FENCE.finditer(text):
            if match["language"] not in ("", "bash"):
                continue
            for line in match["code"].replace("\\\n", " ").splitlines():
                line = re.sub(r"(^|\s)#.*", "", line)
                line = re.sub(r"^(\w+=\S+;?\s+)+", "", line).strip()
                if re.match(r"(python -m |torchrun |deo-cube |pip |make )", line):
                    found.append((page, line))
    return found


def stand_in(verb: Callable[..., Any]) -> Callable[..., None]:
    """A command with the flags of `verb` that does nothing."""

    @functools.wraps(verb)
    def nothing(*args: Any, **kwargs: Any) -> None:
        inspect.signature(verb).bind(*args, **kwargs)

    return nothing


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_such(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of the package have these flags; what is installed is an extra; what is made is a target."""
    words = shlex.split(command.replace("$W", "w").replace("$DN", "units=dn"))
    if "--tyro-write-completion" in words:
        return  # run in tests/test_completion.py
    words = words[: words.index(">")] if ">" in words else words
    if "deo_cube.train" in words:
        config = parse_train(words[words.index("deo_cube.train") + 1 :])
        assert config.data, "what is trained on"
    elif words[0] == "deo-cube" or words[:3] == ["python", "-m", "deo_cube"]:
        given = words[1:] if words[0] == "deo-cube" else words[3:]
        if given != ["..."]:
            given = [w for w in given if w != "..."]
            tyro.extras.subcommand_cli_from_dict({n: stand_in(v) for n, v in cli.COMMANDS.items()}, args=given)
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for wanted in re.findall(r"\[([\w,]+)\]", command):
            assert set(wanted.split(",")) <= set(extras)
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    else:
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module) is not None, module


def test_the_pages_name_commands() -> None:
    assert len(commands()) > 20  # so that the test above tests something


@pytest.mark.parametrize("page", PAGES)
def test_named_scripts_and_modules_exist(page: str) -> None:
    text = PAGES[page]
    for script in re.findall(r"\bpython ((?:benchmarks|docs/hooks)/\w+\.py)", text):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"\bpython -m (benchmarks\.\w+)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    for test in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / test).exists(), test


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    made = {*MADE, *(f"docs/notebooks/{n}.{e}" for n in HOOKS.NOTEBOOKS for e in ("md", "ipynb"))}
    made |= {"docs/architecture.md", "docs/changelog.md", "docs/contributing.md"}
    for target in re.findall(r"\]\(([^)#\s]+)", PAGES[page]):
        if "://" not in target and not target.startswith("mailto:"):
            path = (ROOT / page).parent / target
            there = path.exists() or path.resolve().relative_to(ROOT.resolve()).as_posix() in made
            assert there, f"{page} links to {target}"


def test_every_notebook_has_a_page_and_every_extra_a_purpose() -> None:
    assert set(HOOKS.NOTEBOOKS) == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(HOOKS.EXTRAS) == set(extras)
    assert all(f"`{name}`" in HOOKS.extras_table() for name in HOOKS.EXTRAS)


def test_every_public_name_has_its_place_in_the_reference() -> None:
    reference = "\n".join(text for name, text in WRITTEN.items() if name.startswith("docs/reference"))
    modules = {"errors", "options"}
    for name in set(deo_cube.__all__) - modules - set(errors.__all__):
        assert re.search(rf"^::: deo_cube\.[\w.]*\b{name}$", reference, re.M), name
    for name in errors.__all__:
        assert name == "DeoCubeError" or f"`{name}`" in WRITTEN["docs/reference/errors.md"], name


def test_the_reference_names_every_verb_of_the_accessors() -> None:
    section = WRITTEN["docs/reference.md"].split("## Accessors")[1].split("\n## ")[0]
    for accessor in (deo_cube.DeoDatasetAccessor, deo_cube.DeoDataArrayAccessor):
        assert {f"`{n}`" for n in dir(accessor) if not n.startswith("_")} <= set(re.findall(r"`\w+`", section))


def test_a_model_page_says_all_limits_and_scores_of_the_card() -> None:
    for alias in ("tiny", "swinb", "vitb"):
        card, page = deo_cube.card(alias), MADE[f"docs/models/{alias}.md"]
        assert all(limit in page for limit in card.limits)
        assert all(str(s["task"]) in page for s in card.scores)
        assert ("Not proven" in page) == (card.reference is None)


def test_asterisks_of_a_card_are_asterisks_on_its_page() -> None:
    card, page = deo_cube.card("tiny_v1"), MADE["docs/models/tiny_v1.md"]
    assert "/*/" in card.training_data
    assert card.training_data in page.replace(r"\*", "*")
    assert not re.search(r"(?<!\\)\*", page[page.index("## Training data") :])


def test_a_table_keeps_its_head_where_one_column_has_no_name() -> None:
    nameless = "<thead>\n<tr>\n<th></th>\n<th style='text-align: left'></th>\n</tr>\n</thead>"
    named = nameless.replace("<th></th>", "<th>halo</th>")
    assert (
        HOOKS.on_page_content(f"<table>{nameless}<tbody></tbody>{named}</table>")
        == f"<table><tbody></tbody>{named}</table>"
    )
    assert "thead" not in (ROOT / "docs" / "css" / "extra.css").read_text(encoding="utf-8")


def test_tables_of_this_package_are_shown_as_such_and_those_of_xarray_are_not() -> None:
    ds = deo_cube.synthetic_cube(size=64, times=1)
    emb = ds.deo.embed()
    for shown in (ds.deo, emb.deo, ds.deo.plan()):
        assert HOOKS.ours(shown._repr_html_())
    assert "deo_cube" in emb._repr_html_()
    assert not HOOKS.ours(emb._repr_html_())


def test_pages_with_tables_of_scores_show_the_committed_figures() -> None:
    from benchmarks.evaluation_tables import PAGES as SHOWN
    from benchmarks.evaluation_tables import with_tables

    for page in SHOWN:
        text = WRITTEN[f"docs/{page}"]
        assert "<!-- table " in text, page
        assert text == with_tables(text), "run: python -m benchmarks.evaluation_tables"


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w]+/)*[\w]+(?:\.py|/))`", text))
    assert len(named) > 20
    missing = {n for n in named if not ((ROOT / "deo_cube" / n).exists() or (ROOT / n).exists())}
    assert not missing


def test_the_table_of_numbers_shows_the_committed_figures() -> None:
    from benchmarks.numbers_table import PAGES as SHOWN
    from benchmarks.numbers_table import with_table

    for page, links in SHOWN.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "<!-- numbers: begin -->\n\n|" in text
        assert text == with_table(text, links), "run: python -m benchmarks.numbers_table"


def test_parameters_told_of_together_are_entries_of_their_own() -> None:
    text = """Say.

Parameters
----------
cube
    Of
    two lines.
tile, halo : int
    Pixels.
units, **fields
    More.

Raises
------
ValueError
    If a, b.
"""
    split = HOOKS.one_by_one(text)
    assert "cube\n    Of\n    two lines.\ntile : int\n    Pixels.\nhalo : int\n    Pixels.\nunits\n    More." in split
    assert "**fields\n    More.\n\nRaises\n------\nValueError\n    If a, b.\n" in split
    assert HOOKS.one_by_one("No parameters, none.\n") == "No parameters, none.\n"
    assert HOOKS.plain_default("Default('tiny')") == "'tiny'"
    assert HOOKS.plain_default("'tiny'") is None


def test_every_page_is_in_the_menu() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    HOOKS.add_models(config["nav"])

    def targets(entry: Any) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        return set().union(*map(targets, entry.values() if isinstance(entry, dict) else entry))

    # Not asked of `generated`: notebooks are converted by a package that only the site needs.
    made = {name.removeprefix("docs/") for name in MADE} | {f"notebooks/{name}.md" for name in HOOKS.NOTEBOOKS}
    made |= {"architecture.md", "changelog.md", "contributing.md"}
    written = {name.removeprefix("docs/") for name in WRITTEN if name.startswith("docs/")}
    assert targets(config["nav"]) == made | written


def test_nothing_of_this_machine_stands_in_the_pages() -> None:
    for name, text in PAGES.items():
        assert not re.search(r"/(work|root|home)/", text), name
    for book in (ROOT / "notebooks").glob("*.ipynb"):
        assert not re.search(r"/(work|root|home)/", book.read_text(encoding="utf-8")), book.name


def test_the_site_asks_no_other_site_for_anything() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in text
    assert "extra_javascript" not in text
