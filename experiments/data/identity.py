"""Which data a run is trained on, by content: ``data.json`` in its directory."""

import hashlib
import json

from fewstep.experiments.data.base import Dataset
from fewstep.experiments.store.json_files import Json


def data_record(dataset: Dataset) -> Json:
    """What data.json holds: ``sha256`` is of the examples of both splits, and the classes."""
    content = {
        "train_sha256": dataset.train.sha256,
        "test_sha256": dataset.test.sha256,
        "num_classes": dataset.num_classes,
        "classes": list(dataset.class_names),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    sizes = {"train": len(dataset.train), "test": len(dataset.test), "shape": list(dataset.shape)}
    return {"name": dataset.name, "sha256": digest, **sizes, **content}
