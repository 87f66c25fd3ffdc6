#!/bin/bash
# NVIDIA's entry point checks the driver and prints a banner. The banner goes to stderr here, so that
# `docker run IMAGE schema > toolkit.schema.json` writes the schema alone.
exec 3>&1
exec /opt/nvidia/nvidia_entrypoint.sh bash -c 'exec toolkit "$@" >&3 3>&-' toolkit "$@" >&2
