"""The files that RobustBench keeps of benchmarked models: model_info/<data set>/<norm>/<model>."""

import json
from pathlib import Path
from typing import Any

from fastadv.files import write_atomically

_FIELDS = (
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
    "clean_acc",
    "reported",
    "corruptions_acc",
    "corruptions_acc_3d",
    "corruptions_mce",
    "corruptions_mce_3d",
    "autoattack_acc",
    "footnote",
)


def update(
    dataset: str,
    threat_model: str,
    model_name: str,
    accuracy: float,
    adv_accuracy: float,
    eps: float,
) -> None:
    """Write the accuracies, in % as text, into the model's file; other fields of it are kept."""
    path = Path("model_info") / dataset / threat_model / f"{model_name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = dict.fromkeys(_FIELDS)
    if path.exists():
        record = json.loads(path.read_text())
    record.update(
        dataset=dataset,
        eps=eps,
        clean_acc=str(round(accuracy * 100, 2)),
        autoattack_acc=str(round(adv_accuracy * 100, 2)),
    )
    write_atomically(path, json.dumps(record, indent=2).encode())
