# The CPU image: `docker build -t xclr-graph .`, then `docker run --rm -v "$PWD:/data" xclr-graph graphbuild --help`.
FROM python:3.12-slim AS build
COPY . /source
RUN pip install --no-cache-dir 'uv>=0.9' \
    && uv venv /opt/xclr \
    && uv pip install --python /opt/xclr/bin/python --torch-backend cpu --no-cache /source

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 user && mkdir /data && chown user /data
COPY --from=build /opt/xclr /opt/xclr
ENV PATH="/opt/xclr/bin:$PATH"
USER 1000
WORKDIR /data
CMD ["graphbuild", "--help"]
