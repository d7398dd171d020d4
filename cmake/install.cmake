# Install rules: headers, the CMake package, the pkg-config file, documents and examples. All of it is independent of the architecture.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(sluice_package_dir ${CMAKE_INSTALL_DATADIR}/cmake/sluice)
set(sluice_pkgconfig_dir ${CMAKE_INSTALL_DATADIR}/pkgconfig)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/sluice DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp"
        PATTERN "routers.csv")

# Documents and examples lie to each other as in the repository, so that their links hold; the reference, if it was written
# (the target docs), lies beside them.
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/CHANGELOG.md
              ${PROJECT_SOURCE_DIR}/CONTRIBUTING.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES ${PROJECT_SOURCE_DIR}/include/sluice/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR}/include/sluice)
install(FILES ${PROJECT_SOURCE_DIR}/include/sluice/router/routers.csv DESTINATION ${CMAKE_INSTALL_DOCDIR}/include/sluice/router)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/examples DESTINATION ${CMAKE_INSTALL_DOCDIR} PATTERN tests EXCLUDE)
install(DIRECTORY ${PROJECT_BINARY_DIR}/docs/reference DESTINATION ${CMAKE_INSTALL_DOCDIR} OPTIONAL)

install(TARGETS sluice EXPORT sluice-targets INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT sluice-targets NAMESPACE sluice:: DESTINATION ${sluice_package_dir})
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/sluice-config.cmake.in ${PROJECT_BINARY_DIR}/sluice-config.cmake
  INSTALL_DESTINATION ${sluice_package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/sluice-config-version.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(
  FILES ${PROJECT_BINARY_DIR}/sluice-config.cmake ${PROJECT_BINARY_DIR}/sluice-config-version.cmake
        ${PROJECT_SOURCE_DIR}/cmake/sluice-dependencies.cmake ${PROJECT_SOURCE_DIR}/cmake/sluice-variants.cmake
        ${PROJECT_SOURCE_DIR}/cmake/sluice-variant-object.cmake
  DESTINATION ${sluice_package_dir})

# The prefix as seen from the .pc file, so that a moved installation still works.
file(RELATIVE_PATH SLUICE_PC_PREFIX /prefix/${sluice_pkgconfig_dir} /prefix)
configure_file(${PROJECT_SOURCE_DIR}/cmake/sluice.pc.in ${PROJECT_BINARY_DIR}/sluice.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/sluice.pc DESTINATION ${sluice_pkgconfig_dir})
