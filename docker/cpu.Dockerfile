# The CPU image: for trying pipelines, for tests, and as a login node's tool.
#   make image-cpu
#   docker run --rm --init --shm-size 1g -v "$PWD:/work" megatron-toolkit:0.1.0-cpu check configs/mini.yaml
#
# The package index's own torch for x86 brings CUDA's libraries along, gigabytes of them. To leave
# them out, name PyTorch's index of CPU wheels: --build-arg TORCH_ARGS="--index-url ...".
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY k8s k8s
COPY slurm slurm
COPY toolkit toolkit
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON}-slim
ARG PYTHON
ARG TORCH_ARGS=""
ARG VERSION=unversioned

# torch in a layer of its own: it is the largest part, and changes least.
RUN --mount=type=bind,source=constraints.txt,target=/install/constraints.txt \
    pip install --no-cache-dir ${TORCH_ARGS} "$(grep -m1 '^torch==' /install/constraints.txt)"

RUN --mount=type=bind,source=pyproject.toml,target=/install/pyproject.toml \
    --mount=type=bind,source=constraints.txt,target=/install/constraints.txt \
    --mount=type=bind,source=docker/requirements.py,target=/install/requirements.py \
    python /install/requirements.py /install /tmp/install data train slurm k8s \
    && pip install --no-cache-dir \
        --requirement /tmp/install/requirements.txt --constraint /tmp/install/constraints.txt \
    && rm -rf /tmp/install

RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps /wheel/*.whl \
    && toolkit --help > /dev/null

RUN groupadd --gid 10000 toolkit \
    && useradd --uid 10000 --gid toolkit --create-home --shell /bin/bash toolkit \
    && install --directory --owner toolkit --group toolkit /work
USER 10000:10000
WORKDIR /work

ENTRYPOINT ["toolkit"]
CMD ["--help"]
HEALTHCHECK --interval=5m --timeout=2m --start-period=2m --retries=2 CMD ["toolkit", "doctor"]

LABEL org.opencontainers.image.title="megatron-toolkit" \
      org.opencontainers.image.description="From raw text to an aligned language model, from one YAML file" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="python:${PYTHON}-slim"
