# Two images from one file: `serving` (ONNX Runtime behind FastAPI, no torch and no onnx) and `worker` (runs the fine-tune jobs).
#   docker build --target serving .    docker build --target worker .    --build-arg RUNTIME=gpu for NVIDIA's GPUs
# What they install is in .ci/locks, every file by its hash (written by .ci/lock).
ARG BASE=python:3.11-slim-bookworm
ARG RUNTIME=cpu

# pip and what else builds; none of it is in the images.
FROM ${BASE} AS tools
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY .ci/locks/build.txt /srv/
RUN --mount=type=cache,target=/var/cache/pip \
  python3 -m venv /srv/tools && /srv/tools/bin/python -m pip install --quiet --require-hashes --requirement /srv/build.txt

FROM tools AS wheel
WORKDIR /srv/source
ENV SOURCE_DATE_EPOCH=315532800
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY export export
COPY specnorm_core specnorm_core
RUN /srv/tools/bin/python -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir /srv/wheel .

FROM tools AS serving-environment
ARG RUNTIME
COPY .ci/locks/serving-${RUNTIME}.txt .ci/pare /srv/tools/
RUN --mount=type=cache,target=/var/cache/pip python3 -m venv --without-pip /srv/environment \
  && /srv/tools/bin/python -m pip --python /srv/environment/bin/python install --quiet --no-deps --no-compile --require-hashes \
  --requirement /srv/tools/serving-${RUNTIME}.txt \
  && python3 /srv/tools/pare /srv/environment

# PyTorch's CPU build is in an index of its own; its build for CUDA is locked with all the rest.
FROM tools AS torch-cpu
ARG TORCH_FROM="--index-url https://download.pytorch.org/whl/cpu"
COPY .ci/locks/torch-cpu.txt /srv/tools/
RUN --mount=type=cache,target=/var/cache/pip python3 -m venv --without-pip /srv/environment \
  && /srv/tools/bin/python -m pip --python /srv/environment/bin/python install --quiet --no-deps --no-compile --require-hashes ${TORCH_FROM} \
  --requirement /srv/tools/torch-cpu.txt

FROM tools AS torch-gpu
RUN python3 -m venv --without-pip /srv/environment

FROM torch-${RUNTIME} AS worker-environment
ARG RUNTIME
COPY .ci/locks/worker-${RUNTIME}.txt /srv/tools/
RUN --mount=type=cache,target=/var/cache/pip /srv/tools/bin/python -m pip --python /srv/environment/bin/python install --quiet --no-deps \
  --no-compile --require-hashes --requirement /srv/tools/worker-${RUNTIME}.txt

# The code apart from the packages that it needs: a new release is a small layer. With it go the byte code of all that is
# loaded, and a list of every package (CycloneDX).
FROM serving-environment AS serving-code
ENV PYTHONPATH=/srv/specnorm PYTHONPYCACHEPREFIX=/srv/bytecode PYTHONDONTWRITEBYTECODE=1
COPY .ci/bytecode /srv/tools/
COPY --from=wheel /srv/wheel /srv/wheel
RUN /srv/tools/bin/python -m pip --python /srv/environment/bin/python install --quiet --no-deps --no-index --no-compile --target /srv/specnorm \
  /srv/wheel/*.whl \
  && /srv/environment/bin/python /srv/tools/bytecode app obstore.store uvicorn.lifespan.on uvicorn.loops.uvloop \
  uvicorn.protocols.http.httptools_impl sqlalchemy.dialects.sqlite.pysqlite sqlalchemy.dialects.postgresql.psycopg \
  && /srv/tools/bin/cyclonedx-py environment --output-reproducible --output-file /srv/sbom.json /srv/environment/bin/python

FROM worker-environment AS worker-code
ENV PYTHONPATH=/srv/specnorm PYTHONPYCACHEPREFIX=/srv/bytecode PYTHONDONTWRITEBYTECODE=1
COPY .ci/bytecode /srv/tools/
COPY --from=wheel /srv/wheel /srv/wheel
RUN /srv/tools/bin/python -m pip --python /srv/environment/bin/python install --quiet --no-deps --no-index --no-compile --target /srv/specnorm \
  /srv/wheel/*.whl \
  && /srv/environment/bin/python /srv/tools/bytecode app export specnorm_core obstore.store sqlalchemy.dialects.sqlite.pysqlite \
  sqlalchemy.dialects.postgresql.psycopg \
  && /srv/tools/bin/cyclonedx-py environment --output-reproducible --output-file /srv/sbom.json /srv/environment/bin/python

# The demo model is trained once, when the images are built, so that `docker compose up` serves it at once.
FROM worker-code AS demo
RUN /srv/environment/bin/python -m export.train --data digits --arch mlp --gradient-mode full --out /srv/demo/digits

FROM ${BASE} AS runtime
ARG BASE
ARG RUNTIME
ARG VERSION=0.1.0
LABEL org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.licenses="Apache-2.0" org.opencontainers.image.base.name="${BASE}" io.specnorm.runtime="${RUNTIME}"
# A named volume takes owner and mode of the folder it covers: /data must exist and be the user's.
RUN groupadd --gid 10001 specnorm \
  && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin specnorm \
  && install -d -o specnorm -g specnorm /data
ENV PATH=/srv/specnorm/bin:/srv/environment/bin:$PATH PYTHONPATH=/srv/specnorm PYTHONPYCACHEPREFIX=/srv/bytecode \
  PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SPECNORM_WORKSPACE=/data SPECNORM_LOG_FORMAT=json
WORKDIR /data
USER 10001:10001
VOLUME /data

FROM runtime AS worker
LABEL org.opencontainers.image.title="specnorm worker" \
  org.opencontainers.image.description="Runs the fine-tune jobs of a specnorm service and judges the models that are imported"
COPY --from=worker-environment /srv/environment /srv/environment
COPY --from=worker-code /srv/bytecode /srv/bytecode
COPY --from=worker-code /srv/sbom.json /srv/sbom.json
COPY --from=worker-code /srv/specnorm /srv/specnorm
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-S", "-c", "import os, time; raise SystemExit(time.time() - os.stat('/tmp/alive').st_mtime > 15)"]
CMD ["specnorm", "worker", "--alive", "/tmp/alive"]
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="${REVISION}"

FROM runtime AS serving
LABEL org.opencontainers.image.title="specnorm serving" \
  org.opencontainers.image.description="Serves spectral-normalised networks whose every answer carries a Lipschitz bound that holds"
COPY --from=serving-environment /srv/environment /srv/environment
COPY --from=demo /srv/demo /srv/demo
COPY --from=serving-code /srv/bytecode /srv/bytecode
COPY --from=serving-code /srv/sbom.json /srv/sbom.json
COPY --from=serving-code /srv/specnorm /srv/specnorm
ENV SPECNORM_HOST=0.0.0.0 SPECNORM_PORT=8000 SPECNORM_WORKER=none SPECNORM_DEMO_BUNDLE=/srv/demo/digits
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-S", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/v2/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["specnorm", "serve"]
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="${REVISION}"
