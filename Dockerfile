# Untried, for want of Docker: docker build -t clipcoco . && docker run --ipc=host -v "$PWD:/work" clipcoco train --preset demo
FROM python:3.12-slim
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY presets presets
# The torch without CUDA; for a GPU leave this line out, and run with --gpus all.
RUN pip install --no-cache-dir -c constraints.txt torch torchvision --index-url https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c constraints.txt .
WORKDIR /work
ENTRYPOINT ["clipcoco"]
