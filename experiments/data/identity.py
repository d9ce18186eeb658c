"""Which data a run is trained on, by content: ``data.json`` in its directory."""

import hashlib
import json

from fewstep.experiments.data.base import Dataset
from fewstep.experiments.store.json_files import Json


def data_record(dataset: Dataset) -> Json:
    """What data.json holds: ``sha256`` is of the examples of both splits, and the classes.

    ``is``: the public data set that it was checked to be (``known.KNOWN``), where one is declared.
    """
    content = {
        "train_sha256": dataset.train.sha256,
        "test_sha256": dataset.test.sha256,
        "num_classes": dataset.num_classes,
        "classes": list(dataset.class_names),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    sizes = {"train": len(dataset.train), "test": len(dataset.test), "shape": list(dataset.shape)}
    declared = {"is": dataset.is_} if dataset.is_ else {}
    vectors = {"condition_dim": k} if (k := dataset.condition_dim) else {}
    return {"name": dataset.name, "sha256": digest, **sizes, **content, **vectors, **declared}
