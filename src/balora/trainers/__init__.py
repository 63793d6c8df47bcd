"""The trainers: thin layers over trl's and transformers' own."""

from balora.trainers.arguments import BALoraSFTConfig, BALoraTrainingArguments
from balora.trainers.classification import BALoraTrainer
from balora.trainers.sft import BALoraSFTTrainer

__all__ = ["BALoraSFTConfig", "BALoraSFTTrainer", "BALoraTrainer", "BALoraTrainingArguments"]
