#!/usr/bin/env bash
# The demo: a throw-away PostgreSQL archives through pgark into a local directory, loses a table, and is restored to just
# before; then a drill proves the archive. Usage: tests/demo.sh path/to/pgark. Leaves nothing behind but the drill's report.
set -euo pipefail

pgark=$(realpath "${1:?usage: tests/demo.sh path/to/pgark}")
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -t/ -k5 -n | tail -1)
[ -x "$bin/initdb" ] || { echo 'no PostgreSQL was found: run `make demo`' >&2; exit 1; }
place=$(mktemp -d /tmp/pgark-demo.XXXXXX)
chmod 755 "$place"
install -m 755 "$pgark" "$place/pgark"

# PostgreSQL refuses to run as root.
if [ "$(id -u)" = 0 ]; then
    chown postgres "$place"
    as_server() { (cd "$place" && runuser -u postgres -- env -i PATH="$bin:/usr/bin:/bin" LANG=C.UTF-8 PGHOST="$place" PGUSER=demo PGDATABASE=postgres PGARK_CONFIG=/dev/null "$@"); }
else
    as_server() { (cd "$place" && env -i PATH="$bin:/usr/bin:/bin" LANG=C.UTF-8 PGHOST="$place" PGUSER=demo PGDATABASE=postgres PGARK_CONFIG=/dev/null "$@"); }
fi
clean_up() {
    for data in "$place"/primary "$place"/restored; do
        [ -e "$data/postmaster.pid" ] && as_server pg_ctl -D "$data" stop -m immediate -s || true
    done
    rm -rf "$place"
}
trap clean_up EXIT
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
ours() { as_server "$place/pgark" --repo "file://$place/archive" "$@"; }
sql() { as_server psql -X -q -At -v ON_ERROR_STOP=1 "$@"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f", b - a }'; }

say "1. A cluster that archives through pgark ($("$bin/postgres" --version))"
as_server mkdir "$place/archive"
as_server initdb -D "$place/primary" -U demo -A trust --no-sync >/dev/null
as_server tee -a "$place/primary/postgresql.conf" >/dev/null <<CONF
listen_addresses = ''
unix_socket_directories = '$place'
wal_level = replica
archive_mode = on
archive_command = '$place/pgark --repo file://$place/archive wal-push %p %f'
archive_timeout = 60
CONF
as_server pg_ctl -D "$place/primary" -l "$place/primary.log" -w -s start
grep -E '^archive_command' "$place/primary/postgresql.conf"

say '2. pgark check'
ours --pgdata "$place/primary" check || [ $? = 1 ]

say '3. pgark basebackup, then some orders'
ours --pgdata "$place/primary" basebackup --label 'the demo'
sql -c 'create table orders (id int primary key, what text, placed timestamptz default clock_timestamp())'
sql -c "insert into orders select i, 'order ' || i from generate_series(1, 1000) i"
sql -c "insert into orders values (1001, 'the last order before the accident')"
sleep 1
before=$(sql -c "set timezone = 'UTC'" -c "select clock_timestamp()")
sleep 1

say "4. The accident: somebody drops the table, a moment after $before"
sql -c 'drop table orders'
sql -c "create table noise as select generate_series(1, 1000)"
last_commit=$(now)
sql -c 'select pg_switch_wal()' >/dev/null
for _ in $(seq 100); do
    [ "$(sql -c "select count(*) from pg_ls_dir('pg_wal/archive_status') as f where f like '%.ready'")" = 0 ] && break
    sleep 0.1
done
archived=$(now)
as_server find archive -name '*.zst' -printf '%P  %s bytes\n' | sort

say '5. And the whole server is lost'
as_server pg_ctl -D "$place/primary" stop -m immediate -s
rm -rf "$place/primary"

say "6. pgark restore to $before"
restoring=$(now)
ours restore --to "$place/restored" --target-time "$before"
as_server pg_ctl -D "$place/restored" -l "$place/restored.log" -w -s start
for _ in $(seq 300); do [ "$(sql -c 'select pg_is_in_recovery()')" = f ] && break; sleep 0.1; done
restored=$(now)
grep -E 'restored log file|recovery stopping|selected new timeline' "$place/restored.log" | sed 's/^.*LOG:  /  /'

say '7. The rows are back'
sql -c "select * from orders order by id desc limit 3"
rows=$(sql -c 'select count(*) from orders')
[ "$rows" = 1001 ] || { echo "expected 1001 rows, found $rows" >&2; exit 1; }

say '8. pgark drill: all of that again, checked, measured and reported'
printf '%s\n' '-- name: the orders until the accident' "select not exists (select 1 from pg_class where relname = 'orders')" |
    as_server tee "$place/drill.sql" >/dev/null
report=$(mktemp /tmp/pgark-demo-drill.XXXXXX.html)
ours drill --sql "$place/drill.sql" --html "$place/drill.html"
cat "$place/drill.html" > "$report"

say 'Result'
echo "  rows restored:  $rows of 1001"
echo "  loss window:    $(since "$last_commit" "$archived") s from the last commit until its WAL was in the archive (without a switch: archive_timeout, 60 s)"
echo "  restore time:   $(since "$restoring" "$restored") s from the order to restore until the server took writes"
echo "  drill report:   $report"
