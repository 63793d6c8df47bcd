"""A module's test is found by its name: `balora/x/y.py` in `tests/x/test_y.py` or `test_y_*.py`.

A module that is tested through another one, or together with others, stands in `ELSEWHERE`.
"""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.imports import DOOR, GROUND, SOURCE, file_imports, room_imports

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MODULES = sorted(
    path.relative_to(SOURCE).with_suffix("").as_posix()
    for path in SOURCE.rglob("*.py")
    if not path.stem.startswith("__")
)
ELSEWHERE = {
    "anchored/beside": "anchored/test_peft_methods.py",
    "anchored/create": "anchored/test_starts.py",
    "anchored/model": "anchored/test_layer.py",
    "anchored/plain": "anchored/test_export.py",
    "anchored/truncate": "anchored/test_export.py",
    "compare/bench_settings": "compare/test_comparison.py",
    "compare/fingerprints": "compare/test_plan.py",
    "compare/measured": "compare/test_cell.py",
    "compare/memory": "compare/test_cell.py",
    "compare/places": "test_schema.py",
    "compare/problems": "compare/test_comparison.py",
    "compare/process": "compare/test_runner.py",
    "compare/reading": "compare/test_comparison.py",
    "compare/stages": "compare/test_command.py",
    "compare/summary_settings": "compare/test_comparison.py",
    "config/adapter": "config/test_objective.py",
    "config/data": "config/test_objective.py",
    "config/model": "config/test_objective.py",
    "config/options": "test_bad_input.py",
    "config/parts": "config/test_objective.py",
    "config/rules": "test_bad_input.py",
    "config/run": "config/test_objective.py",
    "config/words": "config/test_fields.py",
    "data/columns": "data/test_examples.py",
    "data/inputs": "data/test_classification.py",
    "data/labels": "data/test_classification.py",
    "data/layouts": "data/test_examples.py",
    "data/opening": "data/test_sources.py",
    "data/parquet": "data/test_json_records.py",
    "data/provenance": "data/test_json_records.py",
    "data/reading": "data/test_classification.py",
    "data/records": "data/test_json_records.py",
    "data/stored": "data/test_json_records.py",
    "data/values": "data/test_json_records.py",
    "errors": "test_cli.py",
    "evaluation/batches": "evaluation/test_instruments.py",
    "evaluation/bench/benchmark": "evaluation/bench/test_gsm8k.py",
    "evaluation/bench/config": "config/test_objective.py",
    "evaluation/bench/endpoint": "evaluation/bench/test_mt_bench.py",
    "evaluation/bench/judge": "evaluation/bench/test_mt_bench.py",
    "evaluation/bench/judges": "report/test_tables.py",
    "evaluation/bench/line_process": "evaluation/bench/test_backends.py",
    "evaluation/bench/markers": "evaluation/bench/test_gsm8k.py",
    "evaluation/bench/math_answers": "evaluation/bench/test_math.py",
    "evaluation/bench/math_problems": "evaluation/bench/test_math.py",
    "evaluation/bench/numbers": "evaluation/bench/test_gsm8k.py",
    "evaluation/bench/programs": "evaluation/bench/test_code.py",
    "evaluation/bench/prompts": "evaluation/bench/test_gsm8k.py",
    "evaluation/bench/rows": "evaluation/bench/test_run.py",
    "evaluation/bench/server": "evaluation/bench/test_backends.py",
    "evaluation/bench/store": "evaluation/bench/test_run.py",
    "evaluation/bench/suite": "evaluation/bench/test_run.py",
    "evaluation/bench/table": "evaluation/bench/test_run.py",
    "evaluation/bench/vllm": "evaluation/bench/test_backends.py",
    "evaluation/bench/workers/math_verify_worker": "evaluation/bench/test_math.py",
    "evaluation/bench/workers/vllm_worker": "evaluation/bench/test_backends.py",
    "evaluation/command": "evaluation/test_classification_run.py",
    "evaluation/exact_match": "evaluation/test_instruments.py",
    "evaluation/instrument": "evaluation/test_instruments.py",
    "evaluation/responses": "evaluation/test_instruments.py",
    "evaluation/retention": "evaluation/test_instruments.py",
    "fused/block": "fused/test_tokens.py",
    "fused/checks": "fused/test_objective.py",
    "lab/numbers": "lab/test_world.py",
    "lab/quickstart": "lab/test_problems.py",
    "lab/settings": "lab/test_config.py",
    "lab/words": "lab/test_problems.py",
    "models/adapter": "models/test_fits.py",
    "models/blank": "trainers/test_preflight.py",
    "models/digests": "trainers/test_reference.py",
    "models/finite": "models/test_load.py",
    "models/generation": "evaluation/test_generation.py",
    "models/names": "compare/test_plan.py",
    "models/record": "models/test_fits.py",
    "models/source": "models/test_run_folder.py",
    "models/special_tokens": "trainers/test_run_generation.py",
    "models/targets": "models/test_classifier.py",
    "recipes/limits": "test_bad_input.py",
    "recipes/recipe": "recipes/test_load.py",
    "recipes/table": "recipes/test_classification_recipes.py",
    "replay/command": "replay/test_generate.py",
    "replay/library": "replay/test_generate.py",
    "replay/reference": "trainers/test_replay.py",
    "replay/start": "replay/test_generate.py",
    "replay/texts": "replay/test_generate.py",
    "predict/rows": "predict/test_command.py",
    "report/columns": "report/test_summary.py",
    "report/labels": "report/test_plots.py",
    "report/panels": "report/test_plots.py",
    "report/sections": "report/test_page.py",
    "report/study": "report/test_tables.py",
    "report/texts": "report/test_findings.py",
    "rows": "compare/test_folder.py",
    "sandbox/check": "sandbox/test_run.py",
    "sandbox/isolation": "sandbox/test_attacks.py",
    "sandbox/limits": "sandbox/test_run.py",
    "sandbox/programs/child": "sandbox/test_attacks.py",
    "sandbox/programs/judge": "sandbox/test_run.py",
    "sandbox/programs/plain": "sandbox/test_plain.py",
    "sandbox/programs/start": "sandbox/test_attacks.py",
    "sandbox/scripts": "sandbox/test_run.py",
    "sandbox/seccomp": "sandbox/test_attacks.py",
    "schema_compare": "test_schema.py",
    "trainers/build": "trainers/test_run_generation.py",
    "trainers/mixin": "trainers/test_sft.py",
    "trainers/output": "trainers/test_place.py",
    "trainers/packing": "trainers/test_fused.py",
    "trainers/record": "trainers/test_checkpoint.py",
    "trainers/replay_run": "trainers/test_replay.py",
    "trainers/sharding_settings": "trainers/test_sharding.py",
    "trainers/step": "trainers/test_fused.py",
    "trainers/texts": "trainers/test_classification.py",
}
"""From a module to the file that tests it."""


def files_of(module: str) -> list[Path]:
    """Return the test files of a module's name; of balora/x/y.py tests/x/test_y.py is one."""
    folder, name = TESTS / Path(module).parent, Path(module).name
    return [*folder.glob(f"test_{name}.py"), *folder.glob(f"test_{name}_*.py")]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_test_of_its_name_or_is_listed(module):
    assert files_of(module) or module in ELSEWHERE, (
        f"tests/{Path(module).parent}/test_{Path(module).name}.py is missing; where another file "
        f"tests balora/{module}.py, name it in ELSEWHERE"
    )


def test_the_list_names_modules_and_files_that_exist():
    assert ELSEWHERE.keys() <= set(MODULES)
    assert not [file for file in ELSEWHERE.values() if not (TESTS / file).is_file()]


def test_the_index_of_the_helpers_names_every_helper():
    import support

    names = {path.stem for path in (TESTS / "support").glob("*.py")} - {"__init__"}
    assert not [name for name in names if f"``{name}``" not in (support.__doc__ or "")]


def test_no_two_files_import_each_other():
    """Not even where a function is called, or for an annotation alone."""
    TopologicalSorter(file_imports()).prepare()  # a cycle is an error that names it


def reachable(arrows: dict[str, set[str]], start: str) -> set[str]:
    below = arrows.get(start, set())
    return below.union(*(reachable(arrows, room) for room in below))


PICTURE = re.compile(r"```text\n(cli .*?)```", re.DOTALL)
ARROWS = re.compile(r"^ {2}(\w+) +->((?: \w+,?)*)(?:  .*)?$", re.MULTILINE)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "AGENTS.md"])
def test_the_picture_of_the_house_is_what_is_imported(page):
    picture = PICTURE.search((ROOT / page).read_text(encoding="utf-8"))[1]
    lines = {room: set(re.findall(r"\w+", arrows)) for room, arrows in ARROWS.findall(picture)}
    rooms = room_imports()
    assert lines.keys() == rooms.keys()
    seen = set()
    for room, below in reversed(lines.items()):  # from the ground up: arrows go down
        assert below <= seen, room
        seen.add(room)
    for room, imported in rooms.items():
        direct = lines[room]
        assert direct <= imported, f"{room} does not import {direct - imported}"
        assert imported <= reachable(lines, room), f"{room}: {imported - reachable(lines, room)}"
        spare = {one for one in direct for other in direct if one in reachable(lines, other)}
        assert not spare, f"{room}: other arrows lead to {spare}"
    words = {*re.findall(r"\w+", "\n".join(re.findall(r"^(?:cli|ground:) .*$", picture, re.M)))}
    assert DOOR | GROUND <= words


def test_nothing_imports_the_door_and_the_ground_imports_no_room():
    for name, imported in file_imports().items():
        own = name.split(".")[0]
        rooms = {one.split(".")[0] for one in imported}
        assert own in DOOR or not rooms & DOOR, name
        assert own not in GROUND or rooms <= GROUND, name
