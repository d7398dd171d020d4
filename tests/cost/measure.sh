#!/bin/sh
# measure.sh LOG PROGRAM OBJECT COMMAND...: runs a compiler and notes the processor time that it took, not the time on the clock, and how
# many sources it compiled together (CMake writes such a source as a list of #include lines).
log=$1 program=$2 object=$3
shift 3
hits=$log.$$.hits
spent=$log.$$.spent
CCACHE_STATSLOG=$hits "$@"
status=$?
times >"$spent" # not in a pipe, whose own children it would tell of
from=compiler
if [ -f "$hits" ]; then
  grep -q hit "$hits" && from=cache # what ccache found cost nothing now, and says nothing about a cold build
  rm -f "$hits"
fi
for source in "$@"; do :; done # the last argument
sources=1
case $source in
  */Unity/*) sources=$(grep -c '^#include' "$source") ;;
esac
# The second line is about children: minutes and seconds, in user code and in the system.
echo "$program $object $from $sources $(sed -n 2p "$spent" | tr 'ms' '  ')" >>"$log"
rm -f "$spent"
exit $status
