# cmake -DNAME=... -DCOMPILER=... -DCOMMON=... -DARGUMENTS=... -DTIMES=... -DBELOW=... -P compile_time.cmake
#
# Prints how long COMPILER takes over COMMON and ARGUMENTS, and refuses more than TIMES tenths of what it takes over BELOW, the headers of
# Eigen and xsimd alone: a slow or busy machine is slow at both. Each is the fastest of three, in milliseconds, by turns, for a machine may be
# slow at one moment and not at the next; what seems too much is measured on, up to nine times, since noise only makes a compiler slower.
cmake_minimum_required(VERSION 3.23) # microseconds in string(TIMESTAMP)

macro(measure best)
  string(TIMESTAMP begin "%s%f")
  execute_process(COMMAND ${COMPILER} ${COMMON} ${ARGN} RESULT_VARIABLE failure)
  string(TIMESTAMP end "%s%f")
  if(failure)
    message(FATAL_ERROR "${NAME} does not compile")
  endif()
  math(EXPR took "(${end} - ${begin}) / 1000")
  if(took LESS ${best})
    set(${best} ${took})
  endif()
endmacro()

set(below 1000000000)
set(whole 1000000000)
foreach(round RANGE 1 9)
  measure(below -O0 -fsyntax-only ${BELOW})
  measure(whole ${ARGUMENTS})
  math(EXPR tenths "10 * ${whole} / ${below}")
  if(round GREATER_EQUAL 3 AND NOT tenths GREATER TIMES)
    break()
  endif()
endforeach()
math(EXPR seconds "${whole} / 1000")
math(EXPR rest "${whole} % 1000 + 1000")
string(SUBSTRING ${rest} 1 2 rest)
message("compile time ${NAME}: ${seconds}.${rest} s, ${tenths} tenths of Eigen's and xsimd's headers")
if(tenths GREATER TIMES)
  message(FATAL_ERROR "more than ${TIMES} tenths")
endif()
