"""Write the table of models in docs/models.md from the cards: python -m benchmarks.models_table."""

from __future__ import annotations

from pathlib import Path

from deo_cube.encoder.registry import bundled_cards

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- table of models: begin -->\n", "<!-- table of models: end -->\n"


def table() -> str:
    """The bundled cards as a Markdown table, one row a model."""
    head = "| model | name | reads | gives | tile, halo | trained on | weights | licence of the weights |\n"
    rows = [head, "|---" * 8 + "|\n"]
    for alias, c in bundled_cards().items():
        stems = " or ".join(f"{len(s.bands)} bands (`{s.name}`)" for s in c.stems)
        layers = ", ".join(
            f"**{la.dim} per {la.stride} px (`{la.name}`)**"
            if la == c.layer()
            else f"`{la.name}` {la.dim} / {la.stride}"
            for la in reversed(c.layers)
        )
        proof = {
            (True, True): "hash and reference vector in the card",
            (False, True): "reference vector in the card, no hash",
        }.get((c.weights.sha256 is not None, c.reference is not None), "nothing to prove them by")
        cells = (
            f"`{alias}`",
            c.name,
            stems,
            layers,
            f"{c.tile}, {c.halo} px",
            f"{c.product_level}, {c.gsd:g} m",
            f"{c.weights.status}; {proof}",
            c.license_weights,
        )
        rows.append("| " + " | ".join(cells) + " |\n")
    return "".join(rows)


def with_table(text: str) -> str:
    """`text` with what stands between the two marks replaced by the table."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    DOCS.write_text(with_table(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
