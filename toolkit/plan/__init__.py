"""Planning: what a pipeline would do, checked and sized before anything starts."""
