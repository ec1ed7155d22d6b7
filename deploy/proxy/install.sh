#!/bin/sh
# The proxy's program, where it is missing and this user may install it; otherwise what to do.
set -eu
PATH="$PATH:/usr/sbin"
if command -v nginx > /dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes nginx-light > /dev/null
    exit 0
fi
echo "nginx 1.20 or newer is needed; on Debian: sudo apt-get install nginx-light" >&2
exit 1
