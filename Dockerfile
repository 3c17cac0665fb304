# A notebook server, or `ollama serve`, with models in a volume:
#   docker build -t ollama-nb .
#   docker run --init -p 8888:8888 -v ollama:/home/user/.ollama ollama-nb                  the address with its token is in the log
#   docker run --init -p 11434:11434 -v ollama:/home/user/.ollama ollama-nb ollama serve

FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
# The machine that builds the image is not the one that runs it, so no instruction of this processor alone.
RUN python -m venv /opt/ollama-nb \
 && CMAKE_ARGS="-DGGML_NATIVE=OFF" /opt/ollama-nb/bin/pip install --no-cache-dir /src jupyterlab matplotlib ollama pydantic

FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends curl libgomp1 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 user && install -d -o user -g user /home/user/.ollama
COPY --from=build /opt/ollama-nb /opt/ollama-nb
COPY --chown=user:user notebooks /home/user/notebooks
ENV PATH=/opt/ollama-nb/bin:$PATH
USER user
WORKDIR /home/user/notebooks
VOLUME /home/user/.ollama
EXPOSE 8888 11434
# A server of its own must be reachable from outside the container. (Notebooks have theirs on Jupyter's port.)
ENTRYPOINT ["sh", "-c", "case $1 in ollama) export OLLAMA_HOST=${OLLAMA_HOST:-0.0.0.0};; esac; exec \"$@\"", "--"]
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser"]
