# What Doxygen reads instead of a file: awk -v root=<repository> -f filter.awk <file>. The sources stay as people read them.
#
#   - A header's opening comment becomes the description of its file, and a class without a comment of its own refers to it.
#   - Indented lines of comments (shapes, equations, calls) are shown as they stand; elsewhere < > # @ & are characters.
#   - The inline namespace that names the instruction set is left out: everything is sluice::.
#   - A document's links to files that get no page lead to the copies that lie beside the folder of pages.

function escaped(text,    parts, n, i, out) {
  n = split(text, parts, "`")
  for (i = 1; i <= n; ++i) {
    if (i % 2 == 1) {
      gsub(/&/, "\\\\\\&", parts[i])
      gsub(/[<>#@*|]/, "\\\\&", parts[i])
    }
    out = out (i > 1 ? "`" : "") parts[i]
  }
  return out
}

function verbatim(wanted, indent) {
  if (shown_as_it_stands && !wanted) print indent "/// ~~~\n" indent "///"
  printf "%s", blanks
  blanks = ""
  if (wanted && !shown_as_it_stands) print indent "///\n" indent "/// ~~~"
  shown_as_it_stands = wanted
}

# Prints a comment line with its markup made plain; `indent` is what stands before the slashes.
function comment(indent, text) {
  if (text ~ /^ *$/) {
    blanks = blanks indent "///\n"
  } else if (text ~ /^   *[^ -]/) {
    verbatim(1, indent)
    print indent "///" text
  } else {
    verbatim(0, indent)
    print indent "///" escaped(text)
  }
}

function flush_held(refer) {
  if (held == "") return
  if (refer) print "/// Described in " place "."
  printf "%s", held
  held = ""
}

FNR == 1 {
  place = FILENAME
  sub(/^.*include\//, "", place)
  header = FILENAME ~ /\.hpp$/
  if (header && /^\/\/\/ /) print "/// \\file"
}

!header { # a document
  folder = substr(FILENAME, length(root) + 2)
  sub(/[^\/]*$/, "", folder)
  out = ""
  while (match($0, /\]\([^)#]*\)/)) {
    target = substr($0, RSTART + 2, RLENGTH - 3)
    to_copy = target !~ /^https?:/ && target !~ /\.md$/
    out = out substr($0, 1, RSTART + 1) (to_copy ? "../" folder : "") target ")"
    $0 = substr($0, RSTART + RLENGTH)
  }
  print out $0
  next
}

{
  sub(/namespace sluice::inline SLUICE_ISA/, "namespace sluice")
  if (match($0, /^ *\/\/\/([^<]|$)/)) {
    flush_held(0)
    indent = $0
    sub(/\/\/\/.*/, "", indent)
    comment(indent, substr($0, length(indent) + 4))
    documented = 1
    next
  }
  verbatim(0, indent)
  if (match($0, /\/\/\/< /)) $0 = substr($0, 1, RSTART + 4) escaped(substr($0, RSTART + 5))
  if (held == "" && !documented && /^(template|class|struct) ?/ || held != "") {
    held = held $0 "\n"
    if (/^(template|requires|  )/ && !/[;{]$/) next
    flush_held(/^(class|struct) [a-z_]+( [:{]|$)/)
  } else
    print
  documented = 0
}

END { flush_held(0) }
