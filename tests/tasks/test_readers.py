"""Readers: what is in the file is what is in the table, and every fault is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from graftwork._errors import InputError, UnknownNameError
from graftwork.tasks import arrays, image_folder, read

GLUE = Path(os.environ.get("GRAFTWORK_DATA", "../shared/data")) / "glue"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_csv_keeps_text_as_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"a, ""b""\nc",01\nNA,1.0\n2020-01-01,true\n')
    table = read(path)
    assert table["text"] == ['a, "b"\nc', "NA", "2020-01-01"]
    assert table["label"] == ["01", "1.0", "true"]
    assert table.where(1) == "a.csv, row 2"


def test_tsv_takes_quotes_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"open quote\t0\nit\'s "fine"\t1\n')
    assert read(path)["text"] == ['"open quote', 'it\'s "fine"']
    quoted = write(tmp_path, "b.tsv", 'text\tlabel\n"a\tb"\t0\n')
    assert read(quoted, quoting=True)["text"] == ["a\tb"]


def test_without_header_columns_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "cola.tsv", "gj\t1\t\tThey sailed.\ngj\t0\t*\tSailed they.\n")
    table = read(path, header=False, columns={"sentence": "3", "label": "1"})
    assert table["sentence"] == ["They sailed.", "Sailed they."]
    assert table["label"] == ["1", "0"]
    assert list(table.columns) == ["sentence", "label"]


def test_delimiter_bom_crlf_and_gzip(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "\ufefftext;label\r\na;1\r\n")
    assert read(path, delimiter=";")["text"] == ["a"]
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(b"text,label\na,1\n"))
    assert read(packed)["label"] == ["1"]


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00\ufeff"), max_size=8)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_csv_reads_back_what_the_csv_module_writes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("p", "q"), *rows])
    path.write_bytes(out.getvalue().encode())
    table = read(path)
    assert list(zip(table["p"], table["q"], strict=True)) == rows


@given(st.lists(st.tuples(CELL, st.integers(-5, 5)), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_jsonl_and_parquet_read_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    lines = "\n".join(json.dumps({"p": p, "q": q}) for p, q in rows)
    (folder / "a.jsonl").write_text(lines, encoding="utf-8")
    columns = {"p": [p for p, _ in rows], "q": [q for _, q in rows]}
    parquet.write_table(pa.table(columns), folder / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        table = read(folder / name)
        assert table["p"] == columns["p"]
        assert list(table["q"]) == columns["q"]


def test_jsonl_does_not_guess_dates(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"t": "2020-01-01"}\n\n{"t": "x"}\n')
    assert read(path)["t"] == ["2020-01-01", "x"]


def test_parquet_nulls_stay_missing(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"y": [1.5, None], "t": ["a", None]}), tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet", columns={"label": "y", "t": "t"})
    assert table["label"] == [1.5, None]
    assert table["t"] == ["a", None]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.csv", "a,b\n1,2\n1,2,3\n", {}, "a.csv, row 2: 3 values where the header has 2: .1,2,3"),
        ("a.tsv", "x\n\n", {}, "a.tsv has no rows"),
        ("a.csv", "", {}, "a.csv has no rows"),
        ("a.csv", "a,a\n1,2\n", {}, r"\['a'\] stand twice"),
        ("a.csv", "a\n1\n", {"delimiter": ",,"}, "must be one character"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', {}, "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', {}, r"line 2: '\[1\]' is not a JSON object"),
        ("a.jsonl", '{"a": 1}\n{"b": 1}\n', {}, "a.jsonl, row 2: columns"),
        ("a.jsonl", "[" * 100_000, {}, "line 1: not JSON"),
        ("a.jsonl", "", {}, "a.jsonl has no rows"),
        ("a.parquet", "no", {}, "not a Parquet file"),
        ("a.csv.gz", "not gzip", {}, "a.csv.gz: cannot be read"),
    ],
)
def test_faults_of_files_are_named(
    tmp_path: Path, name: str, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, name, text), **options)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_bytes(b"t\n\xff\xfe\n")
        with pytest.raises(InputError, match=r"UTF-?8"):
            read(tmp_path / name)


def test_unknown_names_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "sentence,label\na,1\n")
    with pytest.raises(UnknownNameError, match=r"'sentense'; did you mean 'sentence'"):
        read(path, columns={"text": "sentense"})
    with pytest.raises(UnknownNameError, match=r"file suffix of a.txt; give `format`"):
        read(write(tmp_path, "a.txt", "a"))
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "b.csv")
    with pytest.raises(InputError, match="is a folder; leave `format` out"):
        read(tmp_path, format="csv")
    parquet.write_table(pa.table({"p": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UnknownNameError, match=r"column of a.parquet: 'q'"):
        read(tmp_path / "a.parquet", columns={"text": "q"})


@pytest.mark.usefixtures("untyped")
def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'cvs'; did you mean 'csv'"):
        read(tmp_path / "a.csv", format="cvs")  # type: ignore[arg-type]


@pytest.mark.skipif(not GLUE.is_dir(), reason="set GRAFTWORK_DATA to a folder with glue/")
@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("CoLA_dev.tsv", {"header": False, "columns": {"sentence": "3", "label": "1"}}, 1043),
        ("CoLA_train.tsv", {"header": False, "columns": {"sentence": "3", "label": "1"}}, 7250),
        ("sst2_dev.tsv", {}, 6735),
        ("sst2_train.tsv", {}, 60_614),
        ("RTE_dev.tsv", {}, 277),
        ("RTE_train.tsv", {}, 2490),
    ],
)
def test_glue_files_have_all_their_rows(name: str, options: dict[str, Any], rows: int) -> None:
    table = read(GLUE / name, **options)
    assert len(table) == rows
    assert len(set(table["label"])) == 2


def test_arrays_from_memory_and_files(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(3, 2, 2), np.array([0, 1, 0])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "xy.safetensors")
    tables = [
        arrays(x, y),
        arrays(torch.from_numpy(x), torch.from_numpy(y)),
        arrays(x.tolist(), y),
        arrays(tmp_path / "x.npy", tmp_path / "y.npy"),
        arrays(tmp_path / "xy.npz"),
        arrays(str(tmp_path / "xy.safetensors")),
    ]
    assert len({table.digest for table in tables}) == 1
    assert list(arrays(x).columns) == ["x"]
    renamed = read(tmp_path / "xy.npz", columns={"signal": "x"})
    assert np.array_equal(renamed["signal"], x)


def test_faults_of_arrays_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 2: shape \(1,\) differs from row 1's \(2,\)"):
        arrays([[1.0, 2.0], [1.0]])
    with pytest.raises(InputError, match="different lengths"):
        arrays(np.zeros((2, 2)), [1])
    with pytest.raises(InputError, match="no rows"):
        arrays(np.zeros((0, 2)))
    with pytest.raises(InputError, match="no rows"):
        arrays([])
    with pytest.raises(InputError, match="does not exist"):
        arrays(tmp_path / "x.npy")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="without pickle"):
        arrays(tmp_path / "objects.npy")
    (tmp_path / "x.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pickles are refused"):
        arrays(tmp_path / "x.pt")
    for name in ("bad.npz", "bad.npy", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no")
        with pytest.raises(InputError, match="not arrays that can be read"):
            arrays(tmp_path / name)
    np.savez(tmp_path / "z.npz", images=np.zeros((2, 2)))
    with pytest.raises(UnknownNameError, match=r"array of z.npz: 'x'"):
        arrays(tmp_path / "z.npz")


def pictures(folder: Path) -> Path:
    for label, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (folder / label).mkdir()
        for i in range(2):
            Image.new("RGB", (6, 4), colour).save(folder / label / f"{i}.png")
    return folder


def test_image_folder_reads_classes_in_order(tmp_path: Path) -> None:
    table = read(pictures(tmp_path))
    assert table["label"] == ["blue", "blue", "red", "red"]
    assert table["file"] == ["blue/0.png", "blue/1.png", "red/0.png", "red/1.png"]


def test_pictures_without_classes(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.JPG", ".hidden/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    table = image_folder(tmp_path, labelled=False)
    assert table["file"] == ["a/c.JPG", "b.png"]
    assert table["image"] == [b"a/c.JPG", b"b.png"]
    assert "label" not in table
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no pictures"):
        image_folder(tmp_path / "empty", labelled=False)


def test_faults_of_image_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        image_folder(tmp_path / "none")
    with pytest.raises(InputError, match="no subfolders"):
        image_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        image_folder(tmp_path)
