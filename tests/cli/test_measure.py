"""fewstep measure: images of a file against references of another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fewstep.cli.commands.measure import measure
from fewstep.errors import UserError
from fewstep.experiments.data import DATA, to_model
from fewstep.experiments.metrics import Recall

RAW = ["evaluation.extractor=raw", "evaluation.metrics=[fd,recall]"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Held-out digits as samples, training digits as references."""
    folder, digits = tmp_path_factory.mktemp("files"), DATA["digits"].load()
    samples, real = folder / "samples.npz", folder / "real.npz"
    np.savez(samples, arr_0=digits.test.x.permute(0, 2, 3, 1).numpy())
    np.savez(real, arr_0=digits.train.x.permute(0, 2, 3, 1).numpy())
    return samples, real


def test_it_measures_all_images_of_the_file(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, real = files
    written = tmp_path / "found.json"
    asked = [*RAW, f"evaluation.reference_file={real}"]
    measure(samples, asked, json=written, runs=str(tmp_path))
    digits = DATA["digits"].load()
    x, y = (to_model(s.x).flatten(1).double().numpy() for s in (digits.test, digits.train))
    a, b = np.cov(x.T), np.cov(y.T)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    fd = gap + np.trace(a + b) - 2 * np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    shown = capsys.readouterr().out
    found = json.loads(written.read_text())["metrics"]
    assert found[0]["value"] == pytest.approx(fd, rel=1e-6)
    assert f"{found[0]['value']:.6g}" in shown
    assert found[0]["metric"]["label"].startswith("FD-images-raw@597-vs-")
    assert found[0]["metric"]["id"] in shown
    assert found[1]["value"] == pytest.approx(Recall().of(x, y), abs=0.05)  # of all references


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (RAW, r"measure needs evaluation\.reference_file=FILE"),
        (["evaluation.reference_file=REAL", "evaluation.samples=9"], "597 images, and N is 9"),
        (["evaluation.reference_file=REAL", "evaluation.metrics=[memorisation]"], "training split"),
        (["evaluation.reference_file=REAL", "evaluation.metrics=[sfid]"], "auto has no spatial"),
        (["training.steps=3"], "unknown setting 'training.steps' of measure"),
        (["evaluation.protocol=adm"], "extractor inception, got evaluation.extractor=auto"),
    ],
)
def test_bad_input(files: tuple[Path, Path], more: list[str], says: str, tmp_path: Path) -> None:
    given = [setting.replace("REAL", str(files[1])) for setting in more]
    with pytest.raises(UserError, match=says):
        measure(files[0], given, json=tmp_path / "found.json", runs=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_file_without_images(tmp_path: Path) -> None:
    file = tmp_path / "floats.npz"
    none = np.zeros((0, 8, 8, 3), np.uint8)
    for arrays in ({"arr_0": np.zeros((2, 8, 8, 3))}, {"arr_0": none}, {"mu": np.zeros(3)}):
        np.savez(file, **arrays)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"floats\.npz holds no uint8 images arr_0"):
            measure(file, [*RAW, f"evaluation.reference_file={file}"], runs=str(tmp_path))
