#!/usr/bin/env bash
# Installs what the build and the demo need besides Rust: a C compiler for zstd and ring, and zstd. Quick when they are there.
set -euo pipefail
missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v zstd >/dev/null || missing+=(zstd)
command -v cargo >/dev/null || { echo 'Rust is missing: install a toolchain with cargo first' >&2; exit 1; }
[ ${#missing[@]} = 0 ] && exit 0
echo "installing ${missing[*]}"
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "${missing[@]}" >/dev/null
