# Configures, builds and runs a program that uses sluice, from an empty folder.
# cmake -DSOURCE=... -DBINARY=... -DGENERATOR=... -DMAKE_PROGRAM=... -DCOMPILER=... [-DOPTIONS=-Da=b;...] -P consume.cmake
cmake_minimum_required(VERSION 3.21)
file(REMOVE_RECURSE ${BINARY})
file(MAKE_DIRECTORY ${BINARY})

function(run)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${BINARY} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " line)
    message(FATAL_ERROR "failed (${result}): ${line}")
  endif()
endfunction()

run(${CMAKE_COMMAND} -S ${SOURCE} -B ${BINARY} -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}
    -DCMAKE_CXX_COMPILER=${COMPILER} ${OPTIONS})
run(${CMAKE_COMMAND} --build ${BINARY})
run(${BINARY}/consumer)
