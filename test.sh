#!/usr/bin/env bash
# Set everything up, then run all tests: ./test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/setup.sh
prepare_test_tools
exec .venv/bin/python -m pytest "$@"
