"""What decides, beside the metric's identity, whether published numbers may stand beside ours."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from fewstep.public_data import KNOWN, TRAIN, canonical

Json = dict[str, Any]
UNKNOWN, NONE = "unknown", "none"
CLASSES, VECTORS = "classes", "vectors"
BUILT_IN = ("cifar10", "mnist", "fashion_mnist")  # data sets that need no declaration


def run_conditions(config: Json, result: Json, data: Json | None) -> Json:
    """Which public data set a run is trained on, its conditions, and guidance that it learned.

    Of data.json; for runs without one, or of a version that did not record it, of what their
    settings leave no doubt about. None: unknown.
    """
    settings = config.get("data")
    source: Json = settings if isinstance(settings, dict) else {}
    built_in = source.get("name") in BUILT_IN
    name = (data or {}).get("is") or source.get("is_") or (source["name"] if built_in else None)
    conditional = None
    if data is not None and "num_classes" in data:
        vectors = VECTORS if data.get("condition_dim") else NONE
        conditional = CLASSES if data["num_classes"] else vectors
    elif built_in or source.get("labels") is False:
        conditional = CLASSES if source.get("labels", True) else NONE
    return {
        "data_is": name,
        "conditional": conditional,
        "trained_guidance": _trained_guidance(config, result),
    }


def _trained_guidance(config: Json, result: Json) -> str | None:
    if "trained_guidance" in result:
        recorded: str | None = result["trained_guidance"]
        return recorded
    # runs of earlier versions: none, where the settings can only mean that
    settings = config.get("objective")
    objective: Json = settings if isinstance(settings, dict) else {}
    scales = {name: value for name, value in objective.items() if name.endswith("guidance")}
    plain = "guidance" not in scales and all(scale == 1 for scale in scales.values())
    return "" if plain and config.get("teacher") is None else None


def reference_file(metric: Json, names: Mapping[str, str]) -> str | None:
    """The known reference that a cell was compared with; ``names``: by the files' sha256."""
    if metric.get("reference") != "file":
        return None
    name = names.get(str(metric.get("reference_sha256")))
    if name is not None and metric.get("reference_moments") == "of arr_0":
        return f"{name}, its images alone"
    return name


def references(rows: pd.DataFrame) -> tuple[str, ...]:
    """What the cells were compared with, in the words of ``published.csv``; each once."""
    columns = ["reference", "reference_samples", "reference_file", "data_is"]
    return tuple(dict.fromkeys(
        _reference(*row) for row in rows[columns].drop_duplicates().itertuples(index=False)
    ))  # fmt: skip


def _reference(kind: object, samples: object, file: object, data: object) -> str:
    if not pd.isna(file):  # type: ignore[call-overload]
        return canonical(str(file))
    known = None if pd.isna(data) else KNOWN.get(str(data))  # type: ignore[call-overload]
    if kind == "train" and known is not None and samples == known.train and not known.resized:
        return TRAIN
    if kind in ("train", "test") and not pd.isna(samples):  # type: ignore[call-overload]
        return f"{samples:,} images of our {kind} split"
    return UNKNOWN


def guidance_kinds(rows: pd.DataFrame) -> tuple[str, ...]:
    """How the cells were guided, in the words of ``published.csv``; each once."""
    columns = ["guidance", "sampler", "conditional", "trained_guidance"]
    return tuple(dict.fromkeys(
        _guidance(*row) for row in rows[columns].drop_duplicates().itertuples(index=False)
    ))  # fmt: skip


def _guidance(scale: object, sampler: object, conditional: object, trained: object) -> str:
    if not pd.isna(conditional) and conditional == NONE:  # type: ignore[call-overload]
        return NONE  # there is nothing to guide by
    if pd.isna(trained) or pd.isna(scale):  # type: ignore[call-overload]
        return UNKNOWN
    parts = [f"trained in: {trained}"] if trained else []
    if scale != 1:
        interval = re.search(r"guidance_interval=([^,-]+)-([^, ]+)", str(sampler))
        where = f" in [{interval[1]}, {interval[2]}]" if interval else ""
        parts.append(f"scale {scale:g}{where}")
    return "; ".join(parts) or NONE
