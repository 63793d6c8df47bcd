"""Writes answers with vLLM, in the environment that vLLM is installed in.

One JSON object comes in on the first line (``model``, ``adapter``, ``rank``, ``dtype``, ``seed``),
then one a line: ``prompts`` and how they are answered. One goes out for each: ``texts``, in the
order of the prompts. What vLLM prints goes to the error output.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Load the model and answer each line until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    from vllm import LLM, SamplingParams

    start = json.loads(sys.stdin.readline())
    adapter = start["adapter"]
    lora = {"enable_lora": True, "max_lora_rank": start["rank"]} if adapter else {}
    model = LLM(model=start["model"], dtype=start["dtype"], seed=start["seed"], **lora)
    request: dict[str, Any] = {}
    if adapter:
        from vllm.lora.request import LoRARequest

        request = {"lora_request": LoRARequest("run", 1, adapter)}
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        found = model.generate(asked["prompts"], SamplingParams(**asked["sampling"]), **request)
        texts = [[choice.text for choice in one.outputs] for one in found]
        print(json.dumps({"texts": texts}), file=out, flush=True)


if __name__ == "__main__":
    main()
