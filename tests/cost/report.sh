#!/bin/sh
# report.sh LOG BUDGETS: processor seconds that each program took to compile, the most expensive first, and its dearest object. Fails
# if an object took more than its budget a source: the line of BUDGETS whose pattern it matches first. Budgets are multiples of what
# tests/main.cpp took, so that a slow or busy machine is no failure; exit code 77 if that came out of ccache, which tells nothing
# about a cold build. Other objects out of ccache are counted apart.
exec awk -v budgets="$2" '
  BEGIN {
    while ((getline line < budgets) > 0)
      if (line !~ /^#/ && split(line, part, " ") == 2) { limit[++rules] = part[1]; pattern[rules] = part[2] }
  }
  { last[$1 " " $2] = $0 } # a source may have been compiled before: its newest cost counts
  function cost_of(f) { return 60 * (f[5] + f[7]) + f[6] + f[8] }
  END {
    for (key in last) {
      split(last[key], f, " ")
      programs[f[1]]
      if (f[3] == "cache") { cached[f[1]] += f[4]; continue }
      cost[f[2]] = cost_of(f)
      together[f[2]] = f[4]
      total[f[1]] += cost[f[2]]; sources[f[1]] += f[4]; all += cost[f[2]]
      if (cost[f[2]] > most[f[1]]) { most[f[1]] = cost[f[2]]; dearest[f[1]] = f[2] }
      if (f[1] == "sluice_test_main") unit = cost[f[2]]
    }
    for (object in cost)
      for (i = 1; unit > 0 && i <= rules; ++i)
        if (object ~ pattern[i]) {
          allowed = limit[i] * unit * together[object]
          if (cost[object] > allowed) {
            printf "over budget: %s took %.1f s for %d sources, %.1f are allowed\n", object, cost[object], together[object], allowed
            over = 1
          }
          break
        }
    sort = "sort -rn"
    for (p in programs) {
      name = dearest[p]; sub(/.*\//, "", name)
      printf "%8.1f s  %-32s %3d sources, the dearest object %.1f s: %s%s\n", total[p], p, sources[p], most[p], name,
             (p in cached ? "; " cached[p] " more out of the cache" : "") | sort
    }
    close(sort)
    printf "%8.1f s  in all\n", all
    if (unit == 0) print "tests/main.cpp was not compiled: budgets are multiples of its cost, so nothing was compared"
    exit unit == 0 ? 77 : over
  }' "$1"
