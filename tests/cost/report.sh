#!/bin/sh
# report.sh LOG BUDGETS: processor seconds that each program took to compile, the most expensive first, and its dearest source. Fails
# if a source took more than its budget: the line of BUDGETS whose pattern its object matches first. Objects out of ccache are
# counted apart.
exec awk -v budgets="$2" '
  BEGIN {
    while ((getline line < budgets) > 0)
      if (line !~ /^#/ && split(line, part, " ") == 2) { pattern[++rules] = part[2]; limit[rules] = part[1] }
  }
  { last[$1 " " $2] = $0 } # a source may have been compiled before: its newest cost counts
  END {
    for (key in last) {
      split(last[key], f, " ")
      if (f[3] == "cache") { cached[f[1]]++; programs[f[1]]; continue }
      cost = 60 * (f[4] + f[6]) + f[5] + f[7]
      programs[f[1]]; total[f[1]] += cost; objects[f[1]]++; all += cost
      if (cost > most[f[1]]) { most[f[1]] = cost; dearest[f[1]] = f[2] }
      for (i = 1; i <= rules; ++i)
        if (f[2] ~ pattern[i]) {
          if (cost > limit[i]) { printf "over budget: %s took %.1f s, %s are allowed\n", f[2], cost, limit[i]; over++ }
          break
        }
    }
    sort = "sort -rn"
    for (p in programs) {
      name = dearest[p]; sub(/.*\//, "", name)
      printf "%8.1f s  %-32s %3d sources, the dearest %.1f s: %s%s\n", total[p], p, objects[p], most[p], name,
             (p in cached ? "; " cached[p] " more out of the cache" : "") | sort
    }
    close(sort)
    printf "%8.1f s  in all\n", all
    exit over > 0
  }' "$1"
