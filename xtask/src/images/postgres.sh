#!/bin/sh
# The first start makes the data directory; every start then becomes the server.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata="$PGDATA" --username=postgres --auth=trust >&2
    echo "host all all all trust" >>"$PGDATA/pg_hba.conf"
fi
# A volume's group may have been given the right to write, which the server refuses.
chmod 0700 "$PGDATA"
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
