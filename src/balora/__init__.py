"""BA-LoRA: fine-tune language models and keep what they knew."""
