# cmake -DBOOTSTRAP=<sluice-bootstrap.cmake> -DBINARY=<scratch folder> -P bootstrap_test.cmake
#
# A pretended machine: ${BINARY}/bin is all of PATH, ${BINARY}/usr is where headers are looked for, and apt-get writes down
# how it was called.
cmake_minimum_required(VERSION 3.21)

function(program name text)
  file(WRITE ${BINARY}/bin/${name} "#!/bin/sh\n${text}\n")
  file(CHMOD ${BINARY}/bin/${name} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endfunction()

# machine(<user id> <programs>): nothing installed but the programs.
function(machine user)
  file(REMOVE_RECURSE ${BINARY})
  file(MAKE_DIRECTORY ${BINARY}/bin ${BINARY}/usr/include)
  program(id "echo ${user}")
  foreach(name IN LISTS ARGN)
    if(name STREQUAL "apt-get")
      program(apt-get "echo \"$*\" >> ${BINARY}/apt.log")
    elseif(name STREQUAL "sudo")
      program(sudo "echo sudo >> ${BINARY}/apt.log\n[ \"$1\" = -n ] || exit 1\nshift\n[ \"$1\" = true ] || exec \"$@\"")
    elseif(name STREQUAL "sudo-that-asks")
      program(sudo "exit 1")
    else()
      program(${name} "exit 0")
    endif()
  endforeach()
endfunction()

function(headers)
  foreach(name IN LISTS ARGN)
    file(WRITE ${BINARY}/usr/include/${name} "")
  endforeach()
endfunction()

# run(<result> <said> <apt log>)
function(run result said log)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env --unset=CXX PATH=${BINARY}/bin
            ${CMAKE_COMMAND} -DSLUICE_BOOTSTRAP=ON -DCMAKE_GENERATOR=Ninja -DSLUICE_BOOTSTRAP_PREFIXES=${BINARY}/usr
            -DSLUICE_BUILD_TESTS=ON -DSLUICE_BUILD_EXAMPLES=ON ${options} -P ${BOOTSTRAP}
    RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  set(${result} ${status} PARENT_SCOPE)
  set(${said} "${text}" PARENT_SCOPE)
  set(calls "")
  if(EXISTS ${BINARY}/apt.log)
    file(READ ${BINARY}/apt.log calls)
  endif()
  set(${log} "${calls}" PARENT_SCOPE)
endfunction()

function(expect what)
  if(NOT (${ARGN}))
    message(FATAL_ERROR "${what}: not so\nresult: ${result}\nsaid: ${said}\napt-get: ${log}")
  endif()
endfunction()

set(all_packages "g[+][+] ninja-build libeigen3-dev libxsimd-dev nlohmann-json3-dev libcli11-dev catch2 pkg-config libtbb-dev")
set(tools g++ ninja pkg-config)
set(libraries eigen3/Eigen/Core xsimd/xsimd.hpp nlohmann/json.hpp CLI/CLI.hpp catch2/catch.hpp)

machine(0 apt-get ${tools})
headers(${libraries} tbb/parallel_for.h)
run(result said log)
expect("nothing is missing: apt-get is not called" result EQUAL 0 AND NOT log)

machine(0 apt-get)
run(result said log)
expect("root: everything is installed, after an update" result EQUAL 0 AND
       log MATCHES "^-q [^\n]* update\n-q [^\n]* install -y --no-install-recommends ${all_packages}\n$")

machine(0 apt-get ${tools})
headers(${libraries} tbb/parallel_for.h)
file(REMOVE ${BINARY}/usr/include/CLI/CLI.hpp)
run(result said log)
expect("root: only what is missing is installed" result EQUAL 0 AND log MATCHES "--no-install-recommends libcli11-dev\n$")

machine(0 apt-get ${tools})
headers(${libraries} tbb/parallel_for.h)
set(options -DSLUICE_BUILD_DOCS=ON)
run(result said log)
expect("the reference needs Doxygen" result EQUAL 0 AND log MATCHES "--no-install-recommends doxygen\n$")
set(options "")

machine(1000 apt-get sudo)
run(result said log)
expect("a user with sudo: everything is installed" result EQUAL 0 AND
       log MATCHES "^sudo\nsudo\n-q [^\n]* update\nsudo\n-q [^\n]* install -y --no-install-recommends ${all_packages}\n$")

foreach(sudo "" sudo-that-asks)
  machine(1000 apt-get ${sudo})
  run(result said log)
  expect("a user without rights is told the command" NOT result EQUAL 0 AND NOT log AND
         said MATCHES "\n *sudo apt-get update && sudo apt-get install -y --no-install-recommends ${all_packages}\n")
endforeach()

machine(1000)
run(result said log)
expect("no apt-get: the names are told" NOT result EQUAL 0 AND said MATCHES "By their Debian names" AND said MATCHES "libeigen3-dev")

machine(1000 apt-get ${tools})
headers(${libraries})
run(result said log)
expect("only oneTBB is missing, and no rights: goes on without" result EQUAL 0 AND NOT log)

machine(0 ${tools})
program(apt-get "exit 100")
headers(${libraries})
run(result said log)
expect("only oneTBB is missing, and it cannot be had: goes on without" result EQUAL 0 AND said MATCHES "going on without")

machine(0)
program(apt-get "exit 100")
run(result said log)
expect("apt-get fails: says so" NOT result EQUAL 0 AND said MATCHES "could not install" AND said MATCHES "sudo apt-get update")
