# bagel's server (or any other command of it) in a container. This file has never been run: whoever builds it first, please report.
#
#   docker build -t bagel .                                                                        for the CPU
#   docker build -t bagel --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .         for NVIDIA GPUs
#   docker run --rm -p 127.0.0.1:8000:8000 -e BAGEL_API_KEYS=... -v bagel:/data bagel
#   docker run --rm --gpus all -p 127.0.0.1:8000:8000 -e BAGEL_API_KEYS=... -v bagel:/data bagel \
#     serve --host 0.0.0.0 -c ByteDance-Seed/BAGEL-7B-MoT
#   docker run --rm -v "$PWD:/data" bagel generate "a red car" -o car.png
FROM python:3.12-slim

# The wheels of this index bring their own CUDA libraries; the host needs its driver and the NVIDIA container toolkit.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve,app,gguf

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/data/huggingface

# PyTorch is a layer of its own, which changes of the code leave as it is.
RUN pip install --index-url "$TORCH_INDEX" "torch>=2.9.1,<3"

WORKDIR /opt/bagel
COPY pyproject.toml setup.py README.md LICENSE ./
COPY bagel_mot ./bagel_mot
RUN pip install ".[$EXTRAS]" \
  && useradd --create-home --uid 1000 bagel \
  && mkdir /data && chown bagel /data

USER bagel
WORKDIR /data
VOLUME /data
EXPOSE 8000 7860
ENTRYPOINT ["bagel"]
CMD ["serve", "--host", "0.0.0.0"]
