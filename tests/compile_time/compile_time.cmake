# cmake -DNAME=... -DCOMPILER=... -DCOMMON=... -DARGUMENTS=... -DTIMES=... -DBELOW=... -P compile_time.cmake
#
# Prints how long COMPILER takes over COMMON and ARGUMENTS, and refuses more than TIMES tenths of what it takes over BELOW, the headers of
# Eigen and xsimd alone: a slow or busy machine is slow at both.
cmake_minimum_required(VERSION 3.23) # microseconds in string(TIMESTAMP)

# The fastest of three, in milliseconds: the first may have to read the headers from disk.
function(compile_time result)
  set(best 1000000000)
  foreach(repeat RANGE 1 3)
    string(TIMESTAMP begin "%s%f")
    execute_process(COMMAND ${COMPILER} ${COMMON} ${ARGN} RESULT_VARIABLE failure)
    string(TIMESTAMP end "%s%f")
    if(failure)
      message(FATAL_ERROR "${NAME} does not compile")
    endif()
    math(EXPR took "(${end} - ${begin}) / 1000")
    if(took LESS best)
      set(best ${took})
    endif()
  endforeach()
  set(${result} ${best} PARENT_SCOPE)
endfunction()

compile_time(below -O0 -fsyntax-only ${BELOW})
compile_time(took ${ARGUMENTS})
math(EXPR seconds "${took} / 1000")
math(EXPR rest "${took} % 1000 + 1000")
string(SUBSTRING ${rest} 1 2 rest)
math(EXPR tenths "10 * ${took} / ${below}")
message("compile time ${NAME}: ${seconds}.${rest} s, ${tenths} tenths of Eigen's and xsimd's headers")
if(tenths GREATER TIMES)
  message(FATAL_ERROR "more than ${TIMES} tenths")
endif()
