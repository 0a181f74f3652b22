"""Each producer's lines give the embeddings of the plain cube, and the page shows these lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import find_shared
from tests.producers.producers import Producer, check
from tests.producers.table import ALWAYS, PAGE, PRODUCERS, record, with_tables


@pytest.mark.parametrize("producer", PRODUCERS, ids=str)
def test_the_lines_give_the_embeddings_of_the_plain_cube(producer: Producer, tmp_path: Path) -> None:
    if producer.missing:
        assert producer.packages[0] not in ALWAYS
        pytest.skip(f"{', '.join(producer.missing)}: not installed")
    if producer.real and find_shared() is None:
        pytest.skip("real data not found: set DEO_CUBE_DATA to the folder that holds data/")
    check(producer, tmp_path)


def test_the_page_shows_the_lines_and_versions_that_were_tried() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run: python -m tests.producers"
    assert set(record()) == {p.name for p in PRODUCERS}, "run: python -m tests.producers, with all packages installed"


def test_the_page_names_the_producers_that_people_ask_for() -> None:
    names = " ".join(p.name for p in PRODUCERS).lower()
    for asked in (
        "odc-stac", "stackstac", "openeo", "xee", "eopf", "cubo", "satpy", "sentinelhub", "hls", "force", "snap",
        "gdal netcdf", "vrt", "jpeg 2000", "kerchunk", "icechunk", "earth engine export", "planetary computer",
    ):  # fmt: skip
        assert asked in names, asked
