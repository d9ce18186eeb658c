"""fewstep extractor train, reference and bias: what they write, and that they write it once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import times_changed, tiny

from fewstep import public_data
from fewstep.cli.commands.evaluate import bias
from fewstep.cli.commands.reference import reference, train_extractor
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.data import DATA
from fewstep.experiments.extractors.cnn import CNN
from fewstep.experiments.extractors.raw_pca import Raw
from fewstep.experiments.metrics.reference import Reference
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store import known_references
from fewstep.experiments.store.json_files import CorruptFile
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.public_data import KnownReference


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with a cell, and its root two folders above it."""
    few = ("evaluation.steps=[1]", "evaluation.metrics=[fd,coverage]", "evaluation.sample_sets=2")
    directory = prepare(tiny(tmp_path_factory.mktemp("root"), *few))
    run(directory)
    return directory


def test_an_extractor_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["data=digits", "extractor.steps=20", "extractor.width=8"]
    train_extractor(asked, str(tmp_path))
    first = capsys.readouterr().out
    (file,) = (tmp_path / "_cache" / "extractors").glob("digits-cnn-*.safetensors")
    assert "train 20/20" in first
    assert str(file) in first
    assert "evaluation.extractor={name: cnn, steps: 20, width: 8}" in first
    before = times_changed(tmp_path)
    train_extractor(asked, str(tmp_path))
    again = capsys.readouterr().out
    assert "steps/s" not in again
    assert again.splitlines()[0] in first.splitlines()  # accuracy
    after = times_changed(tmp_path)
    assert {n: t for n, t in after.items() if not n.endswith(".lock")}.items() <= before.items()
    os.truncate(file, 100)
    digits = compose(["data=digits"]).data.load()
    extractor = CNN(steps=20, width=8)
    with pytest.raises(CorruptFile, match=rf"{file} is damaged \(.*\): remove it, and it is made"):
        extractor.prepare(digits, tmp_path / "_cache")
    reference = Reference(Raw().prepare(digits, tmp_path), digits, tmp_path)
    reference.rows(9)
    (rows,) = (tmp_path / "references").glob("*-rows9.npy")
    os.truncate(rows, 100)
    with pytest.raises(CorruptFile, match=r"-rows9\.npy is damaged"):
        reference.rows(9)


def test_reference_files(tmp_path: Path) -> None:
    file = tmp_path / "test.npz"
    pca = ["extractor=pca", "extractor.dimension=3"]
    root = str(tmp_path)
    reference(["data=digits", *pca, "split=test", f"output={file}"], runs=root)
    with np.load(file) as held:
        assert held["mu"].shape == (3,)
        assert held["sigma"].shape == (3, 3)
        assert int(held["n"]) == 597
    reference(["data=digits", f"output={file}"], images=True, runs=root)
    with np.load(file) as held:
        images = DATA["digits"].load().train.x
        assert np.array_equal(held["arr_0"][..., 0], images[:, 0].numpy())
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["test.npz"]


@pytest.fixture
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two known files that fit into a test; nobody's hashes are known."""
    arrays = {"mu": (3,), "sigma": (3, 3)}
    both = KnownReference("both.npz", "cifar10", {**arrays, "arr_0": (2, 4, 4, 3)}, "someone")
    stats = KnownReference("stats.npz", "cifar10", arrays, "someone")
    monkeypatch.setattr(public_data, "REFERENCES", {"both": both, "stats": stats})
    monkeypatch.setattr(known_references, "REFERENCES", public_data.REFERENCES)


def known_file(path: Path, scale: float = 1.0, **arrays: np.ndarray) -> Path:
    np.savez(path, mu=np.zeros(3), sigma=scale * np.eye(3), **arrays)
    return path


@pytest.mark.usefixtures("small_references")
def test_files_of_other_projects_are_known_by_what_they_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    stats = known_file(tmp_path / "a.npz")
    both = known_file(tmp_path / "b.npz", arr_0=images, more=np.ones(2))
    root = tmp_path / "runs"

    def known(*pairs: str) -> str:
        reference(list(pairs), known=True, runs=str(root))
        return capsys.readouterr().out

    assert "both.npz" in known()
    assert not root.exists()  # a list writes nothing
    sha256 = hashlib.sha256(stats.read_bytes()).hexdigest()
    assert sha256[:12] in known(f"stats={stats}", f"both={both}")
    noted = json.loads((root / "known_references.json").read_text())
    assert noted["stats"] == {"sha256": sha256, "file": str(stats), "bytes": stats.stat().st_size}
    assert known_references.names_by_sha256(root)[sha256] == "stats"
    other = known_file(tmp_path / "c.npz", 2.0)
    for pair, why in (
        (f"stat={stats}", "unknown reference file 'stat'; did you mean 'stats'"),
        (str(stats), "reference --known takes NAME=FILE"),
        (f"both={stats}", r"a.npz is not both: it has no array arr_0 \(it has mu, sigma\)"),
        (f"stats={both}", r"it has images \(arr_0\), stats has statistics alone"),
        (f"stats={other}", "stats is known by sha256 .*: of two files one is another"),
        (f"both={known_file(tmp_path / 'd.npz', arr_0=images[:1])}", r"shape \(1, 4, 4, 3\)"),
        ("stats=nowhere.npz", "no file nowhere.npz"),
        (f"stats={known_file(tmp_path / 'e.npz', np.nan)}", "features are not finite"),
        (f"stats={known_file(tmp_path / 'f.npz', -1.0)}", "sigma is no covariance"),
        (f"stats={known_file(tmp_path / 'g.npz', extractor='cnn')}", "wrote it, of cnn features"),
    ):
        with pytest.raises(UserError, match=why):
            known(pair)
    assert json.loads((root / "known_references.json").read_text()) == noted
    with pytest.raises(UserError, match="give one of them"):
        reference([], images=True, known=True, runs=str(root))


@pytest.mark.parametrize(
    ("overrides", "images", "says"),
    [
        (["data=digits"], False, "reference needs output=FILE"),
        (["data=digits", "output=x.txt"], False, "ending in .npz"),
        (["data=digits", "output=/nowhere/x.npz"], False, "in an existing folder"),
        (["data=digits", "output=x.npz", "split=dev"], False, "unknown split 'dev'"),
        (["data=digits", "output=x.npz", "steps=3"], False, "unknown setting 'steps' of reference"),
        (["data=gaussians", "output=x.npz"], True, "gaussians is not made of images"),
        (["data=gaussians", "output=x.npz", "extractor=cnn"], False, "needs labelled images"),
    ],
)
def test_a_refused_reference_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], images: bool, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        reference(overrides, images, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_bias_of_a_run(done: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(done.path.parent.parent)
    small = "evaluation.extractor={name: pca, dimension: 4}"
    bias(done.key, points=5, overrides=[small], runs=root)
    shown = capsys.readouterr().out
    (file,) = done.diagnostics.glob("bias-steps0001-ema-*.json")
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(file.read_text())
    assert told["metric"]["label"] == "FD-digits-pca4@597"
    samples, real = told["curves"]
    assert samples["sizes"] == real["sizes"] == [60, 194, 328, 463, 597]
    assert real["limit"] < real["values"][-1] < real["values"][0]
    assert f"{samples['limit']:.4g}" in shown
    few = ["evaluation.extractor=raw", "evaluation.samples=100"]
    with pytest.raises(UserError, match="at least 320 samples in 64 dimensions, got 100"):
        bias(done.key, points=5, overrides=few, runs=root)


def test_what_analysis_sees_of_sample_sets_and_metrics(done: RunDirectory) -> None:
    """One training, several drawings: spread over sample sets is sampling's, over seeds both's."""
    from fewstep.analysis import load, summarise

    frame = load(done.path.parent)
    assert len(frame) == 4
    assert sorted(zip(frame["metric_name"], frame["sample_set"], strict=True)) == [
        ("FD", 0), ("FD", 1), ("coverage", 0), ("coverage", 1)]  # fmt: skip
    assert set(zip(frame["metric_name"], frame["better"], strict=True)) == {
        ("FD", "lower"),
        ("coverage", "higher"),
    }
    sets = frame[frame["metric_name"] == "FD"].set_index("sample_set")
    assert sets.loc[0, "value"] != sets.loc[1, "value"]
    for same in ("key", "seed", "metric_id", "steps", "sampler", "weights", "floor"):
        assert sets[same].nunique() == 1
    assert summarise(frame, sample_set=1).conditions.metric_name == "FD"  # unless told otherwise
    chosen = summarise(frame, sample_set=1, metric="Coverage").conditions
    assert (chosen.metric_name, chosen.better) == ("coverage", "higher")
