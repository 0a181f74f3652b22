"""Files of heads: what is damaged, foreign, too large or made to harm is refused, and nothing is built of it."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deo_cube.errors import ArgumentTypeError, DeoCubeError, InputNotFoundError, WeightsMismatchError
from deo_cube.heads import base
from deo_cube.heads.head import fit_head, load_head
from deo_cube.heads.maps import classify, segment
from tests.heads.fields import embeddings


@pytest.fixture(scope="module")
def head():
    emb = embeddings()
    return fit_head("linear", emb, [(float(emb.x[i]), float(emb.y[i]), i % 2) for i in range(6)])


@pytest.fixture(scope="module")
def parts(head, tmp_path_factory):
    return base.read_head(head.save(tmp_path_factory.mktemp("heads") / "head"))


def altered(tmp_path, parts, change):
    facts = json.loads(json.dumps(parts[0]))
    change(facts)
    path = tmp_path / "h.safetensors"
    save_file(parts[1], path, metadata={base.KEY: json.dumps(facts)})
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.update(kind="pickle"),
        lambda f: f.update(kind=["linear"]),
        lambda f: f.update(format=99),
        lambda f: f.update(kind="conv", options={"width": 10**12, "upsample": 1, "scales": []}),
        lambda f: f.update(kind="conv", options={"width": -1, "upsample": 1, "scales": []}),
        lambda f: f.update(kind="upernet", options={"width": 10**9, "upsample": 1, "scales": [3] * 2}),
        lambda f: f.update(kind="knn", options={"k": 1e400, "balanced": True}),
        lambda f: f["model"].update(dim=10**15),
        lambda f: f["model"].update(dim=1.5),
        lambda f: f["model"].update(alias="https://models.example/evil"),
        lambda f: f["model"].update(alias="\\\\host\\share"),
        lambda f: f["model"].update(alias=["tiny"]),
        lambda f: f["classes"].update(codes=[0, 300]),
        lambda f: f["classes"].update(names=["a"]),
        lambda f: f["classes"].update(colors=["url(x)", "#000000"]),
        lambda f: f.update(classes=None),
        lambda f: f.update(report=3),
        lambda f: f.pop("model"),
        lambda f: f.pop("options"),
    ],
)
def test_impossible_facts_are_refused_before_anything_is_built(tmp_path, parts, change):
    path = altered(tmp_path, parts, change)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsMismatchError, match=r"h\.safetensors"):
            load_head(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "9" * 10_000 + "}", "null", "{", '{"format": NaN}'])
def test_damaged_headers_are_refused(tmp_path, parts, text):
    path = tmp_path / "h.safetensors"
    save_file(parts[1], path, metadata={base.KEY: text})
    with pytest.raises(WeightsMismatchError, match=r"h\.safetensors"):
        load_head(path)


@given(st.integers(0, 3000), st.integers(0, 255), st.booleans())
def test_any_byte_changed_or_cut_off_is_a_head_or_refused(tmp_path_factory, head, place, value, cut):
    path = head.save(tmp_path_factory.mktemp("heads") / "head")
    raw = bytearray(path.read_bytes())
    place %= len(raw)
    raw[place] = value
    path.write_bytes(raw[:place] if cut else raw)
    try:
        load_head(path)
    except DeoCubeError:
        pass


def test_other_files_are_refused(tmp_path, monkeypatch, head):
    for name, raw in (
        ("a.pkl", b"\x80\x04K\x01."),
        ("b.safetensors", b""),
        ("c.json", b"{}"),
        ("d.bin", bytes(range(256)) * 9),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(WeightsMismatchError, match=name):
            load_head(tmp_path / name)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(InputNotFoundError):
            load_head(missing)
    path = head.save(tmp_path / "head")
    monkeypatch.setattr(base, "MAX_HEAD_BYTES", 100)
    with pytest.raises(WeightsMismatchError, match="GiB"):
        load_head(path)
    for wrong in (None, 3, head, b"x"):
        with pytest.raises(ArgumentTypeError, match="path"):
            load_head(wrong)
    for verb in (classify, segment):
        with pytest.raises(ArgumentTypeError, match="head"):
            verb(embeddings(), np.zeros(3))


def test_a_dataset_of_embeddings_is_classified_as_its_array(head):
    emb = embeddings()
    np.testing.assert_array_equal(classify(emb.to_dataset(name="embeddings"), head), classify(emb, head))
