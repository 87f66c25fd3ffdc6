"""The rules that a layout must obey, each a small function; ``plan.layout`` asks them all."""
