#!/usr/bin/env bash
# Set everything up, then run the main job end to end on SoftHSM tokens: ./demo.sh [--keep] [--json] …
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/setup.sh
exec .venv/bin/hsm-endorser demo "$@"
