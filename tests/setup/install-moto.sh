#!/usr/bin/env bash
# Installs moto's S3 server into target/moto: a second opinion about S3 for the tests. Does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -e target/moto/installed ] && exit 0
echo 'installing moto (S3 server for tests)'
if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq python3 python3-venv >/dev/null
fi
rm -rf target/moto
python3 -m venv target/moto
target/moto/bin/pip install --quiet --disable-pip-version-check 'moto[server,s3]==5.*'
target/moto/bin/moto_server --help >/dev/null
touch target/moto/installed
