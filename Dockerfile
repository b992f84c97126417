# A lab machine in a container: the testbed with what its drivers load, for PlutoSDR and boards on a serial port.
# USRP needs Debian's python3-uhd in an environment with NumPy 1: docs/troubleshooting.md.
#
#     docker build -t testbed --build-arg VERSION="$(.venv/bin/testbed --version)" .
#     mkdir -p runs && docker run --rm -v "$PWD/runs:/home/lab/runs" testbed run static_room --seed 7
#
# docs/how-to/container.md: users, keys, devices, the live page, and what of this file was tried.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends libiio0 libiio-utils \
    && rm -rf /var/lib/apt/lists/*

# The version comes from the repository, which is not copied: `testbed --version` on the machine that has it.
ARG VERSION=0+unknown
# Where torch is taken from: an index of CPU builds saves gigabytes of CUDA libraries, which nothing here needs.
ARG TORCH_INDEX=
WORKDIR /src
COPY . .
RUN SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION" \
    PIP_EXTRA_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir -c constraints.txt '.[live,notebooks,wifi]' \
    && rm -rf /src/build

# Keys and states are in the user's folder: mount /home/lab/.local/state/ris-skg-testbed to keep them.
RUN useradd --create-home lab && usermod -aG dialout lab
USER lab
WORKDIR /home/lab
ENTRYPOINT ["testbed"]
CMD ["--help"]
