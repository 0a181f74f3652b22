"""Pages that mkdocs makes while it builds: a page a model card, a page a notebook, the command line's help.

None of them is kept in the repository, so that none can be out of date. `tests/test_docs.py` asks for them too: their
links are followed and their blocks run like those of the written pages.
"""

from __future__ import annotations

import io
import re
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Notebooks in the order of the menu, with the menu's words.
NOTEBOOKS = {
    "embed": "Embed and look",
    "real_similar": "Real scene: similar places, groups",
    "real_change": "Real forest: change over two years",
    "pca_rgb": "Embeddings as colours",
    "classify": "Twenty labels to a map",
    "segment": "Areas to a map, pixel by pixel",
    "change": "Change between two dates",
    "similar": "Find similar places",
    "cluster": "Groups without labels",
    "train": "Train a student",
    "dask_cluster": "On a cluster",
}
#: What the extras are for.
EXTRAS = {
    "all": "everything below but `gpu`",
    "gpu": "several GPUs in one machine: one worker per GPU (Linux)",
    "cpu": "`runtime='openvino'`: networks run by OpenVINO, faster on the CPU",
    "index": "`build_index`, `open_index`: search among millions of vectors",
    "heads": "fitting heads, `cluster`, probes",
    "cluster": 'a Dask cluster: `scheduler="tcp://..."`, `dask.distributed.Client`',
    "demo": "`synthetic_cube`, `deo-cube demo` and `deo-cube bench`",
    "viz": "pictures: `.plot`",
    "vector": "labels and results as GeoDataFrame, GeoJSON or GeoParquet",
    "train": "`python -m deo_cube.train`: augmentation",
    "stac": "`search`, `load_cube`, SAFE products, `publish`: STAC and signed addresses of the Planetary Computer",
    "store": "object stores (S3, GCS, Azure) for stores of embeddings",
    "benchmarks": "labelled data sets in HDF5, for `deo-cube evaluate`",
    "view": "`deo-cube view` and `deo-cube page`: stores in a browser",
    "stackstac": "cubes loaded with stackstac",
}


def generated() -> Iterator[tuple[str, str | bytes]]:
    """Path below docs/ and content of every page and picture that is made."""
    yield from model_pages()
    yield from notebook_pages()
    yield "reference/cli.md", command_page()
    for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        yield f"{name.lower()}.md", text.replace("](docs/", "](").replace("](ARCHITECTURE.md", "](architecture.md")


def on_config(config: Any) -> Any:
    """Add the page of each bundled card to the menu (a hook of mkdocs)."""
    add_models(config["nav"])
    return config


def add_models(nav: list[dict[str, list[Any]]]) -> None:
    """Append the pages of the bundled cards to the section Models, the default model first."""
    models = next(section["Models"] for section in nav if "Models" in section)
    paths = {Path(path).stem: path for path, _ in model_pages()}
    models += [{alias: paths[alias]} for alias in sorted(paths, key=lambda alias: (alias != "tiny", alias))]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what a page leaves to its source (a hook of mkdocs)."""
    return markdown.replace("<!-- table of extras -->", extras_table())


def on_page_content(html: str, **_: Any) -> str:
    """Leave out heads of tables that say nothing in any column (a hook of mkdocs): Markdown knows no table without."""
    return re.sub(r"<thead>(?:\s|</?tr>|<th[^>]*></th>)*</thead>", "", html)


def extras_table() -> str:
    """The extras of the wheel: what each is for, and what it brings."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    lines = ["| extra | for | brings |", "|---|---|---|"]
    for name, brings in extras.items():
        if name != "dev":
            packages = ", ".join(re.split(r"[<>=;]", b)[0].strip() for b in brings)
            lines.append(f"| `{name}` | {EXTRAS[name]} | {packages} |")
    return "\n".join(lines)


def one_by_one(docstring: str) -> str:
    """A NumPy docstring in which `a, b : int` under Parameters has become an entry of `a` and one of `b`."""

    def split(entry: re.Match[str]) -> str:
        return "".join(f"{name}{entry['rest']}" for name in re.split(r",\s*", entry["names"]))

    head, title, rest = docstring.partition("Parameters\n----------\n")
    several = r"^(?P<names>[*\w]+(?:,\s*[*\w]+)+)(?P<rest>(?: :.*)?\n(?:[ \t]+.*\n?)*)"
    return head + title + re.sub(several, split, rest + "\n", flags=re.M).removesuffix("\n")


def plain_default(text: str) -> str | None:
    """What stands in `Default(...)`, by which the package tells a default from the same text given by the caller."""
    found = re.fullmatch(r"Default\((.*)\)", text)
    return found and found[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the site (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    for path, content in generated():
        files.append(File.generated(config, path, content=content))
    return files


# Models ---------------------------------------------------------------------------------------------------------------


def model_pages() -> Iterator[tuple[str, str]]:
    """A page a bundled card."""
    from deo_cube.encoder.registry import bundled_cards

    for alias, card in bundled_cards().items():
        yield f"models/{alias}.md", model_page(card)


def model_page(card: Any) -> str:
    """Everything that a card says, as Markdown."""
    w = card.weights
    state = {
        "published": "published by others",
        "trained": "trained with this package, bundled",
        "untrained": "random: UNTRAINED",
    }[w.status]
    proven = bool(w.sha256 and card.reference)
    where = f"`{w.file}`" + (f", `{w.repo}` at `{w.revision[:12]}`" if w.repo else f", <{w.url}>" if w.url else "")
    facts = {
        "name": f"`{card.name}`",
        "gives": f"one {card.dim}-vector "
        + ("per pixel and series" if card.series else f"for {card.patch} x {card.patch} px (`{card.layer().name}`)"),
        "reads": "; ".join(f"{len(s.bands)} bands (`{s.name}`)" for s in card.stems),
        "pixels": f"{card.product_level}, {card.gsd:g} m, "
        + ("DN (reflectance x 10000, no offset)" if card.units == "dn" else "reflectance 0..1"),
        **({} if card.series else {"tile, halo": f"{card.tile} px, {card.halo} px"}),
        "architecture": ", ".join(f"{k} {v}" for k, v in card.architecture.items()),
        "weights": f"{state}: {where}",
        "SHA-256": f"`{w.sha256}`" if w.sha256 else "not known",
        "licence of the weights": card.license_weights,
        "licence of the code": card.license_code,
    }
    lines = [
        "<!-- Written from the card while the site is built; change the card. -->",
        f"# `{card.alias}`",
        "",
        _plain(card.summary),
        "",
    ]
    if not proven:
        lacks = "no hash of the weights" if card.reference else "no hash and no reference vector"
        lines += [
            '!!! warning "Not proven"',
            f"    The card states {lacks}: what is known of this model, and what is not, is listed under",
            "    [limits](#limits). Probe it on labels of your own before you build on it.",
            "",
        ]
    lines += ["| | |", "|---|---|", *(f"| {k} | {_cell(v)} |" for k, v in facts.items()), ""]
    lines += ["```python", "import deo_cube", "", f'card = deo_cube.card("{card.alias}")', "print(card)", "```", ""]
    lines += ["## Limits", "", *(f"- {_plain(limit)}" for limit in card.limits), ""]
    lines += ["## Scores", ""]
    lines += _scores(card) if card.scores else ["None is known.", ""]
    lines += ["## Layers", "", "| `layer=` | channels | one vector per | int8 scale |", "|---|---|---|---|"]
    for la in reversed(card.layers):
        default = " (default)" if la == card.layer() else ""
        scale = f"{la.int8_scale:.4g}" if la.int8_scale else "not measured: int8 is refused"
        lines.append(f"| `{la.name}`{default} | {la.dim} | {la.stride} px | {scale} |")
    lines += ["", "## Bands and normalisation", ""]
    for stem in card.stems:
        lines += _stem(stem, card)
    lines += ["## Training data", "", _plain(card.training_data) or "Not known.", ""]
    lines += ["## Source", "", _plain(card.paper), ""]
    return "\n".join(lines)


def _stem(stem: Any, card: Any) -> list[str]:
    names = ", ".join(f"`{n.name}`" + (" (default)" if i == 0 else "") for i, n in enumerate(stem.normalizations))
    lines = [f"Stem `{stem.name}`, in model order. `normalize=`: {names}.", ""]
    fixed = [n for n in stem.normalizations if n.mean]
    head = ["band", *(f"`{n.name}`: mean, std" for n in fixed)]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for i, band in enumerate(stem.bands):
        lines.append("| " + " | ".join([band, *(f"{n.mean[i]:.6g}, {n.std[i]:.6g}" for n in fixed)]) + " |")
    return [*lines, ""]


def _scores(card: Any) -> list[str]:
    beside = any("random_convolutions" in s for s in card.scores)
    head = ["task", "metric", "value [95 %]"] + (["random convolutions", "difference [95 %, paired]"] if beside else [])
    lines = ["| " + " | ".join([*head, "protocol"]) + " |", "|---" * (len(head) + 1) + "|"]
    for s in card.scores:
        row = [s["task"], s["metric"], _interval(s["value"], s.get("interval95"))]
        if beside:
            row += [_number(s.get("random_convolutions")), _interval(s.get("difference"), s.get("difference95"), "+")]
        lines.append("| " + " | ".join(_cell(c) for c in [*row, s.get("protocol", "")]) + " |")
    return [*lines, ""]


def _interval(value: Any, interval: Any, sign: str = "") -> str:
    text = _number(value, sign)
    return text + (f" [{_number(interval[0], sign)}, {_number(interval[1], sign)}]" if interval else "")


def _number(value: Any, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3g}" if abs(value) >= 10 else f"{value:{sign}.3f}"


def _plain(text: str) -> str:
    """Words of a card, in which an asterisk is one: patterns of files have two."""
    return text.replace("*", r"\*")


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


# Notebooks ------------------------------------------------------------------------------------------------------------


def notebook_pages() -> Iterator[tuple[str, str | bytes]]:
    """A page and its pictures a notebook, as it was executed."""
    import nbformat
    from nbconvert import MarkdownExporter
    from nbconvert.filters import strip_ansi
    from traitlets.config import Config

    # Tables and pictures as they are; xarray's and matplotlib's other HTML as text, which every theme shows.
    settings = Config({"NbConvertBase": {"display_data_priority": ["image/png", "text/markdown", "text/plain"]}})
    exporter = MarkdownExporter(config=settings)
    for name in NOTEBOOKS:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        book = nbformat.read(path, 4)
        for cell in book.cells:
            for data in (o.get("data", {}) for o in cell.get("outputs", [])):
                if ours(data.get("text/html", "")):
                    data["text/markdown"] = data["text/html"]  # our own tables look the same here as in Jupyter
            _end_of_bars(cell)
        text, found = exporter.from_notebook_node(book)
        for picture, data in found["outputs"].items():
            yield f"notebooks/{name}_{picture}", data
        text = re.sub(r"!\[png\]\((\w+\.png)\)", rf"![Output of the cell above]({name}_\1)", strip_ansi(text))
        # What matplotlib's setters return says nothing to a reader.
        text = re.sub(r"^    (\[?(Text|<matplotlib)\b.*)$", "", text, flags=re.M)
        text = re.sub(r"\n\s*\n\s*\n+", "\n\n", text)
        head, _, rest = text.partition("\n")
        download = f"*[{name}.ipynb]({name}.ipynb) as it was executed.*"
        yield f"notebooks/{name}.md", f"{head}\n\n{download}\n\n{rest.strip()}\n"
        yield f"notebooks/{name}.ipynb", path.read_bytes()


def ours(html: str) -> bool:
    """Whether an output is a table of this package; xarray's own, which name it in their attributes, are not."""
    return re.match(r"<div[^>]*>deo_cube ", html) is not None


def _end_of_bars(cell: Any) -> None:
    """Leave of progress bars, which are written over and over, their last state."""
    kept: list[Any] = []
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr":
            lines = [line.rsplit("\r", 1)[-1].rstrip() for line in output["text"].strip("\r\n").split("\n")]
            output["text"] = "\n".join(lines) + "\n"
            if not output["text"].strip():
                continue
            if kept and kept[-1].get("name") == "stderr" and "%|" in output["text"]:
                kept.pop()
        kept.append(output)
    if "outputs" in cell:
        cell["outputs"] = kept


# Command line ---------------------------------------------------------------------------------------------------------


def command_page() -> str:
    """The help of every command, as the program prints it."""
    from deo_cube import cli

    lines = [
        "<!-- Written from the program while the site is built. -->",
        "# Command line",
        "",
        "`deo-cube COMMAND`, or `python -m deo_cube COMMAND`. Flags are the arguments of the verbs. Exit status:",
        "0 done, 1 something found wrong (`verify`, `doctor`), 2 a mistake in the call, 130 interrupted.",
        "",
        "## Completion in the shell",
        "",
        "The program writes its own completion; begin a new shell afterwards.",
        "",
        "```bash",
        "mkdir -p ~/.local/share/bash-completion/completions",
        "deo-cube completion bash > ~/.local/share/bash-completion/completions/deo-cube",
        "```",
        "",
        "For zsh, into a folder of your `fpath`:",
        "",
        "```bash",
        "mkdir -p ~/.zfunc",
        "deo-cube completion zsh > ~/.zfunc/_deo-cube",
        "```",
        "",
    ]
    for name in cli.COMMANDS:
        lines += [f"## deo-cube {name}", "", "```text", help_of(name), "```", ""]
    lines += [
        "## python -m deo_cube.train",
        "",
        "Distils a student from your own cubes: [training](../training.md) has the calls, and",
        "[its configuration](train.md) says of each flag why its default is what it is.",
        "",
    ]
    return "\n".join(lines)


def help_of(name: str) -> str:
    """What `deo-cube NAME --help` prints, on a terminal of 86 columns without colours."""
    import os

    from deo_cube import cli

    before = {k: os.environ.get(k) for k in ("COLUMNS", "NO_COLOR", "TERM")}
    os.environ |= {"COLUMNS": "86", "NO_COLOR": "1", "TERM": "dumb"}
    said = io.StringIO()
    try:
        with redirect_stdout(said), suppress(SystemExit):
            cli.main([name, "--help"])
    finally:
        for k, v in before.items():
            os.environ.pop(k, None) if v is None else os.environ.update({k: v})
    return re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue()).strip("\n")
