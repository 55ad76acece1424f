#!/usr/bin/env bash
# Runs all tests: sets up, then does what CI does.
set -euo pipefail
cd "$(dirname "$0")"
./setup.sh
exec cargo xtask ci
