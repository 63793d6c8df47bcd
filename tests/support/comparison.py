"""A tiny comparison: a model, rows, and a recipe to change field by field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balora.compare.comparison import Comparison
from balora.compare.reading import read_comparison
from balora.config.values import dump_mapping
from balora.report import page, tables
from balora.report.study import Study
from support.classification import save_body
from support.models import make_model, make_tokenizer

ROWS = [{"prompt": f"{i}+{i}=", "completion": f" The answer is: {2 * i}"} for i in range(8)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    save_body(folder, "bert")
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the recipe of a comparison of text generation; None takes a field out."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        write_rows(tmp_path / name, ROWS)

    def write(compare: dict[str, Any] | None = None, **fields: Any) -> Path:
        content = {
            "model_name_or_path": "some/model",
            "dataset_name": "train.jsonl",
            "eval_dataset_name": "test.jsonl",
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "lora_r": 2,
            "lora_alpha": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "output_dir": str(tmp_path / "out"),
            "compare": {"methods": ["lora", "pissa"], "seeds": [0], **(compare or {})},
            **fields,
        }
        path = tmp_path / "compare.yaml"
        path.write_text(dump_mapping({k: v for k, v in content.items() if v is not None}))
        return path

    return write


@pytest.fixture
def comparison(recipe: Callable[..., Path]) -> Callable[..., Comparison]:
    """Read the comparison of a recipe that is written as `recipe` does."""

    def read(compare: dict[str, Any] | None = None, **fields: Any) -> Comparison:
        given = fields.pop("given", {})
        return read_comparison(recipe(compare, **fields), given)

    return read


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Put stand-ins in the place of tables and report; return which were written, and where."""
    written: list[tuple[str, Path]] = []

    def format_console(study: Study) -> str:
        return f"{len(study.rows) + len(study.tried)} rows, to {study.baseline}"

    monkeypatch.setattr(tables, "format_console", format_console)
    for module, name in ((tables, "write_tables"), (page, "write_report")):
        what = name.removeprefix("write_")
        monkeypatch.setattr(module, name, lambda study, w=what: written.append((w, study.folder)))
    return written
