# cmake -DSCRIPT=layering.cmake -DBINARY=<scratch folder> -P finds_violations.cmake
cmake_minimum_required(VERSION 3.21)
file(REMOVE_RECURSE ${BINARY})

# header | its include | what the script has to say
set(cases
  "core/a.hpp|<sluice/kernel/ok.hpp>|core/a.hpp: includes upwards"
  "core/b.hpp|<sluice/exec/ok.hpp>|core/b.hpp: includes upwards"
  "loss/a.hpp|<sluice/router/ok.hpp>|loss/a.hpp: includes upwards"
  "exec/a.hpp|<sluice/kernel/ok.hpp>|exec/a.hpp: includes upwards"
  "layer/a.hpp|<sluice/train/ok.hpp>|layer/a.hpp: includes upwards"
  "router/a.hpp|<sluice/expert/ok.hpp>|router/a.hpp: includes upwards"
  "router/b.hpp|<nlohmann/json.hpp>|JSON stays in io/ and checkpoint/"
  "router/c.hpp|<xsimd/xsimd.hpp>|xsimd stays in kernel/"
  "router/d.hpp|<Eigen/Dense>|Eigen/Dense>, which no public header may"
  "inspect/a.hpp|<Eigen/Eigenvalues>|inspect/a.hpp: includes <Eigen/Eigenvalues>"
  "inspect/b.hpp|<sluice/train/ok.hpp>|inspect/b.hpp: includes upwards"
  "router/e.hpp|<functional>|<functional>, which no public header may"
  "router/f.hpp|\"f.hpp\"|in quotes"
  "router/g.hpp|<sluice/core/absent.hpp>|does not exist"
  "router/h.hpp|<sluice/sluice.hpp>|router/h.hpp: includes <sluice/sluice.hpp>"
  "cellar/a.hpp|<vector>|has no place in the order"
  "stray.hpp|<vector>|belongs to no room"
  "sluice.hpp|<sluice/io/ok.hpp>|of a room that those include who use it"
  "gate/lonely.hpp|<vector>|does not bring <sluice/gate/lonely.hpp>")

foreach(room kernel exec router train io expert)
  file(WRITE ${BINARY}/sluice/${room}/ok.hpp "#include <vector>\n")
endforeach()
foreach(case IN LISTS cases)
  string(REPLACE "|" ";" case "${case}")
  list(GET case 0 header)
  list(GET case 1 include)
  file(WRITE ${BINARY}/sluice/${header} "#pragma once\n#include ${include}\n")
endforeach()

execute_process(COMMAND ${CMAKE_COMMAND} -DINCLUDE=${BINARY} -P ${SCRIPT} RESULT_VARIABLE result
                OUTPUT_VARIABLE said ERROR_VARIABLE said)
if(result EQUAL 0)
  message(FATAL_ERROR "a broken tree was accepted")
endif()
foreach(case IN LISTS cases)
  string(REPLACE "|" ";" case "${case}")
  list(GET case 2 expected)
  string(FIND "${said}" "${expected}" where)
  if(where EQUAL -1)
    message(FATAL_ERROR "not found: '${expected}' in\n${said}")
  endif()
endforeach()
