"""data.json: which data a run is trained on, and the refusal of others (no torch)."""

from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory


def describe(record: Json) -> str:
    """As in ``3f2a9c01b2d4 (40 train and 20 held-out examples, 2 classes: cat, dog)``."""
    text = f"{record['train']:,} train and {record['test']:,} held-out examples"
    if number := record["num_classes"]:
        names = [printable(name) for name in record["classes"]]
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        text += f", {number} class{'' if number == 1 else 'es'}" + (f": {listed}" * bool(names))
    return f"{record['sha256'][:12]} ({text})"


def printable(name: str) -> str:
    """A folder's name in one line; bytes that are no UTF-8 as they are written in Python."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def difference(known: Json, now: Json) -> str:
    """How data differ from the ``known`` ones, in a few words."""
    if known["classes"] != now["classes"] or known["num_classes"] != now["num_classes"]:
        return "other classes"
    if known["train_sha256"] != now["train_sha256"]:
        return "other training examples"
    return "other held-out examples"


def check_data(run: RunDirectory, now: Json, root: str | None = None) -> None:
    """Raise ``UserError`` unless ``now`` are the data that the run is trained on.

    ``root``: where they were read from. A run without a record, of fewstep 0.2, passes.
    """
    known = run.data()
    if known is None or known["sha256"] == now["sha256"]:
        return
    where = "" if root is None else f" in {Path(root)}"
    raise UserError(
        f"run {run.key} is trained on data {describe(known)}, but those{where} are "
        f"{describe(now)}: {difference(known, now)}; name the run's own data with data.root=DIR "
        f"or FEWSTEP_DATA=DIR, or train another run"
    )
