"""Rows of settings in a recipe, by model and task; the one that is asked for is picked on loading.

.. code-block:: yaml

    rows:
      FacebookAI/roberta-large:
        lora_target_modules: query_value     # holds for every task of the model
        tasks:
          mnli: {num_train_epochs: 10, learning_rate: 1e-4}

A row goes before the fields beside it, the command line before both.
"""

from __future__ import annotations

from collections.abc import Collection, KeysView, Mapping
from typing import Any

from balora.config.words import suggestion
from balora.errors import ConfigError

ROWS = "rows"
TASKS = "tasks"
_KEYS = ("model_name_or_path", "task")
_Rows = Mapping[str, Mapping[str, Any]]


def pick_row(
    content: Mapping[str, Any], given: Mapping[str, Any], aside: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of a recipe with the row that is asked for in the place of all rows.

    In `output_dir`, ``{model}`` and ``{task}`` stand for the last part of the model's name and for
    the task, so that each row has its own folder.

    Args:
        content: What the file holds.
        given: What the command line replaces.
        aside: Fields of the file that do not act; no row is needed for them.

    Raises:
        ConfigError: If the rows are not written so; if no model or no task is named; or if there
            is no row for them and the command line does not give every field of a row.
    """
    if ROWS not in content:
        return dict(content)
    rows = _checked(content[ROWS])
    fields = {name: value for name, value in content.items() if name != ROWS}
    model, task = ({**fields, **given}.get(key) for key in _KEYS)
    missing = [key for key, value in zip(_KEYS, (model, task), strict=True) if value is None]
    if missing:
        options = "; ".join(f"`{key}` is missing: pass `--{key}`" for key in missing)
        raise ConfigError(f"{options}. {_what_there_is(rows)}")
    if not (isinstance(model, str) and isinstance(task, str)):
        return fields  # the check of the types says what is wrong
    own = dict(rows.get(model, {}))
    tasks = own.pop(TASKS, {})
    if task not in tasks and (needed := _names(rows) - given.keys() - set(aside)):
        raise ConfigError(_no_row(model, task, rows, [n for n in _names(rows) if n in needed]))
    fields |= {**own, **tasks.get(task, {})}
    if isinstance(folder := fields.get("output_dir"), str):
        name = model.rstrip("/").rsplit("/", 1)[-1]
        fields["output_dir"] = folder.replace("{model}", name).replace("{task}", task)
    return fields


def without_fields(rows: Any, names: Collection[str]) -> dict[str, Any]:
    """Return rows without some fields, which are set for all of them.

    Raises:
        ConfigError: If the rows are not written so.
    """
    return {
        model: {
            **{name: value for name, value in own.items() if name not in names},
            TASKS: {
                task: {name: value for name, value in row.items() if name not in names}
                for task, row in own[TASKS].items()
            },
        }
        for model, own in _checked(rows).items()
    }


def _names(rows: _Rows) -> KeysView[str]:
    """Return the fields that rows give, each once and in their order."""
    every_row = [row for own in rows.values() for row in own[TASKS].values()]
    return dict.fromkeys(name for row in every_row for name in row).keys()


def _no_row(model: str, task: str, rows: _Rows, open_names: list[str]) -> str:
    if model in rows:
        found = (
            f"there is no row for task `{task}`{suggestion(task, rows[model][TASKS])} of {model}"
        )
    else:
        found = f"there is no row for the model `{model}`{suggestion(model, rows)}"
    options = ", ".join(f"`--{name}`" for name in open_names)
    return f"{found}. {_what_there_is(rows)} For another, give its fields as options: {options}."


def _what_there_is(rows: _Rows) -> str:
    by_tasks: dict[tuple[str, ...], list[str]] = {}
    for model, own in rows.items():
        by_tasks.setdefault(tuple(own[TASKS]), []).append(model)
    found = [f"{', '.join(names)} with {', '.join(tasks)}" for tasks, names in by_tasks.items()]
    return f"There are rows for {'; '.join(found)}."


def _checked(rows: Any) -> _Rows:
    if not isinstance(rows, dict) or not rows:
        raise ConfigError(
            f"`{ROWS}` must give for each model its `{TASKS}`, a mapping from a task to fields."
        )
    for model, own in rows.items():
        tasks = own.get(TASKS) if isinstance(own, dict) else None
        if not isinstance(tasks, dict) or not tasks:
            raise ConfigError(
                f"`{ROWS}`, `{model}` has no `{TASKS}`, a mapping from a task to fields."
            )
        wrong = [task for task, row in tasks.items() if not isinstance(row, dict)]
        if wrong:
            row = tasks[wrong[0]]
            raise ConfigError(
                f"`{ROWS}`, `{model}`: `{wrong[0]}` must be a mapping of fields, got {row!r}."
            )
    return rows
