# Two images from one file: `serving` (ONNX Runtime behind FastAPI, no torch and no onnx) and `worker` (runs the fine-tune jobs).
#   docker build --target serving .    docker build --target worker .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS builder
WORKDIR /srv/specnorm
# Wheels that pip may take from elsewhere, and which PyTorch (cpu or cuda): see .ci/setup.
ARG PIP_FIND_LINKS
ARG TORCH=cpu
ENV PIP_NO_COMPILE=1
COPY .ci/setup .ci/setup
COPY pyproject.toml README.md LICENSE ./
# The packages' folders, still empty: what is installed then depends on pyproject.toml alone, and the layer is kept when code changes.
RUN mkdir -p app export specnorm_core && touch app/__init__.py export/__init__.py specnorm_core/__init__.py

FROM builder AS serving-environment
RUN --mount=type=cache,target=/root/.cache/pip python3 .ci/setup .venv cpu

FROM builder AS worker-environment
RUN --mount=type=cache,target=/root/.cache/pip python3 .ci/setup .venv cpu,train

# The demo model is trained once, when the images are built, so that `docker compose up` serves it at once.
FROM worker-environment AS demo
COPY app app
COPY export export
COPY specnorm_core specnorm_core
RUN .venv/bin/python -m export.train --data digits --arch mlp --gradient-mode full --out /srv/demo/digits

FROM ${BASE} AS runtime
WORKDIR /srv/specnorm
# A named volume takes owner and mode of the folder it covers: /data must exist and be the user's.
RUN useradd --system --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin specnorm && install -d -o specnorm -g specnorm /data
ENV PATH=/srv/specnorm/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SPECNORM_WORKSPACE=/data SPECNORM_LOG_FORMAT=json
USER specnorm
VOLUME /data

FROM runtime AS worker
LABEL org.opencontainers.image.title="specnorm worker" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=worker-environment /srv/specnorm /srv/specnorm
COPY app app
COPY export export
COPY specnorm_core specnorm_core
CMD ["specnorm", "worker"]

FROM runtime AS serving
LABEL org.opencontainers.image.title="specnorm serving" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=serving-environment /srv/specnorm /srv/specnorm
COPY --from=demo /srv/demo /srv/demo
COPY app app
COPY export export
COPY specnorm_core specnorm_core
ENV SPECNORM_HOST=0.0.0.0 SPECNORM_PORT=8000 SPECNORM_WORKER=none SPECNORM_DEMO_BUNDLE=/srv/demo/digits
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
CMD ["specnorm", "serve"]
