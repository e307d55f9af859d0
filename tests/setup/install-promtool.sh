#!/usr/bin/env bash
# Puts promtool into target/promtool, from Debian's package `prometheus`: it judges metrics and rules in the tests. Only the file is taken
# out of the package, so that no Prometheus is started. Does nothing when there is one.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v promtool >/dev/null && exit 0
[ -x target/promtool/usr/bin/promtool ] && exit 0
echo 'installing promtool'
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
chmod 755 "$place"
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
$sudo apt-get update -qq
(cd "$place" && apt-get download -qq prometheus)
mkdir -p target/promtool
dpkg-deb --fsys-tarfile "$place"/prometheus_*.deb | tar x -C target/promtool ./usr/bin/promtool
target/promtool/usr/bin/promtool --version >/dev/null
