# sluice_warnings(<target>): the warnings that sluice's own tests, examples and benches are built with. Never put on sluice::sluice:
# a user's flags are the user's.
function(sluice_warnings target)
  if(MSVC)
    target_compile_options(${target} INTERFACE /W4 $<$<BOOL:${SLUICE_WERROR}>:/WX>)
    return()
  endif()
  target_compile_options(${target} INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
                                             $<$<BOOL:${SLUICE_WERROR}>:-Werror>)
endfunction()
