#!/usr/bin/env bash
# One command on every host of a Cloud TPU slice. See docs/pods.md. Not run by us: no TPU was at hand.
#
#   export TPU_NAME=atkd ZONE=europe-west4-b PROJECT_ID=...
#   scripts/tpu_pod.sh create v5litepod-32          # spot; SPOT= for on demand
#   scripts/tpu_pod.sh setup FILESTORE_IP:/SHARE    # code, packages and the shared folder /mnt/atkd
#   scripts/tpu_pod.sh doctor --config=configs/imagenet.py --workdir=/mnt/atkd/mv2
#   scripts/tpu_pod.sh train --config=configs/imagenet.py --workdir=/mnt/atkd/mv2 \
#     --config.data.data_dir=gs://BUCKET/tfds --config.teacher.weights=/mnt/atkd/resnet50-0676ba61.pth
#   scripts/tpu_pod.sh logs                         # of host 0, as it grows; logs 3: of host 3
#   scripts/tpu_pod.sh stop                         # SIGTERM: every host saves and ends; waits for it
#   scripts/tpu_pod.sh delete
set -euo pipefail

: "${TPU_NAME:?}" "${ZONE:?}" "${PROJECT_ID:?}"
where=(--zone="$ZONE" --project="$PROJECT_ID")
here=$(cd "$(dirname "$0")/.." && pwd)

on() { # WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2"
}

# The training whose process id is in run.pid, if it is still that training.
mine="-F run.pid -f atkd_jax.main"

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$TPU_NAME" "${where[@]}" --accelerator-type="${2:?type}" \
      --version="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}" ${SPOT---spot}
    ;;
  setup)
    share=${2:?IP:/SHARE of a Filestore}
    # Only what git has: no data, no virtual environment.
    changed=$(git -C "$here" status --porcelain --untracked-files=no)
    if [ -n "$changed" ]; then
      echo "error: setup copies the last commit; commit your changes first (git status)" >&2
      exit 1
    fi
    git -C "$here" archive --format=tar.gz -o /tmp/atkd.tar.gz HEAD
    gcloud compute tpus tpu-vm scp /tmp/atkd.tar.gz "$TPU_NAME":/tmp/atkd.tar.gz "${where[@]}" \
      --worker=all
    # The images are Ubuntu 22.04, whose Python 3.10 is too old for JAX; uv brings its own.
    on all "set -e
      mkdir -p ~/atkd && tar -xzf /tmp/atkd.tar.gz -C ~/atkd && cd ~/atkd
      sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common
      uv=~/.local/bin/uv
      [ -x \$uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
      [ -x .venv/bin/python ] || \$uv venv --python 3.12 .venv
      \$uv pip install -q -r requirements.txt 'jax[tpu]==0.10.2'
      sudo mkdir -p /mnt/atkd
      mountpoint -q /mnt/atkd || sudo mount -t nfs '$share' /mnt/atkd
      sudo chmod 777 /mnt/atkd"
    ;;
  doctor)
    shift
    on all "cd ~/atkd && .venv/bin/python -m atkd_jax.doctor $(printf '%q ' "$@")"
    ;;
  train)
    shift
    # The same line on all hosts; they find each other. It goes on when this connection ends.
    on all "cd ~/atkd || exit 1
      if pgrep $mine > /dev/null 2>&1; then
        echo 'a training is running here already: see logs, or stop it first' >&2
        exit 1
      fi
      nohup .venv/bin/python -m atkd_jax.main $(printf '%q ' "$@") >> run.log 2>&1 < /dev/null &
      echo \$! > run.pid"
    ;;
  logs)
    on "${2:-0}" "tail -n 40 -F ~/atkd/run.log"
    ;;
  stop)
    on all "cd ~/atkd && pkill -TERM $mine || { echo 'no training is running here'; exit 0; }
      while pgrep $mine > /dev/null; do sleep 1; done
      tail -n 1 run.log"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU_NAME" "${where[@]}" --quiet
    ;;
  *)
    sed -n '2,/^set/p' "$0" | grep '^#'
    exit 1
    ;;
esac
