# Two images from one file: `--target gateway` (light) and `--target worker` (torch, transformers).

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bitinglip bitinglip
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    BITINGLIP_DATA_DIR=/data
RUN useradd --create-home --uid 1000 bitinglip && install -d -o bitinglip /data
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels

FROM base AS gateway
RUN pip install --no-cache-dir -c /tmp/constraints.txt /wheels/*.whl
USER bitinglip
VOLUME /data
EXPOSE 8420
ENV BITINGLIP_GATEWAY_HOST=0.0.0.0
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8420/healthz', timeout=4)"]
ENTRYPOINT ["bitinglip"]
CMD ["gateway"]

FROM base AS worker
# The torch build for the cards: empty for the index's default (CUDA on Linux), or PyTorch's own index for ROCm or XPU.
ARG TORCH_INDEX_URL=
RUN pip install --no-cache-dir -c /tmp/constraints.txt ${TORCH_INDEX_URL:+--index-url ${TORCH_INDEX_URL}} torch \
    && for wheel in /wheels/*.whl; do pip install --no-cache-dir -c /tmp/constraints.txt "${wheel}[worker]"; done
USER bitinglip
VOLUME /data
ENTRYPOINT ["bitinglip"]
CMD ["worker"]
