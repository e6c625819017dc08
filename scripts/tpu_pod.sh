#!/usr/bin/env bash
# One command on every host of a Cloud TPU slice. See docs/pods.md. Not run by us: no TPU was at hand.
#
#   export TPU_NAME=atkd ZONE=europe-west4-b PROJECT_ID=...
#   scripts/tpu_pod.sh create v5litepod-32          # spot; SPOT= for on demand
#   scripts/tpu_pod.sh setup FILESTORE_IP:/SHARE    # code, packages and the shared folder /mnt/atkd
#   scripts/tpu_pod.sh run -m atkd_jax.doctor --config=configs/imagenet.py --workdir=/mnt/atkd/mv2
#   scripts/tpu_pod.sh run -m atkd_jax.main --config=configs/imagenet.py --workdir=/mnt/atkd/mv2 \
#     --config.data.data_dir=gs://BUCKET/tfds --config.teacher.weights=/mnt/atkd/resnet50-0676ba61.pth
#   scripts/tpu_pod.sh stop                         # SIGTERM: every host saves and ends
#   scripts/tpu_pod.sh delete
set -euo pipefail

: "${TPU_NAME:?}" "${ZONE:?}" "${PROJECT_ID:?}"
where=(--zone="$ZONE" --project="$PROJECT_ID")
here=$(cd "$(dirname "$0")/.." && pwd)

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$TPU_NAME" "${where[@]}" --accelerator-type="${2:?type}" \
      --version="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}" ${SPOT---spot}
    ;;
  setup)
    # Only what git tracks: no data, no virtual environment.
    git -C "$here" archive --format=tar.gz -o /tmp/atkd.tar.gz HEAD
    gcloud compute tpus tpu-vm scp /tmp/atkd.tar.gz "$TPU_NAME":/tmp/atkd.tar.gz "${where[@]}" \
      --worker=all
    everywhere "set -e
      mkdir -p ~/atkd && tar -xzf /tmp/atkd.tar.gz -C ~/atkd && cd ~/atkd
      sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common python3-venv
      python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]==0.10.2'
      sudo mkdir -p /mnt/atkd
      mountpoint -q /mnt/atkd || sudo mount -t nfs '${2:?IP:/SHARE of a Filestore}' /mnt/atkd
      sudo chmod 777 /mnt/atkd"
    ;;
  run)
    shift
    # The same line on all hosts; they find each other. The log of each is in ~/atkd/run.log.
    everywhere "cd ~/atkd && .venv/bin/python $(printf '%q ' "$@") 2>&1 | tee -a run.log
      exit \${PIPESTATUS[0]}"
    ;;
  stop)
    everywhere "pkill -TERM -f 'atkd_jax[.]main' || true"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU_NAME" "${where[@]}" --quiet
    ;;
  *)
    sed -n '2,/^set/p' "$0" | grep '^#'
    exit 1
    ;;
esac
