"""A run belongs to its data: by content, wherever the files are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import taught
from PIL import Image

from fewstep.analysis import load, summarise
from fewstep.cli.commands.diagnose import diagnose
from fewstep.cli.commands.evaluate import absolute
from fewstep.cli.views.status_table import data_lines
from fewstep.errors import UserError
from fewstep.experiments.config.data_location import load_data
from fewstep.experiments.config.run_config import Override, amend, compose
from fewstep.experiments.data import Dataset, Split
from fewstep.experiments.data.identity import data_record
from fewstep.experiments.evaluation.diagnostics import diagnose_run
from fewstep.experiments.run import RunFailed, load_config, prepare, requested, run
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.validation import check
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.plan import plan
from fewstep.sweeps.status import sweep_status

SETTINGS: list[Override] = [
    "data=image_folder",
    "data.size=8",
    "backbone=dit_digits",
    "backbone.depth=1",
    "backbone.width=16",
    "backbone.heads=2",
    "training.batch_size=8",
    "training.steps=4",
    "training.validate_every=0",
    "evaluation.steps=[1]",
    "evaluation.extractor=raw",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def images(folder: Path, seed: int = 0, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Ten images of each class in ``folder``/images, those of a class by its place and ``seed``."""
    for i, name in enumerate(classes):
        target = folder / "images" / name
        target.mkdir(parents=True, exist_ok=True)
        for j in range(10):
            rng = np.random.default_rng([seed, i, j])
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                target / f"{j}.png"
            )
    return folder


def finished(*overrides: Override) -> RunDirectory:
    directory = prepare(compose([*SETTINGS, *overrides]))
    run(directory)
    return RunDirectory(directory.path.absolute())


def dataset(**changes: object) -> Dataset:
    x = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    import torch

    split = Split(torch.from_numpy(x), torch.tensor([0, 1]))
    return Dataset(**{"name": "a", "train": split, "test": split, "num_classes": 2, **changes})  # type: ignore[arg-type]


def test_the_record_tells_content_and_classes_apart_but_not_names_of_data_sets() -> None:
    known = data_record(dataset())["sha256"]
    assert data_record(dataset(name="b"))["sha256"] == known
    half = Split(dataset().train.x[:1], dataset().train.y[:1])  # type: ignore[index]
    for changes in (
        {"num_classes": 3},
        {"class_names": ("cat", "dog")},
        {"class_names": ("dog", "cat")},
        {"train": half},
        {"test": half},
    ):
        assert data_record(dataset(**changes))["sha256"] != known
    names = [data_record(dataset(class_names=n))["sha256"] for n in (("a", "b"), ("b", "a"))]
    assert names[0] != names[1]


def replaced(data: Path) -> str:
    images(data, seed=1)
    return "other training examples"


def renamed(data: Path) -> str:
    (data / "images" / "cat").rename(data / "images" / "wolf")
    return "other classes"


def added(data: Path) -> str:
    images(data, classes=("cat", "dog", "emu"))
    return "other classes"


@pytest.mark.parametrize("change", [replaced, renamed, added])
def test_a_run_on_data_that_changed_is_refused_by_every_command(here: Path, change: object) -> None:
    data = images(here / "data")
    directory = prepare(compose([*SETTINGS, "evaluation.steps=[]"]))
    run(directory)
    (directory.path / "result.json").unlink()  # as one that was stopped before its end
    why = change(data)  # type: ignore[operator]
    with pytest.raises(RunFailed, match=rf"bad_data: run {directory.key} is trained on .*{why}"):
        run(directory)
    config = load_config(directory)
    with pytest.raises(UserError, match=why):
        load_data(config, directory)
    with pytest.raises(UserError, match=why):
        diagnose_run(directory, config, 8)


def sweep(here: Path, seeds: int) -> definition.Sweep:  # type: ignore[name-defined]
    lines = ["name: mix", "axes: {objective: [flow_matching]}", f"seeds: {seeds}"]
    (here / "s.yaml").write_text("\n".join(lines))
    return definition.load(str(here / "s.yaml")).with_overrides(SETTINGS)


def test_a_sweep_is_not_continued_on_other_data_nor_a_table_made_of_both(here: Path) -> None:
    data = images(here / "data")
    planned = plan(sweep(here, 1))
    planned.write()
    run(planned.runs[0].directory)
    images(data, seed=1)
    with pytest.raises(UserError, match=r"sweep mix: run \w+ is trained on .*, but those in"):
        plan(sweep(here, 2))
    assert plan(sweep(here, 1)).counts()["cached"] == 1  # nothing to do, on whatever data
    first = planned.runs[0].directory
    first.path.rename(here / "aside")  # two machines that know nothing of each other
    both = plan(sweep(here, 2))
    both.write()
    run(both.runs[1].directory)
    shutil.rmtree(first.path)
    (here / "aside").rename(first.path)
    versions = [r.directory.data()["sha256"][:12] for r in both.runs]  # type: ignore[index]
    with pytest.raises(UserError) as refusal:
        summarise(load(first.path.parent))
    assert all(version in str(refusal.value) for version in versions)
    assert versions[0] != versions[1]


def test_a_sweep_is_refused_on_other_data_before_it_trains_on_them(here: Path) -> None:
    """Also where other seeds are chosen, and where the other data lie elsewhere."""
    images(here / "data")
    planned = plan(sweep(here, 1))
    planned.write()
    run(planned.runs[0].directory)
    images(here / "other", seed=1)
    for overrides in (["seeds=[7]"], ["seeds=2"]):
        with pytest.raises(UserError, match=r"sweep mix: run \w+ is trained on .*/other are"):
            plan(sweep(here, 1).with_overrides([*overrides, "data.root=other"]))
    shutil.copytree(here / "data", here / "copy")
    assert plan(sweep(here, 1).with_overrides(["seeds=2", "data.root=copy"])).counts()["new"] == 1
    (here / "runs/mix" / planned.runs[0].directory.key / "data.json").unlink()  # of fewstep 0.2
    both = plan(sweep(here, 2))
    both.write()
    run(both.runs[1].directory)
    with pytest.warns(UserWarning, match="which data 1 run is trained on is not recorded"):
        summarise(load(both.directory))
    lines = data_lines(sweep_status(both.directory))
    assert sum("not recorded" in line for line in lines) == 1
    assert len(lines) == 2


def test_a_root_that_is_named_counts_and_a_folder_that_is_gone_does_not(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(here / "data")
    monkeypatch.setenv("FEWSTEP_DATA", str(images(tmp_path / "env", seed=1)))
    assert compose([*SETTINGS]).data.root == str(tmp_path / "env")  # type: ignore[attr-defined]
    named = compose([*SETTINGS, "data.root=data"])  # the default, but said
    assert Path(named.data.root) == Path("data")  # type: ignore[attr-defined]
    assert named.key == compose(SETTINGS).key
    directory = finished(("data.root", str(here / "data")))
    shutil.move(here / "data", tmp_path / "elsewhere")
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "elsewhere"))
    assert len(load_data(load_config(directory), directory).train) == 18


def test_a_student_learns_from_the_data_of_its_teacher(here: Path) -> None:
    data = images(here / "data")
    overrides = taught(here / "runs", "progressive_distillation", *SETTINGS)
    config = compose([*SETTINGS, *overrides])
    student = prepare(config)
    teacher = RunDirectory(Path(config.values["teacher"]))
    spec = teacher.spec() or {}
    del spec["config"]["data"]["splits"]  # as of fewstep 0.2
    spec["config"]["data"]["cache"] = "elsewhere"
    write_json(teacher.path / "spec.json", spec)
    check([config])
    images(data, seed=1)
    with pytest.raises(UserError, match=r"teacher of .* is trained on .* other training examples"):
        check([config])  # before it begins
    with pytest.raises(RunFailed, match=r"teacher of .* is trained on .* other training examples"):
        run(student)


def test_a_finished_student_needs_its_teacher_no_more(here: Path) -> None:
    """Not even one that was trained anew on other data, in the same folder."""
    data = images(here / "data")
    settings = [*SETTINGS, "training.label_dropout=0", "evaluation.samples=2"]
    config = compose([*settings, *taught(here / "runs", "progressive_distillation", *settings)])
    student = prepare(config)
    run(student)
    teacher = RunDirectory(Path(config.values["teacher"]))
    record = teacher.data() or {}
    teacher.write("data", {**record, "sha256": "0" * 64, "train_sha256": "0" * 64})
    prepare(amend(config, ["evaluation.steps=[2]"]))
    run(student)
    assert len(student.cells()) == 2
    assert data.exists()


def test_paths_that_are_given_now_are_relative_to_here(here: Path, tmp_path: Path) -> None:
    """Also those in extractors' settings, but for names of the hub, which are no paths."""
    (here / "ae").mkdir()
    decoded = {"name": "decoded", "autoencoder": "ae", "extractor": "raw"}
    key = "evaluation.extractor"
    assert absolute(key, [decoded, "ae"], tmp_path) == (
        key, [{**decoded, "autoencoder": str(here / "ae")}, "ae"],
    )  # fmt: skip
    assert absolute(key, decoded, here) == (key, decoded)  # where the run was made
    hub = {"name": "decoded", "autoencoder": "some/name", "extractor": {"name": "dinov2"}}
    assert absolute(key, hub, tmp_path) == (key, hub)
    assert absolute("data.root", "x", tmp_path) == ("data.root", str(here / "x"))


def test_a_folder_that_is_gone_is_found_in_the_root_and_keeps_its_name(
    here: Path, tmp_path: Path
) -> None:
    images(tmp_path / "old")
    absolute = finished(("data.folder", str(tmp_path / "old" / "images")))
    dot = finished(("data.root", str(tmp_path / "old" / "images")), "data.folder=.", "seed=1")
    before = [data_record(load_data(load_config(r), r)) for r in (absolute, dot)]
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = amend(load_config(absolute), [("data.root", str(tmp_path / "new"))])
    assert data_record(load_data(moved, absolute)) == before[0]
    with pytest.raises(UserError, match=rf"no folder {tmp_path}/old/images, nor .*/images \(data"):
        load_data(amend(load_config(absolute), [("data.root", str(here))]), absolute)
    (tmp_path / "new" / "images").rename(tmp_path / "new" / "renamed")
    moved = amend(load_config(dot), [("data.root", str(tmp_path / "new" / "renamed"))])
    assert data_record(load_data(moved, dot)) == before[1]  # by its first name


def test_data_may_be_elsewhere_as_long_as_they_are_the_same(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root below the working directory, another working directory, another root, another copy."""
    images(here / "data")
    directory = finished()
    before = data_record(load_data(load_config(directory), directory))
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    images(tmp_path / "else" / "data", seed=1)  # is not taken for it
    assert data_record(load_data(load_config(directory), directory)) == before
    shutil.move(here / "data", tmp_path / "scratch")
    with pytest.raises(UserError, match="no folder"):
        load_data(load_config(directory), directory)
    moved = amend(load_config(directory), [("data.root", str(tmp_path / "scratch"))])
    assert moved.key == directory.key
    assert data_record(load_data(moved, directory)) == before
    assert diagnose(directory.key, 8, ["data.root=../scratch"], str(here / "runs")) == 0
    with pytest.raises(UserError, match=r"unknown setting 'data\.size' of diagnose"):
        diagnose(directory.key, 8, ["data.size=4"], str(here / "runs"))
    with monkeypatch.context() as patch:
        patch.setenv("FEWSTEP_DATA", str(tmp_path / "scratch"))
        assert data_record(load_data(load_config(directory), directory)) == before
        patch.setenv("FEWSTEP_DATA", str(tmp_path / "else" / "data"))
        with pytest.raises(UserError, match="other training examples"):
            load_data(load_config(directory), directory)
    prepare(amend(moved, [("runs", str(here / "runs"))]))  # as evaluate does: it is remembered
    assert requested(directory).data.root == str(tmp_path / "scratch")  # type: ignore[attr-defined]
    assert data_record(load_data(load_config(directory), directory)) == before


def test_a_project_may_be_moved_as_a_whole(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(here / "data")
    directory = finished()
    monkeypatch.chdir(tmp_path)
    here.rename(tmp_path / "moved")
    there = RunDirectory(tmp_path / "moved" / directory.path.relative_to(here))
    assert there.made_in() == tmp_path / "moved"
    assert len(load_data(load_config(there), there).train) == 18


def test_a_run_of_version_0_2_has_no_record_and_gets_one_when_it_resumes(here: Path) -> None:
    images(here / "data")
    directory = finished()
    for name in ("data", "result"):
        (directory.path / f"{name}.json").unlink()
    run(directory)
    assert directory.data() is not None
    (directory.path / "data.json").unlink()
    images(here / "data", seed=1)
    load_data(load_config(directory), directory)  # nothing is known of it
