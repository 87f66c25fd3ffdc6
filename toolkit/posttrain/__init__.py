"""Post-training on TRL and PEFT: supervised fine-tuning, preferences, adapters."""
