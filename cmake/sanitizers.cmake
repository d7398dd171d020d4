# sluice_sanitizers(<target>): what SLUICE_SANITIZE names (for example "address;undefined" or "thread"), for tests, examples and benches.
function(sluice_sanitizers target)
  if(NOT SLUICE_SANITIZE)
    return()
  endif()
  list(JOIN SLUICE_SANITIZE "," names)
  target_compile_options(${target} INTERFACE -fsanitize=${names} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(${target} INTERFACE -fsanitize=${names})
endfunction()
