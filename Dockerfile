# syntax=docker/dockerfile:1

# llmbridge without an embedded Redis: name one with REDIS_URL or REDIS_HOST.
#
#   docker build --tag llmbridge .
#   docker run --publish 50051:50051 --env REDIS_URL=redis://redis:6379/0 --env LLMBRIDGE_ALLOW_INSECURE=true llmbridge
#
# In a container the bridge has to listen beyond loopback, and it has no authentication yet. So it starts only when the
# operator says LLMBRIDGE_ALLOW_INSECURE=true, having made sure that only trusted callers reach the port. The image
# does not say it for them.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore

# Without pip in it: nothing is installed in the running image.
RUN python -m venv --without-pip /opt/llmbridge

WORKDIR /build

# The dependencies make a layer of their own, which changes with pyproject.toml only.
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip <<'EOT'
set -eu
python - >requirements.txt <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras["tracing"], *extras["gateway"], *extras["openai"], sep="\n")
PYTHON
pip --python /opt/llmbridge/bin/python install --requirement requirements.txt
EOT

COPY README.md ./
COPY src ./src
RUN --mount=type=cache,target=/root/.cache/pip <<'EOT'
set -eu
pip wheel --no-deps --wheel-dir dist .
pip --python /opt/llmbridge/bin/python install --no-deps dist/*.whl
EOT


FROM python:${PYTHON_VERSION}-slim

# A fixed number, so that volumes and Kubernetes' runAsNonRoot can rely on it.
RUN groupadd --system --gid 10001 llmbridge \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin llmbridge

COPY --from=build /opt/llmbridge /opt/llmbridge

ENV PATH=/opt/llmbridge/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LLMBRIDGE_HOST=0.0.0.0 \
    LLMBRIDGE_PORT=50051

USER 10001:10001
EXPOSE 50051 8080
STOPSIGNAL SIGTERM

# By way of a shell, so that it follows LLMBRIDGE_PORT.
# hadolint ignore=DL3025
HEALTHCHECK --interval=15s --timeout=5s --start-period=15s --retries=3 \
    CMD llmbridge health --address "127.0.0.1:${LLMBRIDGE_PORT}"

ENTRYPOINT ["llmbridge"]
CMD ["serve"]
