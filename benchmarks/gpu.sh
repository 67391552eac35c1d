#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one command; docs/gpu.md explains it.
#
#   bash benchmarks/gpu.sh OUT [STAGE ...] [--data=train.zip,test.zip] [--wheels=FOLDER] [flags]
#
# It needs a Python with JAX ($PYTHON, by default python3), and nothing from the network. Packages
# that this Python lacks come from the wheels in FOLDER, which are installed into a folder of their
# own. `--help` lists the stages and the other flags.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
scratch=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/score_jax_gpu
wheels=
arguments=()
for argument in "$@"; do
    case $argument in
        --wheels=*) wheels=${argument#*=} ;;
        --scratch=*) scratch=${argument#*=} ;;
        *) arguments+=("$argument") ;;
    esac
done
mkdir -p "$scratch"
scratch=$(cd "$scratch" && pwd)

path=$root
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
        --disable-pip-version-check --root-user-action=ignore \
        --target "$scratch/site" "$wheels"/*.whl
    path=$path:$scratch/site
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1

# PyTorch shares the card with JAX, which would otherwise reserve three quarters of it.
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}
# Stages run in processes of their own and compile some of the same programs.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$scratch/programs}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}

exec "$python" "$root/benchmarks/gpu.py" "--scratch=$scratch" ${arguments[@]+"${arguments[@]}"}
