# The GPU image: torch, TransformerEngine and apex as NVIDIA built them, the toolkit beside them.
#   make image
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" megatron-toolkit:0.1.0 doctor
#
# 26.09 holds Python 3.12, CUDA 13.4, torch 2.14 (a build of NVIDIA's) and TransformerEngine 2.19.
ARG NVIDIA_PYTORCH=26.09-py3

FROM nvcr.io/nvidia/pytorch:${NVIDIA_PYTORCH} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY k8s k8s
COPY slurm slurm
COPY toolkit toolkit
RUN PIP_CONSTRAINT='' pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM nvcr.io/nvidia/pytorch:${NVIDIA_PYTORCH}
ARG NVIDIA_PYTORCH
ARG VERSION=unversioned

# Dependencies first: a change of the code alone leaves this layer as it is. NVIDIA's own constraint
# file (PIP_CONSTRAINT) pins every package of the image; docker/requirements.py pins what NVIDIA
# built, and lets pip lift the rest where the toolkit needs a newer version.
RUN --mount=type=bind,source=pyproject.toml,target=/install/pyproject.toml \
    --mount=type=bind,source=constraints.txt,target=/install/constraints.txt \
    --mount=type=bind,source=docker/requirements.py,target=/install/requirements.py \
    python /install/requirements.py /install /tmp/install data train slurm k8s track \
    && PIP_CONSTRAINT='' PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir \
        --requirement /tmp/install/requirements.txt --constraint /tmp/install/constraints.txt \
    && rm -rf /tmp/install

RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    PIP_CONSTRAINT='' PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir --no-deps /wheel/*.whl \
    && toolkit --help > /dev/null

COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/toolkit-entrypoint

# A number, so that Kubernetes' runAsNonRoot can tell; above the base image's own user 1000.
RUN groupadd --gid 10000 toolkit \
    && useradd --uid 10000 --gid toolkit --create-home --shell /bin/bash toolkit \
    && install --directory --owner toolkit --group toolkit /work
USER 10000:10000
WORKDIR /work

ENTRYPOINT ["toolkit-entrypoint"]
CMD ["--help"]
HEALTHCHECK --interval=5m --timeout=2m --start-period=2m --retries=2 CMD ["toolkit", "doctor"]

LABEL org.opencontainers.image.title="megatron-toolkit" \
      org.opencontainers.image.description="From raw text to an aligned language model, from one YAML file" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/pytorch:${NVIDIA_PYTORCH}"
