"""Bad input through the real command line: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import TINY, fewstep, succeed, tree

from fewstep.cli.app import main
from fewstep.errors import MANY, UserError, unknown
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.run import prepare


def refused(*arguments: object, cwd: Path, told: str | list[str]) -> None:
    """The command says ``told`` in one line of stderr, exits with 2 and changes no file."""
    before = tree(cwd)
    done = fewstep(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stdout + done.stderr
    assert_one_line(done.stdout, done.stderr, told)
    assert tree(cwd) == before


def assert_one_line(out: str, err: str, told: str | list[str]) -> None:
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for part in [told] if isinstance(told, str) else told:
        assert part in err


def test_train(tmp_path: Path) -> None:
    told = ["unknown objective 'scmm'", "did you mean 'scm'? (", " choices)"]
    refused("train", "training.steps=3", "objective=scmm", cwd=tmp_path, told=told)


# The same main(), in this process: importing torch again for each would take minutes.
MORE: dict[str, str | list[str]] = {
    "train training.step=5": "unknown setting 'training.step'; did you mean 'training.steps'?",
    "train training.steps=many": "training.steps: Value 'many'",
    "train training.steps=-1": "training.steps must be at least 1, got -1",
    "train data=mnist": [
        "mnist not found: looked in /",
        "/data/mnist, ",
        "train-images-idx3-ubyte",
    ],
    "train runs=file/runs": ["cannot write to run root '/", "/file/runs'", "runs=DIR"],
    "train runs=/proc/runs": "cannot write to run root '/proc/runs'",
    "train backbone=mlp": "backbone mlp needs vectors (D,), got data of shape (1, 8, 8)",
    "train training.device=gpu": "unknown training.device 'gpu'; did you mean 'cpu'?",
    "train backbone=dit_digit": "did you mean 'dit_digits'?",
    "train data=digit": "unknown data set 'digit'; did you mean 'digits'?",
    "train trainng.steps=5": "unknown setting 'trainng.steps'; did you mean 'training.steps'?",
    "train objektive=scm": ["did you mean 'objective'? (", " choices)\n"],
    "train training.steps=0": "training.steps must be at least 1, got 0",
    "train training.steps=1.5": "training.steps: Value '1.5'",
    "train training.lr=0": "training.lr must be greater than 0, got 0",
    "train evaluation.steps=[0]": "evaluation.steps must be at least 1, got 0",
    "train evaluation.steps=4": "evaluation.steps takes a list, written [a,b], got 4",
    "train evaluation.extractor=inceptio": "unknown evaluation.extractor 'inceptio'",
    "train evaluation.guidance_interval=[0.2,0.8]": "restricts nothing",
    "train evaluation.times=[[0.5,0]]": "times must fall strictly from t_max = 1 to 0",
    "train training.precision=fp8": "unknown training.precision 'fp8'",
    "train objective=scm,shortcut": "axes of values belong in a sweep's YAML",
    "train evaluation.guidance=[nan]": "evaluation.guidance must be at least 0, got nan",
    "sample abc --guidance nan": "--guidance must be at least 0, got nan",
    "train evaluation.guidance=[1,-2]": "evaluation.guidance must be at least 0, got -2",
    "train seed=1,2,3": "gives several values where one is meant",
    "train ++seed=1": "write key=value, without '+', '~' or '@'",
    "train seed": "is not of the form key=value",
    "train =3": "is not of the form key=value",
    "train seed=[1,2": "'[1,2' is no value in Hydra's grammar",
    "train sweep=a(b": "a text with other than plain characters is written in quotes",
    "train objective.name=scm": "choose it with objective=NAME",
    "train sweep=../x": "a sweep's name may hold",
    "train data=gaussians backbone=dit_digits": "a DiT needs square images",
    "train data=digits backbone.patch=3": "backbone.patch must divide the image's side 8, got 3",
    "train data=gaussians evaluation.extractor=cnn": "extractor cnn needs labelled images",
    "train data=fashion_mnist data.root=else": "/else/fashion-mnist, ",
    "sweep digts": "unknown sweep 'digts'; did you mean 'digits'? (choices: digits",
    "sweep gone.yaml": "no sweep file at /",
    "sweep digits name=../x": "a sweep's name may hold",
    "sweep digits objective=smc": "unknown value 'smc' of axis objective; did you mean 'scm'?",
    "sweep digits training.step=3": "did you mean 'training.steps'?",
    "sweep digits data=mnist backbone=dit_mnist": "mnist not found",
    "sweep digits data=image_folder backbone=unet_32 --plan": "to plan without them, set data.exp",
    "sweep digits resources.device=h10 --plan": "unknown resources.device 'h10'; did you mean 'h1",
    "sweep digits training.device=cuda:99": "training.device 'cuda:99' cannot be used here: ",
    "sweep digits --workers 0": "--workers must be at least 1, got 0",
    "sweep digits resources.gpu=1": "unknown resource 'gpu'; did you mean 'gpus'",
    "sweep digits sample.count=0": "sample.count must be at least 1, got 0",
    "sweep digits ray.trails=3 --plan": "unknown setting 'trails' of ray; did you mean 'trials'?",
    "sweep digits slurm.partitoin=low": "did you mean 'partition'?",
    "sweep digits local.worker=2 --launcher ray": "did you mean 'workers'?",
    "sweep digits local.workers=two": "local.workers must be a whole number, got 'two'",
    "sweep digits --launcher slrum": "unknown --launcher 'slrum'; did you mean 'slurm'?",
    "bench step --json": "Option '--json' requires an argument: see fewstep bench step --help",
    "status --runs": "Option '--runs' requires an argument: see fewstep status --help",
    "sweep digits --launcher ray --workers 2": "--workers: the launcher ray has no setting",
    "bench metrics --batch 0 --device nonsense": "see fewstep bench metrics --help",
    "bench sweep training.steps=3": "(training.steps=3): see fewstep bench sweep --help",
    "sweep digits runs=file": ["cannot write to run root '/", "/file'"],
    "report": "Missing argument 'sweep': see fewstep report --help",
    "list objective": "unknown kind 'objective'; did you mean 'objectives'?",
    "sweep papers/ict --plan": "unknown sweep 'papers/ict'; did you mean 'papers/ict_cifar10'?",
    "sweep papers/ict_cifar10": ["cifar10 not found: looked in /"],
    "recipe diff 3f2a": "no run '3f2a'",
    "status digits": ["unknown sweep 'digits' under /", "/runs/"],
    "status digits training.steps=3": "takes no override but runs=DIR, got 'training.steps=3'",
    "sync": ["no runs under /", "/runs/"],
    "sync training.lr=3": "unknown setting 'training.lr' of sync",
    "sync --watch --every 0": "--every must be greater than 0, got 0",
    "report digits": ["unknown sweep 'digits' under /", "/runs/"],
    "evaluate 3f2a": "no run '3f2a': neither a run directory, nor the beginning of a key",
    "sample 3f2a": "no run '3f2a'",
    "sample 3f2a --out grid.txt": "--out 'grid.txt' is not an image file (choices: .png",
    "sample 3f2a --out no/grid.png": "--out 'no/grid.png': no folder",
    "sample 3f2a --steps 0": "--steps must be at least 1, got 0",
    "sample 3f2a --count 0": "--count must be at least 1, got 0",
    "sample 3f2a --weights best": "unknown --weights 'best' (choices: ema, ema-DECAY, raw, ",
}


NONE = "0 interrupted, 0 failed, 0 cells, 0 stale, 0 cached"


def refused_here(words, told, monkeypatch, capsys) -> None:
    before = tree(Path.cwd())
    monkeypatch.setattr("sys.argv", ["fewstep", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    # a sweep tells its plan before it finds that it cannot begin
    out = captured.out.removeprefix(f"sweep digits: 12 runs (12 new, {NONE})\n")
    assert_one_line(out, captured.err, told)
    assert tree(Path.cwd()) == before


@pytest.mark.parametrize("command", MORE)
def test_every_command(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    refused_here(command.split(), MORE[command], monkeypatch, capsys)


@pytest.fixture
def copied(vectors, tmp_path, monkeypatch) -> Path:
    """A copy of the folder with two finished runs, and we are in it."""
    shutil.copytree(vectors, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def keys(folder: Path) -> list[str]:
    return sorted(p.parent.name for p in folder.glob("runs/train/*/spec.json"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "KEY", "training.lr=3"], "training.lr=3 would make another run of KEY"),
        (["evaluate", "KEY", "seed=3"], "train that one instead"),
        (["evaluate", "KEY", "objective=scm"], "choose it with objective=NAME"),
        (["evaluate", "KEY", "evaluation.steps=[0]"], "evaluation.steps must be at least 1"),
        (["evaluate", "KEY", "objective.solver=rk9"], "'rk9'"),
        (["evaluate", "KEY", "evaluation.extractor=cnn"], "extractor cnn needs labelled images"),
        (["evaluate", "KEY", "evaluation.reference_file=runs/train/KEY/spec.json"], "spec.json"),
        (["sample", "KEY"], "gaussians is not made of images"),
        (
            ["report", "train", "--guidance", "bset"],
            "--guidance takes a scale, or best, got 'bset'",
        ),
        (["report", "trian"], "/runs/; did you mean 'train'?"),
        (["status", "trian"], "did you mean 'train'?"),
    ],
)
def test_finished_runs_stay_as_they_are(copied, monkeypatch, capsys, words, told):
    key = keys(copied)[0]
    words = [word.replace("KEY", key) for word in words]
    refused_here(words, told.replace("KEY", key), monkeypatch, capsys)


def test_ambiguous_key(copied, monkeypatch, capsys):
    first, second = keys(copied)
    (copied / "runs/train" / second).rename(copied / "runs/train" / f"{first[:3]}zzz")
    told = [f"run {first[:3]!r} is ambiguous", f"runs/train/{first}", f"{first[:3]}zzz"]
    refused_here(["evaluate", first[:3]], told, monkeypatch, capsys)


def test_run_directory_of_another_configuration(copied):
    key = keys(copied)[0]
    file = copied / f"runs/train/{key}/spec.json"
    spec = json.loads(file.read_text())
    spec["config"]["training"]["batch_size"] = 17
    file.write_text(json.dumps(spec))
    given = [*TINY, "training.steps=20", "evaluation.steps=[1]"]
    rate = spec["config"]["training"]["lr"]
    told = [f"{key} is from another configuration: its spec.json has key", f"expected {key}"]
    refused("train", *given, f"training.lr={rate}", cwd=copied, told=told)
    refused("evaluate", key, "evaluation.steps=[2]", cwd=copied, told=told)


def test_evaluating_or_sampling_an_unfinished_run(copied, monkeypatch, capsys):
    key = keys(copied)[0]
    run = copied / f"runs/train/{key}"
    (run / "result.json").unlink()
    told = f"run {key} is not finished (running): train it to its end first"
    refused_here(["evaluate", key[:5], "evaluation.steps=[2]"], told, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("name", "told"), [("10", "unknown --class '10'"), ("cat", "(choices: 0 to 9)"), ("-1", "'-1'")]
)
def test_a_class_that_there_is_not(images, tmp_path, monkeypatch, capsys, name, told):
    shutil.copytree(images, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    key = keys(tmp_path / "copy")[0]
    refused_here(["sample", key, f"--class={name}"], told, monkeypatch, capsys)


def test_sampling_without_a_checkpoint(images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    key = keys(tmp_path / "copy")[0]
    shutil.rmtree(tmp_path / f"copy/runs/train/{key}/checkpoints")
    told = ["no checkpoint in", f"{key}/checkpoints: train the run first"]
    refused("sample", key, "--out", "grid.png", cwd=tmp_path / "copy", told=told)


def test_truncated_checkpoint_goes_back_to_the_one_before(images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    folder = tmp_path / "copy"
    key = keys(folder)[0]
    run = folder / f"runs/train/{key}"
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "step-00000008",
        "step-00000012",
    ]
    whole = run / "checkpoints/step-00000012/tensors.safetensors"
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    (run / "result.json").unlink()
    spec = json.loads((run / "spec.json").read_text())["config"]
    overrides = [f"training.{name}={spec['training'][name]}" for name in ("steps", "batch_size")]
    overrides += [f"backbone.{name}={spec['backbone'][name]}" for name in ("width", "depth")]
    overrides += ["backbone.heads=2", "training.checkpoint_every=4", "evaluation.steps=[]"]
    done = fewstep("train", "data=digits", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    warned = "step-00000012 is damaged"
    assert warned in done.stderr
    assert "going back to the one before" in done.stderr
    assert done.stderr.count("\n") == 1
    assert whole.read_bytes() == content  # steps 9 to 12 again, to the same bits
    assert json.loads((run / "result.json").read_text())["steps"] == 12
    succeed("status", cwd=folder)


@pytest.mark.parametrize("root", ["scratch", "scratch/runs"])
@pytest.mark.parametrize("words", ["train data=gaussians", "status", "sync", "report mine"])
def test_a_run_root_whose_disk_is_gone(tmp_path, monkeypatch, capsys, words, root):
    (tmp_path / "scratch").symlink_to("/purged")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fewstep", *words.split(), f"runs={root}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = f"{tmp_path}/scratch is a link to /purged, which does not exist"
    assert told in " ".join(capsys.readouterr().err.split())
    config = compose(["data=gaussians", ("runs", root)])
    with pytest.raises(UserError, match=f"cannot write to run root .*{told}"):
        prepare(config)  # in a program of one's own


@pytest.mark.parametrize("near", [True, False])
def test_a_list_too_long_to_read_is_not_told_beside_the_nearest_match(near):
    known = ["objective", *(f"training.setting{i}" for i in range(MANY))]
    told = str(unknown("setting", "objectve" if near else "quux", known))
    assert ("training.setting7" in told) is not near
    assert told.endswith("did you mean 'objective'? (21 choices)") is near
    assert "training.setting7" in str(unknown("setting", "objectve", known[:-1]))
