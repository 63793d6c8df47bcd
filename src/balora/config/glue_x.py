"""GLUE-X: for each task of GLUE, data sets of another origin. Standard library only.

The sets and the direction of each label map are those of the authors' repository
(YangLinyi/GLUE-X). An entry is what `out_of_domain` of a recipe takes. A label is known by its name
and by its number, so that a file of one's own is read as the hub's. Of sets that the authors give
as files only (``FILES_ONLY``) nothing can be fetched: the recipe names the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GLUE_X = "glue-x"
"""The value of `out_of_domain` for these sets."""

FILES_ONLY = ("flipkart", "twitter", "qnli_ood", "cola_ood")

_GLUE = "nyu-mll/glue"
_BOTH_WAYS = ("entailment", "not_entailment")
_NEGATIVE_POSITIVE = ("negative", "positive")
_THREE_WAYS = ("entailment", "neutral", "contradiction")


def _pair(first: str, second: str, label: str = "label") -> dict[str, str]:
    return {"text_column": first, "text_pair_column": second, "label_column": label}


_SENTENCES = _pair("sentence1", "sentence2")
_SOURCES: dict[str, dict[str, Any]] = {
    "imdb": {"dataset_name": "stanfordnlp/imdb", "split": "test", "text_column": "text"},
    "yelp_polarity": {
        "dataset_name": "fancyzhx/yelp_polarity",
        "split": "test",
        "text_column": "text",
    },
    "amazon_polarity": {
        "dataset_name": "fancyzhx/amazon_polarity",
        "split": "test",
        "text_column": "content",
    },
    "flipkart": {"text_column": "Summary", "label_column": "Sentiment"},
    "mnli_mismatched": {
        "dataset_name": _GLUE,
        "dataset_config": "mnli",
        "split": "validation_mismatched",
        **_pair("premise", "hypothesis"),
    },
    "snli": {
        "dataset_name": "stanfordnlp/snli",
        "split": "test",
        **_pair("premise", "hypothesis"),
    },
    "sick": {
        "dataset_name": "tasksource/sick",
        "split": "test",
        **_pair("sentence_A", "sentence_B"),
    },
    "qnli_ood": _pair("question", "sentence"),
    "mrpc": {
        "dataset_name": _GLUE,
        "dataset_config": "mrpc",
        "split": "validation",
        **_SENTENCES,
    },
    "qqp": {
        "dataset_name": _GLUE,
        "dataset_config": "qqp",
        "split": "validation",
        **_pair("question1", "question2"),
    },
    "rte": {"dataset_name": _GLUE, "dataset_config": "rte", "split": "validation", **_SENTENCES},
    "hans": {
        "dataset_name": "tasksource/hans",
        "split": "validation",
        **_pair("sentence1", "sentence2", "labels"),
    },
    "scitail": {
        "dataset_name": "allenai/scitail",
        "dataset_config": "tsv_format",
        "split": "test",
        **_pair("premise", "hypothesis"),
    },
    "twitter": _SENTENCES,
    "cola_ood": {"text_column": "sentence", "label_column": "label"},
}
_WHOLE = {
    **dict.fromkeys(("imdb", "yelp_polarity", "amazon_polarity"), "train+test"),
    **dict.fromkeys(("snli", "sick"), "train+validation+test"),
}
"""The splits that the authors put together, where these are more than one."""


def _two_ways(no: tuple[str, ...], yes: tuple[str, ...], first: str, second: str) -> dict[str, str]:
    """Return a map of labels that mean `first` and labels that mean `second`."""
    return dict.fromkeys(no, first) | dict.fromkeys(yes, second)


def _paraphrases(no: str, yes: str) -> dict[str, dict[str, str]]:
    """Return the maps of data sets of paraphrases, whose number 1 says that two texts are one."""
    return {
        "mrpc": _two_ways(("not_equivalent", "0"), ("equivalent", "1"), no, yes),
        "qqp": _two_ways(("not_duplicate", "0"), ("duplicate", "1"), no, yes),
        "twitter": _two_ways(("0",), ("1",), no, yes),
    }


def _entailments(no: str, yes: str) -> dict[str, dict[str, str]]:
    """Return the maps of data sets of entailment, whose number 0 says that it follows."""
    return {
        "rte": _two_ways(("not_entailment", "1"), ("entailment", "0"), no, yes),
        "hans": _two_ways(("non-entailment", "1"), ("entailment", "0"), no, yes),
        "scitail": _two_ways(("neutral",), ("entails",), no, yes),
    }


def _picked(maps: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: maps[name] for name in names}


_NAMED = {name: name for name in _THREE_WAYS}
_NUMBERED = {str(number): name for number, name in enumerate(_THREE_WAYS)}
_POLARITY = _two_ways(("negative", "neg", "0"), ("positive", "pos", "1"), *_NEGATIVE_POSITIVE)
_TWO_SENTENCES = {
    **_paraphrases("not_entailment", "entailment"),
    **_entailments("not_entailment", "entailment"),
}

SETS: dict[str, dict[str, Mapping[str, str | None] | None]] = {
    "sst2": {
        "imdb": {**_POLARITY},
        # the names of its two classes are 1 and 2
        "yelp_polarity": {"1": "negative", "2": "positive"},
        "amazon_polarity": {**_POLARITY},
        "flipkart": {**_POLARITY, "neutral": "negative"},
    },
    "mnli": {
        "mnli_mismatched": {**_NAMED, **_NUMBERED},
        "snli": {**_NAMED, **_NUMBERED, "-1": None, "-": None},
        "sick": {**_NAMED, **_NUMBERED, **{name.upper(): name for name in _THREE_WAYS}},
    },
    "qnli": {"qnli_ood": {**dict(zip(_BOTH_WAYS, _BOTH_WAYS, strict=True))}},
    "rte": _picked(_TWO_SENTENCES, "mrpc", "qqp", "hans", "scitail"),
    "mrpc": _picked(
        {
            **_paraphrases("not_equivalent", "equivalent"),
            **_entailments("not_equivalent", "equivalent"),
        },
        *("qqp", "rte", "hans", "twitter"),
    ),
    "qqp": _picked(
        {
            **_paraphrases("not_duplicate", "duplicate"),
            **_entailments("not_duplicate", "duplicate"),
        },
        *("mrpc", "rte", "hans", "twitter"),
    ),
    "stsb": {"sick": None},
    "cola": {
        "cola_ood": _two_ways(
            ("unacceptable", "0"), ("acceptable", "1"), "unacceptable", "acceptable"
        )
    },
}
"""By task and name of the set: from a label to a class of the task, None for a regression."""


def entries(task: str, files: Mapping[str, Any], *, is_whole: bool = False) -> list[dict[str, Any]]:
    """Return the entries of a task, those that can be read.

    Args:
        task: Of GLUE.
        files: By the name of a set: its file, a mapping of fields of an entry that replace those
            here, or None to leave it out.
        is_whole: Whether the splits are those that the authors put together.
    """
    found, without = [], dropped_sets(task, files)
    for name, label_map in SETS[task].items():
        own = files.get(name, {})
        if name in without:
            continue
        entry = {"name": name, **_SOURCES[name], "label_map": label_map}
        if task == "stsb":
            entry["label_column"] = "relatedness_score"
        if is_whole and name in _WHOLE:
            entry["split"] = _WHOLE[name]
        if isinstance(own, str):
            own = {"dataset_name": own}
        if "dataset_name" in own:
            entry |= {"split": None, "dataset_config": None}  # those of the hub
        found.append({key: value for key, value in {**entry, **own}.items() if value is not None})
    return found


def dropped_sets(task: str, files: Mapping[str, Any]) -> list[str]:
    """Return the sets of a task that are not read: there is no file of them, or they are null."""
    return [
        name
        for name in SETS[task]
        if (name in FILES_ONLY and name not in files) or (name in files and files[name] is None)
    ]


def average_line(task: str, metric: str, metrics: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return a line with the average of a metric over the sets of a task, None where there is none.

    Args:
        task: Of GLUE.
        metric: The task's primary metric.
        metrics: Of the data sets out of domain, by name.

    The average is the plain one over the sets; that by rows, which the authors report, is beside.
    """
    names = [name for name in SETS.get(task, {}) if metrics.get(name, {}).get(metric) is not None]
    if not names:
        return None
    values = [metrics[name][metric] for name in names]
    sizes = [metrics[name]["num_rows"] for name in names]
    plain = sum(values) / len(values)
    by_rows = sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)
    missing = [name for name in SETS[task] if name not in names]
    without = f"; not measured: {', '.join(missing)}" if missing else ""
    return (
        f"GLUE-X, mean {metric} over {', '.join(names)}: {plain:.4f} (by rows: {by_rows:.4f})"
        f"{without}."
    )
