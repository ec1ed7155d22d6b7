#!/bin/sh
# The programs that some tests skip without, where they are missing and this user may install them; otherwise what to do.
set -eu
missing=
wants() { # FILE-OR-COMMAND PACKAGE
    command -v "$1" > /dev/null || missing="$missing $2"
}
wants "$(find /usr/lib/postgresql -path '*/bin/initdb' 2> /dev/null | sort -V | tail -1)" postgresql # databases of a site
wants chromium chromium # the coordinator's page in a browser
# One line for each further program.
if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    # shellcheck disable=SC2086 (a list)
    apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes $missing > /dev/null
    exit 0
fi
echo "some tests will be skipped; on Debian: sudo apt-get install$missing" >&2
