#!/bin/sh
# One night: `kinetics-prep run` with the arguments given. When it fails, FAILURE_URL, if set, gets a POST that says so,
# and the container counts as unhealthy until a night goes well.
set -u

kinetics-prep run "$@"
status=$?
if [ "$status" = 0 ]; then
    rm -f "$HOME/night-failed"
    exit 0
fi
said="kinetics-prep run ended with status $status"
echo "$said" | tee "$HOME/night-failed" >&2
if [ -n "${FAILURE_URL:-}" ]; then
    python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], sys.argv[2].encode(), timeout=30)' \
        "$FAILURE_URL" "$said" || echo "nobody was told: the POST to FAILURE_URL failed" >&2
fi
exit "$status"
