"""Published rows stand beside ours only where every condition agrees, else apart, with reasons."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.synthetic_runs import Run, write_sweep
from rich.console import Console

from fewstep.analysis import load, summarise
from fewstep.analysis.summary_types import Conditions, Summary
from fewstep.errors import UserError
from fewstep.experiments.data.known import KNOWN
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.known_references import FILE as KNOWN_FILES
from fewstep.reports.content.published import COLUMNS, FILE, apart, beside, differences, published
from fewstep.reports.html import page as html
from fewstep.reports.markdown_page import page
from fewstep.reports.report import views_of
from fewstep.reports.tables import published_table, quality, terminal

FID = {"name": "FID", "label": "FID-cifar10-inception@50000", "id": "f1d", "samples": 50_000,
       "reference_samples": 50_000, "extractor": "inception"}  # fmt: skip
UNCONDITIONAL = {"name": "cifar10", "labels": False}
OURS = Conditions(
    metric="FID-cifar10-inception@50000", metric_name="FID", samples=50_000, data_is=("cifar10",),
    conditional=("none",), references=("train",), guidance_kinds=("none",),
)  # fmt: skip


def raw() -> list[dict[str, str]]:
    with FILE.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def cifar(root: Path, data: Mapping[str, Any] = UNCONDITIONAL, **about: Any) -> Summary:
    metric = {**FID, **about.pop("metric", {})}
    config = {"data": dict(data), **about.pop("config", {})}
    members = [
        Run("ours", s, {1: 4.0 + s, 4: 3.0}, metric=metric, config=config, **about)
        for s in range(2)
    ]
    return summarise(load(write_sweep(root, members, name="cifar")))


# ------------------------------------------------------------------------------------- beside ours


def test_a_row_stands_beside_ours_where_all_conditions_agree(tmp_path: Path) -> None:
    ours = cifar(tmp_path)
    rows = beside(ours.conditions)
    assert {"ECT", "MeanFlow", "SiD"} == {row.method for row in rows}
    shown = quality.markdown(ours, rows)
    assert "| *MeanFlow (SongUNet)* † | *2.92* | *–* |" in shown
    assert "Geng et al. 2025 (arXiv:2505.13447), Table 3" in shown
    assert "**4.50 ± 6.35** (2)" in shown  # a published number takes no rank
    assert r"\textit{MeanFlow (SongUNet)}\,$^\dagger$ & \textit{2.92}" in quality.latex(ours, rows)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal.table(ours, rows))
    assert "SiD †‡" in console.export_text()
    assert "‡: from a transcription, not read in the paper itself." in shown.replace("\\", "")
    assert "51.2M images): reference: the code takes fid50k\\_full, all training images" in shown
    assert r"\textit{SiD}\,$^\dagger$$^\ddagger$ &" in quality.latex(ours, rows)
    assert not beside(ours.conditions, "none")
    assert not beside(Conditions())


def test_one_condition_that_differs_keeps_every_row_away(tmp_path: Path) -> None:
    guided = {"guidance": 1.5}
    for i, (data, about) in enumerate((
        ({"name": "cifar10"}, {}),  # class-conditional
        ({"name": "images"}, {}),  # not declared
        (UNCONDITIONAL, {"metric": {"name": "FD"}}),
        (UNCONDITIONAL, {"metric": {"samples": 10_000}}),
        (UNCONDITIONAL, {"metric": {"reference": "test", "reference_samples": 10_000}}),
        (UNCONDITIONAL, {"metric": {"reference_samples": 45_000}}),
        (UNCONDITIONAL, {"metric": {"reference": "file"}}),
        ({"name": "cifar10"}, {"cell": guided}),
    )):  # fmt: skip
        assert not beside(cifar(tmp_path / str(i), data, **about).conditions), (data, about)


def test_conditions_of_a_table_are_those_of_its_runs(tmp_path: Path) -> None:
    labelled = {"name": "cifar10"}
    plain = cifar(tmp_path / "a", labelled).conditions
    assert (plain.conditional, plain.guidance_kinds) == (("classes",), ("none",))
    scaled = cifar(tmp_path / "b", labelled, cell={
        "guidance": 1.5, "sampler": {"solver": "euler", "guidance_interval": "0.1-0.7"}
    }).conditions  # fmt: skip
    assert scaled.guidance_kinds == ("scale 1.5 in [0.1, 0.7]",)
    unknown = cifar(tmp_path / "c", labelled, config={"objective": {"name": "x", "guidance": 1.0}})
    assert unknown.conditions.guidance_kinds == ("unknown",)  # of a version that kept no record
    taught = cifar(tmp_path / "d", labelled, teacher="fm-s0").conditions
    assert taught.guidance_kinds == ("unknown",)
    pair = [Run("a", 0, {1: 4.0}, metric=FID, config={"data": d, "training": {"steps": 500}})
            for d in (labelled, UNCONDITIONAL)]  # fmt: skip
    pair[1] = replace(pair[1], title="b")
    mixed = summarise(load(write_sweep(tmp_path / "e", pair))).conditions
    assert set(mixed.conditional) == {"classes", "none"}
    assert not beside(mixed)


def test_a_known_reference_file_is_recognised_by_its_hash(tmp_path: Path) -> None:
    metric = {"reference": "file", "reference_sha256": "ab" * 32}
    assert cifar(tmp_path, metric=metric).conditions.references == ("unknown",)
    write_json(tmp_path / KNOWN_FILES, {"edm_cifar10": {"sha256": "ab" * 32}})
    known = cifar(tmp_path, metric=metric).conditions
    assert known.references == ("train",)  # EDM's file has the statistics of the training images
    assert beside(known) == beside(OURS)
    images = cifar(tmp_path, metric={**metric, "reference_moments": "of arr_0"}).conditions
    assert images.references == ("edm_cifar10, its images alone",)
    assert not beside(images)


def test_no_row_stands_beside_runs_of_other_conditions() -> None:
    """All rows, read anew from the file, against many made-up tables."""
    rows, found = raw(), 0
    same = {"edm_cifar10": "train"}
    choices = product(
        [*((name,) for name in KNOWN), ("unknown",), ("cifar10", "imagenet_256"), ()],
        [("classes",), ("none",), ("vectors",), ("unknown",), ("classes", "none"), ()],
        ["FID", "FD", None],
        [50_000, 10_000],
        [*sorted({(same.get(r["reference"], r["reference"]),) for r in rows}), ("train", "x")],
        [*sorted({(r["guidance"],) for r in rows}), ("none", "scale 2")],
    )
    tables = [
        ((r["data"],), (r["conditional"],), "FID", 50_000,
         (same.get(r["reference"], r["reference"]),), (r["guidance"],))
        for r in rows
    ]  # fmt: skip
    tables = [*dict.fromkeys(tables), *random.Random(0).sample(list(choices), 300)]
    for data, conditional, metric, samples, references, guidance in tables:
        ours = Conditions(
            metric_name=metric, samples=samples, data_is=data, conditional=conditional,
            references=references, guidance_kinds=guidance,
        )  # fmt: skip
        expected = {
            (r["method"], r["network"], r["source"], r["table"])
            for r in rows
            if (r["data"],) == data and (r["conditional"],) == conditional and r["metric"] == metric
            and int(r["samples"]) == samples and r["extractor"] == "inception"
            and (same.get(r["reference"], r["reference"]),) == references
            and (r["guidance"],) == guidance
            and not {"unknown", "guided"} & {r["reference"], r["conditional"], r["guidance"]}
        }  # fmt: skip
        shown = beside(ours)
        assert {(r.method, r.network, r.source, r.table) for r in shown} == expected
        found += len(shown)
        if conditional != ("none",):
            assert all(row.conditional != "none" for row in shown)
    assert found


def test_each_difference_is_named() -> None:
    (row,) = (r for r in beside(OURS) if r.method == "MeanFlow")
    for change, said in (
        ({"data_is": ("imagenet_64",)}, "data set: cifar10, here imagenet_64"),
        ({"conditional": ("classes",)}, "classes: unconditional, here class-conditional"),
        ({"metric_name": "FD"}, "metric: FID, here FD"),
        ({"samples": 10_000}, "samples: 50,000, here 10,000"),
        ({"references": ("edm_ffhq_64",)}, "reference statistics: train, here edm_ffhq_64"),
        ({"guidance_kinds": ("scale 2",)}, "guidance: none, here scale 2"),
        ({"data_is": ("imagenet_64",)}, "resolution: 32 pixels, here 64 pixels"),
    ):  # fmt: skip
        assert said in differences(row, replace(OURS, **change))
    assert differences(row, OURS) == ()
    assert "guidance: unknown, here unknown" in differences(
        replace(row, guidance="unknown"), replace(OURS, guidance_kinds=("unknown",))
    )


# ------------------------------------------------------------------------------------------- apart


def test_the_others_stand_in_a_table_that_says_what_differs(tmp_path: Path) -> None:
    ours = cifar(tmp_path, {"name": "cifar10"}).conditions
    rows = apart(ours)
    assert {row.data for row in rows} == {"cifar10"}
    assert not apart(ours, "none")
    alike = cifar(tmp_path / "alike").conditions
    assert "SiD" not in {row.method for row in apart(alike, steps=[1, 4])}
    others = apart(alike, steps=[16])  # what may stand in our table, but has nothing in it
    told = {r[0]: r[-2] for r in published_table.table(others, alike).rows}["SiD (two-phase) ‡"]
    assert f"({told}) {published_table.OTHER_STEPS}" in published_table.table(others, alike).note
    assert not apart(replace(ours, metric_name="FD"))
    shown = published_table.table(rows, ours)
    assert "All rows differ in: classes: unconditional, here class-conditional." in shown.note
    assert "(a) reference statistics: unknown, here train." in shown.note
    differs = {row[0]: row[-2] for row in shown.rows}
    assert differs["sCT (DDPM++) (two-phase)"] == "a"
    assert differs["SiD (two-phase) ‡"] == "–"
    text = published_table.markdown(rows, ours)
    assert "version later than the first, which has 2.97 at 1 step" in text
    assert "| 2.85 | 2.06 |" in text
    lines = list(csv.DictReader(io.StringIO(published_table.csv(rows, ours))))
    assert all("classes: unconditional, here class-conditional" in r["differences"] for r in lines)


def test_a_data_set_may_be_named(tmp_path: Path) -> None:
    frame = load(write_sweep(tmp_path, [Run("FM", s, {1: 9.0 + s}) for s in range(2)]))
    ours = summarise(frame).conditions
    rows = apart(ours, "celeba_hq_256")
    assert [row.values[1] for row in rows if row.method == "Shortcut"] == ["20.5"]
    shown = published_table.markdown(rows, ours)
    name = "| Flow matching (DiT-B/2, 26.24M images) (one-phase) ‡ |"
    assert f"{name} (280.5) | (63.3) | 7.3 |" in shown
    assert "FID of 50,000 samples, as printed. In parentheses: steps that the method was" in shown
    assert "‡: from a transcription" in shown
    more = published_table.markdown(apart(ours, "imagenet_64"), ours)
    assert "Network evaluations that are not the number of steps: TrigFlow takes 63 in 32." in more
    latex = published_table.latex(rows, ours)
    for told in (shown.replace("\\", ""), latex.replace("\\", "")):  # it may stand alone
        assert "Published numbers of celeba_hq_256. Not comparable with the table of our" in told
    assert shown.index("(one-phase)") < shown.index("(two-phase)")
    assert r"$\ddagger$" in latex
    assert "U+" not in latex
    with pytest.raises(UserError, match=r"unknown data set with published .*'celeba_hq_256'"):
        apart(ours, "celeba")
    (view,) = views_of(frame, {}, published="celeba_hq_256")
    for whole in (page(view, []), html.page("x", [view], frame)):
        assert whole.count("Not comparable with the table of our runs") == 1
        assert "280.5" in whole
    assert "280.5" not in quality.markdown(view.summary, view.published)


def test_every_value_is_printed_under_its_letter() -> None:
    assert [published_table._letters(i) for i in (0, 25, 26, 51, 52)] == [
        "a",
        "z",
        "aa",
        "az",
        "ba",
    ]
    for data in {row.data for row in published()}:
        rows = apart(OURS, data)
        letters = [row[-2] for row in published_table.table(rows, OURS).rows]
        assert len(letters) == len(rows)


# -------------------------------------------------------------------------------------- the file

GOOD = {"group": "one-phase", "method": "A", "data": "cifar10", "metric": "FID",
        "extractor": "inception", "samples": "50000", "reference": "train", "conditional": "none",
        "guidance": "none", "network": "unknown", "parameters": "unknown", "images_seen": "unknown",
        "steps": "1", "evaluations": "1", "value": "2.5", "unintended": "0", "source": "s",
        "version": "unknown", "table": "", "checked": "source", "checked_by": "me",
        "note": ""}  # fmt: skip


def written(file: Path, *rows: Mapping[str, str]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_rows_without_conditions_and_bad_values_are_refused(tmp_path: Path) -> None:
    (row,) = published(written(tmp_path / "good.csv", GOOD))
    assert differences(row, OURS) == ()
    bad = tmp_path / "bad.csv"
    bad.write_text("method,value\n")
    with pytest.raises(UserError, match="must have the columns group, method"):
        published(bad)
    required = [c for c in COLUMNS if c not in ("table", "note")]
    changes = [
        *(({name: ""}, f"line 2: {name} is empty") for name in required),
        ({"group": "three-phase"}, "'A' on 'cifar10': unknown group 'three-phase'"),
        ({"data": "cifar"}, "unknown data 'cifar'; did you mean 'cifar10'"),
        ({"conditional": "yes"}, "unknown conditional 'yes'"),
        ({"reference": "val"}, "unknown reference 'val'"),
        ({"guidance": "1.5"}, "guidance '1.5' is none of the forms"),
        ({"guidance": "scale 2"}, "guidance 'scale 2' of an unconditional model"),
        ({"value": "2,5"}, "could not convert string to float"),
        ({"value": "nan"}, "nan in 1 steps of 1 evaluations is no value"),
        ({"value": "-3"}, "-3 in 1 steps"),
        ({"steps": "0"}, "in 0 steps of 1"),
        ({"steps": "2"}, "in 2 steps of 1"),
        ({"samples": "0"}, "samples must be at least 2, got 0"),
        ({"metric": "FDI"}, "unknown metric 'FDI'"),
        ({"extractor": "incpetion"}, "extractor 'incpetion' is not inception"),
        ({"reference": "adm_imagenet_256"}, "reference 'adm_imagenet_256' is of imagenet_256"),
        ({"checked": "yes"}, "unknown checked 'yes'"),
        ({"images_seen": "many"}, "invalid literal"),
    ]
    for i, (change, why) in enumerate(changes):
        with pytest.raises(UserError, match=why):
            published(written(tmp_path / f"{i}.csv", {**GOOD, **change}))
    with pytest.raises(UserError, match="line 3 is of the same number as line 2"):
        published(written(tmp_path / "twice.csv", GOOD, {**GOOD, "value": "2.6"}))


def test_the_numbers_are_there() -> None:
    """A few of each data set, and what was once wrong."""
    rows = published()
    assert 80 <= len(rows) <= 120
    frame = pd.DataFrame(raw())
    for method, data, network, values in (
        ("sCT", "cifar10", "DDPM++", {"1": "2.85", "2": "2.06"}),
        ("sCT", "imagenet_512", "EDM2-XXL", {"1": "4.29", "2": "3.76"}),
        ("sCD", "imagenet_512", "EDM2-S", {"1": "3.07", "2": "2.50"}),
        ("MeanFlow", "imagenet_256", "DiT-XL/2", {"1": "3.43", "2": "2.93"}),
        ("Shortcut", "imagenet_256", "DiT-XL/2", {"128": "3.8", "4": "7.8", "1": "10.6"}),
        ("iCT-deep", "imagenet_64", "unknown", {"1": "3.25", "2": "2.77"}),
        ("CTM", "cifar10", "unknown", {"1": "1.98", "2": "1.87"}),
        ("TiM", "imagenet_256", "XL/2", {"1": "6.14"}),
    ):
        of = frame[(frame.method == method) & (frame.data == data) & (frame.network == network)]
        assert dict(zip(of.steps, of.value, strict=True)) == values
    assert "2.97" not in {value for row in rows for value in row.values.values()} - {
        value for row in rows if row.data == "imagenet_64" for value in row.values.values()
    }
