"""From raw text to an aligned language model, from one YAML file."""

__version__ = "0.1.0"
