# A server of an adapting model: docker build -t testtime . && docker run -p 8000:8000 -e TESTTIME_TOKEN=... testtime
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[serve,demo,fsspec]" \
    && useradd --create-home --uid 10001 testtime \
    && install -d -o testtime /state
USER testtime
VOLUME /state
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["testtime", "serve", "--host", "0.0.0.0"]
CMD ["--model", "digits-cnn", "--method", "tent", "--state", "/state"]
