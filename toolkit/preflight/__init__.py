"""Preflight: the nodes of a job are looked at, and the way between them measured, before the work.

``python -m toolkit.preflight STAGE_DIR [SETTINGS]`` is one rank of it. Ranks look at their own
node (``node``, ``gpus``) and meet at a store that rank 0 holds (``meeting``); rank 0 judges what
they found (``verdict``), and has them measure all-reduces within and across nodes (``links``,
``reduce``). Nodes that are not fit are named in ``STAGE_DIR/preflight/`` (``record``).
"""
