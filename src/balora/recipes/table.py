"""A table of settings in a recipe: one row for each model and task, picked when it is loaded.

.. code-block:: yaml

    table:
      columns: [num_train_epochs, learning_rate]
      models:
        FacebookAI/roberta-large:
          lora_target_modules: query_value     # holds for every task of the model
          tasks:
            mnli: [10, 1e-4]

A row goes before the fields beside the table, the command line before both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from balora.errors import ConfigError
from balora.field_types import suggestion

TABLE = "table"
_KEYS = ("model_name_or_path", "task")
_SHAPE = (
    "`table` must hold `columns`, a list of fields, and `models`, which gives for each model its "
    "`tasks` with a list of as many values"
)


def pick_row(
    content: Mapping[str, Any], given: Mapping[str, Any], aside: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of a recipe with the row of its table in the table's place.

    In `output_dir` beside a table, ``{model}`` and ``{task}`` stand for the last part of the
    model's name and for the task, so that each row has its own folder.

    Args:
        content: What the file holds.
        given: What the command line replaces.
        aside: Fields of the file that do not act; no row is needed for them.

    Raises:
        ConfigError: If the table is not one; if no model or no task is named; or if there is no
            row for them and the command line does not give every column.
    """
    if TABLE not in content:
        return dict(content)
    columns, models = _checked(content[TABLE])
    fields = {name: value for name, value in content.items() if name != TABLE}
    model, task = ({**fields, **given}.get(key) for key in _KEYS)
    missing = [key for key, value in zip(_KEYS, (model, task), strict=True) if value is None]
    if missing:
        raise ConfigError(
            "; ".join(f"`{key}` is missing: pass `--{key}`" for key in missing)
            + ". "
            + _what_there_is(models)
        )
    if not (isinstance(model, str) and isinstance(task, str)):
        return fields  # the check of the types says what is wrong
    if isinstance(folder := fields.get("output_dir"), str):
        name = model.rstrip("/").rsplit("/", 1)[-1]
        fields["output_dir"] = folder.replace("{model}", name).replace("{task}", task)
    own = models.get(model, {})
    row = own.get("tasks", {}).get(task)
    fields |= {name: value for name, value in own.items() if name != "tasks"}
    if row is not None:
        return fields | dict(zip(columns, row, strict=True))
    open_columns = [name for name in columns if name not in given and name not in aside]
    if open_columns:
        raise ConfigError(_no_row(model, task, models, open_columns))
    return fields


def _no_row(model: str, task: str, models: Mapping[str, Any], open_columns: list[str]) -> str:
    if model in models:
        hint = suggestion(task, models[model]["tasks"])
        found = f"the table has no row for task `{task}`{hint} of {model}"
    else:
        found = f"the table has no row for the model `{model}`{suggestion(model, models)}"
    options = ", ".join(f"`--{name}`" for name in open_columns)
    return f"{found}. {_what_there_is(models)} For another, give the columns as options: {options}."


def _what_there_is(models: Mapping[str, Any]) -> str:
    by_tasks: dict[tuple[str, ...], list[str]] = {}
    for model, own in models.items():
        by_tasks.setdefault(tuple(own["tasks"]), []).append(model)
    rows = [f"{', '.join(names)} with {', '.join(tasks)}" for tasks, names in by_tasks.items()]
    return f"There are rows for {'; '.join(rows)}."


def _checked(table: Any) -> tuple[list[str], dict[str, dict[str, Any]]]:
    columns = table.get("columns") if isinstance(table, dict) else None
    models = table.get("models") if isinstance(table, dict) else None
    if not (isinstance(columns, list) and columns and isinstance(models, dict) and models):
        raise ConfigError(f"{_SHAPE}.")
    for model, own in models.items():
        tasks = own.get("tasks") if isinstance(own, dict) else None
        if not isinstance(tasks, dict) or not tasks:
            raise ConfigError(f"{_SHAPE}; `{model}` has no `tasks`.")
        for task, row in tasks.items():
            if not isinstance(row, list) or len(row) != len(columns):
                raise ConfigError(
                    f"`table` has for task `{task}` of {model} the values {row}, but "
                    f"{len(columns)} columns: {', '.join(map(str, columns))}."
                )
    return [str(name) for name in columns], models
