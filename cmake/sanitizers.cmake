# sluice_sanitizers(<target>): what SLUICE_SANITIZE names (for example "address;undefined" or "thread"), for tests, examples and benches.
function(sluice_sanitizers target)
  if(NOT SLUICE_SANITIZE)
    return()
  endif()
  list(JOIN SLUICE_SANITIZE "," names)
  target_compile_options(${target} INTERFACE -fsanitize=${names} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(${target} INTERFACE -fsanitize=${names})
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    # xsimd's exp converts numbers that it then leaves aside, and Eigen asks an empty matrix for its columns: nothing is read there.
    target_compile_options(${target} INTERFACE -fno-sanitize=float-cast-overflow,pointer-overflow)
  endif()
  # Whether an access is aligned, inside an object of known size and not through a null pointer, which AddressSanitizer reports as well:
  # asking at each one triples the code.
  target_compile_options(${target} INTERFACE
    $<$<BOOL:$<TARGET_PROPERTY:SLUICE_TRUSTS_ACCESSES>>:-fno-sanitize=alignment,object-size,null>)
endfunction()
