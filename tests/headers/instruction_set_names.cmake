# Every generation of processors has a name of its own in sluice's symbols.
# cmake -DCOMPILER=... -DFLAGS=... -DBINARY=<folder> -P instruction_set_names.cmake
cmake_minimum_required(VERSION 3.21)
set(source ${BINARY}/instruction_set_name.cpp)
file(WRITE ${source} "#include <sluice/core/isa.hpp>\n>> SLUICE_ISA_NAME\n")

# The name after the colon, the flags before it.
foreach(expected
    "-march=x86-64:sse2" "-march=x86-64,-msse3:sse3" "-march=x86-64,-mssse3:ssse3" "-march=x86-64,-msse4.1:sse4_1"
    "-march=x86-64-v2:sse4_2" "-march=x86-64,-mavx:avx" "-march=x86-64,-mavx,-mfma:avx_fma" "-march=bdver1:avx_fma4"
    "-march=x86-64,-mavx2:avx2" "-march=x86-64-v3:avx2_fma" "-march=haswell:avx2_fma" "-march=x86-64,-mavx512f:avx512f"
    "-march=x86-64-v4:avx512bw" "-march=skylake-avx512:avx512bw" "-march=icelake-server:avx512vnni"
    "-march=x86-64,-ffast-math:sse2_fast" "-march=x86-64-v4,-ffast-math:avx512bw_fast"
    "-march=x86-64,-fno-exceptions:sse2_noexcept" "-march=x86-64,-ffast-math,-fno-exceptions:sse2_fast_noexcept")
  string(REGEX MATCH "^(.*):(.*)$" expected "${expected}")
  set(name ${CMAKE_MATCH_2})
  string(REPLACE "," ";" options "${CMAKE_MATCH_1}")
  execute_process(COMMAND ${COMPILER} ${FLAGS} ${options} -E -P ${source} OUTPUT_VARIABLE text RESULT_VARIABLE result)
  if(NOT result EQUAL 0 OR NOT text MATCHES ">> \"([a-z0-9_]+)\"")
    message(FATAL_ERROR "no name with ${options}")
  endif()
  if(NOT CMAKE_MATCH_1 STREQUAL name)
    message(FATAL_ERROR "${options} is called ${CMAKE_MATCH_1}, not ${name}")
  endif()
endforeach()
