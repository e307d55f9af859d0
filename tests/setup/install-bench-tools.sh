#!/usr/bin/env bash
# Installs what `make bench` measures with and beside: valgrind, and pgBackRest from Debian. Without them the benches run, too, and say
# what they leave out. Quick when they are there.
set -euo pipefail
missing=()
command -v valgrind >/dev/null || missing+=(valgrind)
command -v pgbackrest >/dev/null || missing+=(pgbackrest)
[ ${#missing[@]} = 0 ] && exit 0
echo "installing ${missing[*]}"
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
if ! { $sudo apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
    echo "cannot install ${missing[*]}: the benches go on without" >&2
fi
