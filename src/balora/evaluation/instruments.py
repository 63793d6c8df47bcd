"""The instruments of text generation, and all that they measure at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from balora.evaluation.exact_match import measure_answers
from balora.evaluation.instrument import Instrument, MeasureOptions, Metrics, Models
from balora.evaluation.responses import measure_responses
from balora.evaluation.retention import measure_retention

INSTRUMENTS: Mapping[str, Instrument] = {
    instrument.name: instrument
    for instrument in (
        Instrument("answers", measure_answers),
        Instrument("responses", measure_responses),
        Instrument("retention", measure_retention),
    )
}
"""By name. Those of classification run while the classifier is trained; the lab brings its own."""


def measure(
    models: Models,
    options: MeasureOptions,
    instruments: Iterable[Instrument] = tuple(INSTRUMENTS.values()),
) -> Metrics:
    """Return what the instruments measure, by the name of the metric.

    Args:
        models: The fine-tuned model beside the pre-trained one.
        options: What to measure on, and how.
        instruments: In this order.

    Raises:
        ValueError: If there are no examples and an instrument needs them.
        ConfigError: If the retention text has fewer than two tokens.
        DataError: If a text holds a token that a model does not know.
    """
    metrics: Metrics = {}
    for instrument in instruments:
        metrics |= instrument.measure(models, options)
    return metrics
