"""Pipeline files: from YAML to typed stages, their graph, and the state of their runs."""
