"""Looking at data: what the verbs of ``toolkit data`` do, one module each."""
